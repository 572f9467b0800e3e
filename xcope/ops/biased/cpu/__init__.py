"""Attention with a bias in tiles, on CPUs."""
