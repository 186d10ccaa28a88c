"""`cure-jax sweep`, from a checkout: see cure_jax/commands/sweep.py."""

from cure_jax.commands import sweep

if __name__ == "__main__":
    sweep.run()
