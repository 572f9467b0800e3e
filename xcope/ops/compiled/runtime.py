"""What the compiled tiles are written in: numba, with C entry points, pointers, exp.

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
from llvmlite import ir
from numba import types
from numba.core import cgutils, event

from xcope.ops.compiled import threads

log = logging.getLogger(__name__)
Array = Any  # a numba array; of float32 unless said otherwise
F = TypeVar("F", bound=Callable[..., Any])

f32, i32 = np.float32, np.int32

# Everything but the assumption that there are no infinities and NaNs: masked logits are −∞.
FAST = {"contract", "nsz", "arcp"}
_OPTIONS: dict[str, Any] = {"fastmath": FAST, "error_model": "numpy"}


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


def _cached(decorator: Callable[..., Any], function: F, **options: Any) -> Any:
    """Compiles with a cache on disk, where the disk can be written."""
    function.__qualname__ = f"{function.__qualname__}_{_STAMP}"
    try:
        return decorator(cache=True, **(_OPTIONS | options))(function)
    except RuntimeError:
        return decorator(**(_OPTIONS | options))(function)


def compiled(function: F) -> F:
    """A function that other compiled functions call."""
    return _cached(numba.njit, function, nogil=True)  # type: ignore[no-any-return]


def inlined(function: F) -> F:
    """A loop that becomes part of its callers, where it is seen which of its arrays may overlap."""
    return _cached(numba.njit, function, nogil=True, forceinline=True)  # type: ignore[no-any-return]


def summing(function: F) -> F:
    """The same, where terms of a sum may be taken in any order, so that it becomes vectors."""
    options = _OPTIONS | {"fastmath": {*_OPTIONS["fastmath"], "reassoc"}}
    return _cached(numba.njit, function, nogil=True, forceinline=True, **options)  # type: ignore[no-any-return]


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


@numba.extending.intrinsic  # type: ignore[untyped-decorator]
def prefetch(context: Any, address: Any) -> Any:
    """Asks for the cache line at an address, to be written as well as read."""

    def ask(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        write_near_data = [ir.Constant(number, flag) for flag in (1, 3, 1)]
        builder.call(function, [builder.inttoptr(arguments[0], byte), *write_near_data])
        return context.get_dummy_value()

    return types.void(types.int64), ask


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


# -- arithmetic ----------------------------------------------------------------------------------

# Beyond them exp is 0 and ∞. e^−50 is nothing beside 1, and far from the denormal numbers, which
# would make everything slow that meets them.
LOWEST, HIGHEST = f32(-50.0), f32(89.0)


@compiled
def exp(x: Any) -> Any:
    """e^x by Cephes' polynomial, to 1e-7: in plain arithmetic, so that loops become vectors.

    Of NaN it is NaN: comparisons are so turned that it falls through them.
    """
    y = LOWEST if x < LOWEST else x
    y = HIGHEST if y > HIGHEST else y
    n = np.floor(y * f32(1.44269504) + f32(0.5))
    y = y - n * f32(0.693359375) - n * f32(-2.12194440e-4)
    z = f32(1.9875691500e-4)
    z = z * y + f32(1.3981999507e-3)
    z = z * y + f32(8.3334519073e-3)
    z = z * y + f32(4.1665795894e-2)
    z = z * y + f32(1.6666665459e-1)
    z = z * y + f32(5.0000001201e-1)
    z = z * y * y + y + f32(1)
    power = i32((i32(n) + i32(127)) << i32(23)).view(np.float32)
    return f32(0) if x <= LOWEST else z * power


@compiled
def sigmoid(x: Any) -> Any:
    return f32(1) / (f32(1) + exp(-x))
