"""What the kernels are written in: numba, with C entry points, pointers and torch's threads.

Importing this module fails where numba or torch's OpenMP runtime is missing.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import llvmlite.binding as llvm
import numba
import numpy as np
from numba import types
from numba.core import event

from xcope.ops.compiled import threads

log = logging.getLogger(__name__)
Array = Any  # a numba array; of float32 unless said otherwise
F = TypeVar("F", bound=Callable[..., Any])

f32, i32 = np.float32, np.int32

# Everything but the assumption that there are no infinities and NaNs: masked logits are −∞.
FAST = ("contract", "nsz", "arcp")
_OPTIONS: dict[str, Any] = {"fastmath": set(FAST), "error_model": "numpy"}


class _Compiling(event.Listener):  # type: ignore[misc]
    """Logs, once, that something is compiled rather than read from the cache on disk."""

    told = False

    def on_start(self, event: Any) -> None:
        """Say so."""
        if not self.told:
            self.told = True
            log.info("compiling kernels, once")

    def on_end(self, event: Any) -> None:
        """Nothing."""


_compiling = _Compiling()
event.register("numba:run_pass", _compiling)


# numba takes compiled code from its cache if the function's own file has not changed, whatever
# became of the functions that it calls: so their files are in its name
_SOURCES = sorted(Path(__file__).parent.glob("*.py"))
_STAMP = hashlib.sha256(b"".join(file.read_bytes() for file in _SOURCES)).hexdigest()[:8]


def _cached(decorator: Callable[..., Any], function: F) -> Any:
    """Compiles with a cache on disk, where the disk can be written."""
    function.__qualname__ = f"{function.__qualname__}_{_STAMP}"
    try:
        return decorator(cache=True, **_OPTIONS)(function)
    except RuntimeError:
        return decorator(**_OPTIONS)(function)


def compiled(function: F) -> F:
    """A function that other compiled functions call."""
    return _cached(numba.njit, function)  # type: ignore[no-any-return]


def kernel(function: Callable[[Any], None]) -> Any:
    """A C function of packed arguments, for `threads.run`."""
    signature = types.void(types.CPointer(types.int64))
    return _cached(lambda **options: numba.cfunc(signature, **options), function)


# -- threads -------------------------------------------------------------------------------------

for _symbol in ("omp_get_thread_num", "omp_get_num_threads"):
    llvm.add_symbol(_symbol, threads.address(_symbol))
this_thread = types.ExternalFunction("omp_get_thread_num", types.int32())
all_threads = types.ExternalFunction("omp_get_num_threads", types.int32())


# -- memory --------------------------------------------------------------------------------------


@numba.extending.intrinsic  # type: ignore[untyped-decorator]
def pointer(context: Any, address: Any) -> Any:
    def convert(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), convert


@compiled
def floats(address: int, shape: Any) -> Array:
    return numba.carray(pointer(address), shape, dtype=np.float32)


@compiled
def doubles(address: int, shape: Any) -> Array:
    return numba.carray(pointer(address), shape, dtype=np.float64)


@compiled
def integers(address: int, shape: Any) -> Array:
    return numba.carray(pointer(address), shape, dtype=np.int32)


@compiled
def booleans(address: int, shape: Any) -> Array:
    return numba.carray(pointer(address), shape, dtype=np.bool_)
