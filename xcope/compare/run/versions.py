"""How a comparison was run: what a person needs to run it again."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("xcope", "torch", "x-transformers", "accelerate", "numpy", "numba")


@dataclass(frozen=True)
class Circumstances:
    """How a comparison was run.

    Args:
        command: what to type to run it again.
        device: ``cpu`` or ``cuda``.
        jobs: runs side by side.
        threads: torch threads of each run.
    """

    command: str
    device: str
    jobs: int
    threads: int

    @property
    def machine(self) -> str:
        """Device, runs side by side, cores."""
        return (
            f"device {self.device}; {self.jobs} runs at a time, torch threads of each: "
            f"{self.threads}; {platform.system()} on {platform.machine()}, {os.cpu_count()} cores"
        )


def versions(packages: Sequence[str] = PACKAGES) -> list[str]:
    """``Python 3.12.1``, ``torch 2.6.0``, …"""
    return [f"Python {platform.python_version()}", *map(_version, packages)]


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} (not installed)"
