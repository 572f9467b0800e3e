"""How long a whole sweep takes over the time that its runs take by themselves.

The ratio is the wall clock of ``xcope compare`` in a process of its own, imports, report and exit
with it, over the sum of its runs' own seconds (training and measuring, each on one core, as
``timing.json`` has them) divided by the cores. 1 is a sweep in which no core is ever idle and
nothing but training and measuring is done.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).parents[2]
QUICKSTART = REPO / "configs" / "quickstart.yaml"


@dataclass(frozen=True)
class Sweep:
    """What a sweep took.

    Args:
        wall: seconds from the start of the command to its end.
        own: seconds of each run, by its name.
        cores: runs side by side.
    """

    wall: float
    own: dict[str, float]
    cores: int

    @property
    def ratio(self) -> float:
        """Wall clock over the runs' own seconds divided by the cores."""
        return self.wall / (sum(self.own.values()) / self.cores)


def quickstart_sweep(out: Path, overrides: Sequence[str] = (), cores: int = 2) -> Sweep:
    """Run the quickstart in a new folder.

    Kernels that are not compiled yet are compiled first, by one step of each run, as at the first
    call after an installation.

    Args:
        overrides: ``key=value``, as ``train.steps=100``.

    Raises:
        subprocess.CalledProcessError: a run failed.
    """
    _compare(out / "first", ["train.steps=1", *overrides], cores)
    start = time.perf_counter()
    _compare(out / "sweep", overrides, cores)
    wall = time.perf_counter() - start
    own = {}
    for file in sorted((out / "sweep" / "runs").glob("*/timing.json")):
        timing = json.loads(file.read_text(encoding="utf-8"))
        own[file.parent.name] = timing["seconds"] + timing["evaluate_seconds"]
    return Sweep(wall, own, cores)


def _compare(out: Path, overrides: Sequence[str], cores: int) -> None:
    command = [sys.executable, "-m", "xcope", "compare", str(QUICKSTART), *overrides]
    paths = [str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])]
    subprocess.run(
        [*command, "--jobs", str(cores), "--out", str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        check=True,
    )
