"""`cure-jax verify`, from a checkout: see cure_jax/commands/verify.py."""

from cure_jax.commands import verify

if __name__ == "__main__":
    verify.run()
