"""What `launch/benchmark.py` times: one benchmark a file."""
