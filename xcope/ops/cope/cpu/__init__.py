"""CoPE attention in tiles, on CPUs and any device without kernels."""
