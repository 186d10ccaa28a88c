"""`cure-jax compare`, from a checkout: see cure_jax/commands/compare.py."""

from cure_jax.commands import compare

if __name__ == "__main__":
    compare.run()
