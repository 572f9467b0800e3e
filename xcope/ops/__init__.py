"""Functions on tensors: attention as positional schemes need it. Imports torch; numba and Triton
where they are installed.

All operators of ``torch.ops.xcope`` are there once this is imported: saved programs need them.
"""

from xcope.ops import biased, cope, polar, rotate

__all__ = ["biased", "cope", "polar", "rotate"]
