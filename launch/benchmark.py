"""`cure-jax benchmark`, from a checkout: see cure_jax/commands/benchmark.py."""

from cure_jax.commands import benchmark

if __name__ == "__main__":
    benchmark.run()
