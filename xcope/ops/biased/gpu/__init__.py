"""Attention with a bias by FlexAttention."""
