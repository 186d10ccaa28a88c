"""`cure-jax certify`, from a checkout: see cure_jax/commands/certify.py."""

from cure_jax.commands import certify

if __name__ == "__main__":
    certify.run()
