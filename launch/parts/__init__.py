"""What several of the programs in launch/ are made of."""
