"""Command-line programs over `cure_jax`."""
