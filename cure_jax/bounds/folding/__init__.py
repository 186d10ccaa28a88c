"""The backward fold that linear bounds share, and the forms of coefficients that it moves."""
