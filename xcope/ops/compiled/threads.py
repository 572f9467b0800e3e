"""Run a compiled kernel on the OpenMP threads that torch itself uses.

A second pool (numba's own, or Python threads) would fight torch's for the cores: an OpenMP
thread keeps spinning for a while after each matrix product. So the kernel is handed to the very
runtime that torch has loaded, by the entry point that GCC's ``#pragma omp parallel`` calls.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@cache
def openmp() -> ctypes.CDLL:
    """torch's OpenMP runtime: its wheel's own copy, or whatever the process has loaded.

    Raises:
        OSError: torch uses none with GCC's entry points.
    """
    bundled = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    for path in [*map(str, bundled), None]:
        library = ctypes.CDLL(path)
        if hasattr(library, "GOMP_parallel") and hasattr(library, "omp_get_thread_num"):
            return library
    raise OSError("torch uses no OpenMP runtime with GCC's entry points")


def address(symbol: str) -> int:
    """The address of a function of the runtime."""
    return ctypes.cast(getattr(openmp(), symbol), ctypes.c_void_p).value or 0


def run(kernel: Any, numbers: list[int], *tensors: Tensor) -> None:
    """Call a `numba_runtime.kernel` on each of torch's threads.

    Its argument is an array: the numbers, then the addresses of the tensors.
    """
    packed = (ctypes.c_int64 * (len(numbers) + len(tensors)))(*numbers)
    for place, t in enumerate(tensors, len(numbers)):
        packed[place] = t.data_ptr()
    openmp().GOMP_parallel(ctypes.c_void_p(kernel.address), packed, torch.get_num_threads(), 0)
