"""`cure-jax train`, from a checkout: see cure_jax/commands/train.py."""

from cure_jax.commands import train

if __name__ == "__main__":
    train.run()
