"""Upper bounds on the 2-norm of matrices, convolutions and affine blocks of a network."""
