"""What tiled attention shares: tiles, products, the running softmax, numba and its threads."""
