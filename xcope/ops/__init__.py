"""Functions on tensors: attention as positional schemes need it. Imports torch; numba and Triton
where they are installed."""
