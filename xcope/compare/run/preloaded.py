"""What workers are forked with: imported once, in the process that they are forked from."""

import gc
from contextlib import suppress

from xcope.lazy import importing

with importing():
    import xcope.compare.run.worker  # noqa: F401

    with suppress(ImportError):  # compiled kernels need it; each run loads those that it uses
        import numba  # noqa: F401

# what is there stays: no worker looks for garbage in it, nor does this process when it ends
gc.freeze()
