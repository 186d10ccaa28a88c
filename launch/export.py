"""`cure-jax export`, from a checkout: see cure_jax/commands/export.py."""

from cure_jax.commands import export

if __name__ == "__main__":
    export.run()
