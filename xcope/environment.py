"""On what numbers were computed: packages, processor, memory, device, threads."""

from __future__ import annotations

import os
import platform
import sys
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


EXTRAS: dict[str, tuple[str, ...]] = {
    "needed": (
        "torch", "x-transformers", "einops", "accelerate", "safetensors", "pydantic", "pyyaml",
        "click", "rich", "matplotlib", "jinja2", "numpy", "numba", "triton", "filelock", "psutil",
    ),
    "hf": ("transformers", "tokenizers", "datasets", "pyarrow", "peft", "lm-eval"),
    "track": ("tensorboard", "trackio", "wandb"),
}  # fmt: skip
"""Extra of ``pip install xcope[…]`` → packages whose versions a bug report needs."""


def report() -> str:
    """What a bug report needs: versions, system, processor, memory, devices, threads."""
    lines = {
        "Python": f"{platform.python_version()} ({platform.python_implementation()}), "
        f"{sys.executable}",
        "xcope": str(Path(__file__).parent),
        "system": f"{platform.platform()}",
        "processor": f"{processor()}, {platform.machine()}",
        "memory": memory(),
        "threads": f"{torch.get_num_threads()} of torch; {_usable_cores()} usable cores",
        "devices": ", ".join(devices()),
        "CUDA of torch": torch.version.cuda or "none",
    }
    lines |= {extra: ", ".join(map(_version, packages)) for extra, packages in EXTRAS.items()}
    size = max(map(len, lines))
    return "\n".join(f"{key:<{size}}  {text}" for key, text in lines.items())


def devices() -> list[str]:
    """``cpu``, and each GPU by its name."""
    found = ["cpu"]
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        found.append(f"cuda:{index} {torch.cuda.get_device_name(index)} (sm_{major}{minor})")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
