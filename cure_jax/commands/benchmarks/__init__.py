"""What `cure-jax benchmark` times: one benchmark a file."""
