"""Does a bundle compute what its checkpoint computes? Fails closed."""
