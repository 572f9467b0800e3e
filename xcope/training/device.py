"""Where numbers are computed, in which precision, from which seeds, and in how much memory."""

from __future__ import annotations

import ctypes
import os
import platform
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from xcope.config import TrainConfig
from xcope.errors import FlagError
from xcope.tasks.base import stream_generator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
MIB = 2**20
STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")


def device_for(name: str) -> torch.device:
    """The device called ``auto`` (a GPU if there is one), ``cpu`` or ``cuda``.

    Raises:
        FlagError: ``cuda`` where PyTorch finds no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise FlagError("device", "device=cuda, but PyTorch finds no GPU: use auto or cpu")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


@contextmanager
def accelerated(train: TrainConfig) -> Iterator[Accelerator]:
    """Accelerate on the device and in the precision that the config asks for.

    Raises:
        FlagError: a GPU is asked for and there is none; fp16 on a CPU; a learning rate
            beyond float32; a batch that the processes cannot share equally.
    """
    device_for(train.device)
    keep_freed_memory()
    joined = torch.distributed.is_initialized()
    if not joined:
        # Accelerate keeps one device and precision per process; a notebook may train two models
        AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision=train.precision, cpu=train.device == "cpu")
    try:
        _check(train, accelerator)
        yield accelerator
    finally:
        if torch.distributed.is_initialized() and not joined:
            torch.distributed.destroy_process_group()


def _check(train: TrainConfig, accelerator: Accelerator) -> None:
    if train.precision == "fp16" and accelerator.device.type == "cpu":
        raise FlagError("precision", "train.precision=fp16 needs a GPU: use bf16 or 'no' on a CPU")
    most = torch.finfo(torch.float32).max
    if train.lr > most:
        raise FlagError("lr", f"train.lr={train.lr:g} is not allowed: at most {most:.1e}")
    if train.batch_size % accelerator.num_processes:
        raise FlagError(
            "batch_size",
            f"train.batch_size={train.batch_size} cannot be shared equally by "
            f"{accelerator.num_processes} processes",
        )


def keep_freed_memory() -> None:
    """Have the process keep memory for the next step that a step frees.

    By default glibc gives much of it back to the system and asks for it again, and every page is
    cleared and mapped anew: a tenth of a small model's step. Nothing is done where there is no
    glibc, or where the environment sets one of its two thresholds.
    """
    chosen = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys()
    if platform.libc_ver()[0] == "glibc" and not chosen:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * MIB)  # the largest that glibc takes everywhere
        libc.mallopt(M_TRIM_THRESHOLD, 1024 * MIB)


def seed_everything(*key: str | int) -> None:
    """Seed PyTorch, and Python's own generator (x-transformers draws layer dropout from it)."""
    seed = stream_generator(*key).initial_seed()
    torch.manual_seed(seed)
    random.seed(seed)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On a GPU, take the algorithms that give the same bits each time, where there are some."""
    before = torch.are_deterministic_algorithms_enabled()
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


class PeakMemory:
    """The peak of memory since this was made, less what was held then.

    On a GPU it is what PyTorch allocated. On a CPU it is the resident memory of the process without
    mapped files, which are the code of libraries; only Linux tells it. There it is truest in a new
    process: memory that earlier work gave back may be used again without being counted.

    Args:
        device: where the model is trained.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._start: int | None = torch.cuda.memory_allocated(device)
        else:
            _forget_peak()
            self._start = _resident("RssAnon")

    def bytes(self) -> int | None:
        """The peak; None where the system does not tell."""
        if self._device.type == "cuda":
            peak: int | None = torch.cuda.max_memory_allocated(self._device)
        else:
            peak = _resident("VmHWM", without="RssFile")
        return None if peak is None or self._start is None else max(0, peak - self._start)


def _forget_peak() -> None:
    """Let Linux count the peak of resident memory (VmHWM) from now on."""
    try:
        RESET.write_text("5", encoding="utf-8")
    except OSError:
        return  # what was higher before will be counted


def _resident(kind: str, without: str | None = None) -> int | None:
    """Bytes that the kernel counts for this process; None where it does not tell."""
    try:
        lines = STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    parts = (line.partition(":") for line in lines if line.endswith(" kB"))
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in parts}
    if kind not in kilobytes:
        return None
    return 1024 * (kilobytes[kind] - (kilobytes.get(without, 0) if without else 0))
