"""What workers are forked with: imported once, in the process that they are forked from."""

import gc
from contextlib import suppress

from xcope.lazy import importing

with importing():
    import xcope.compare.run.worker

    with suppress(ImportError, OSError):  # what most runs use on a CPU
        import xcope.ops.compiled.kernel  # noqa: F401

# what is there stays: no worker looks for garbage in it, nor does this process when it ends
gc.freeze()
