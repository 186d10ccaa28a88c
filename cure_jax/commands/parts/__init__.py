"""What several of the programs `cure-jax` and launch/ are made of."""
