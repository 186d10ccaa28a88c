"""`python -m cure_jax` is `cure-jax`."""

from cure_jax.commands.program import main

if __name__ == "__main__":
    main()
