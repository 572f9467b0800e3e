"""Functions on tensors: attention as positional schemes need it. Imports only torch."""
