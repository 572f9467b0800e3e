"""CoPE attention as Triton kernels."""
