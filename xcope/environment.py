"""On what numbers were computed: packages, processor, memory, device, threads."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

PACKAGES = ("xcope", "torch", "x-transformers", "accelerate", "numpy", "numba")
"""The packages that a trained model's numbers depend on."""
TIMED = ("torch", "numba", "x-transformers")
"""The packages that the time of attention depends on."""


def versions(packages: Sequence[str] = PACKAGES) -> str:
    """``Python 3.12.1, xcope 0.1.0, torch 2.6.0, …``."""
    return ", ".join([f"Python {platform.python_version()}", *map(_version, packages)])


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} (not installed)"


def system() -> str:
    """``Linux on x86_64, 8 cores``."""
    return f"{platform.system()} on {platform.machine()}, {os.cpu_count()} cores"


def processor() -> str:
    """``8 × Intel(R) Xeon(R) Processor``; what Python knows of it where there is no /proc."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else platform.processor()


def memory() -> str:
    """``31 GiB``: what this machine has for all processes."""
    return f"{psutil.virtual_memory().total / 2**30:.0f} GiB"


def device_name(device: torch.device) -> str:
    """``NVIDIA H100 80GB HBM3``, or the processor's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def noted(device: torch.device) -> dict[str, str | int]:
    """What a run writes beside its result: device, threads of torch, version of torch."""
    return {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
