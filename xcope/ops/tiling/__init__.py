"""What attention in tiles of torch operations shares: tiles, products, the running softmax."""
