"""What the tests of comparisons share: a tiny sweep, the script as a process, made-up outcomes."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xcope.compare import Outcome, Run
from xcope.config import Config, EvaluateConfig, ModelConfig, TaskConfig, TrainConfig

REPO = Path(__file__).parents[2]

TINY: dict[str, Any] = {
    "model": {"dim": 16, "depth": 1, "heads": 2},
    "task": {"name": "selective_copy", "tokens": 3, "blanks": 3, "values": 4},
    "train": {
        "steps": 6, "batch_size": 8, "lr": 0.01, "log_every": 2, "checkpoint_every": 0,
        "device": "cpu",
    },
    "evaluate": {"batches": 2, "batch_size": 16},
    "sweep": {"model.position": ["none", {"name": "cope", "max_pos": 8}], "train.seed": [0, 1]},
}  # fmt: skip
NAMES = ["none-seed0", "none-seed1", "cope-max_pos=8-seed0", "cope-max_pos=8-seed1"]


def start_compare(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    """scripts/compare.py in a process of its own."""
    paths = [str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, REPO / "scripts" / "compare.py", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_compare(*arguments: object, cwd: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of scripts/compare.py."""
    process = start_compare(*arguments, cwd=cwd)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def files(folder: Path, pattern: str) -> dict[str, tuple[int, bytes]]:
    """Path → time and content of the files that match."""
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.glob(pattern)}


def outcome(
    scheme: str,
    seed: int = 0,
    *,
    error: float | Mapping[str, float] | None = None,
    swept: Mapping[str, str] | None = None,
    metric: str = "error",
    task: str = "selective_copy",
    options: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    **rest: Any,
) -> Outcome:
    """An outcome without a run: ``error`` of each split, the same of all, or None for failed."""
    config = Config(
        model=ModelConfig(dim=16, depth=1, position=scheme),
        task=TaskConfig(name=task, **(options or {})),
        train=TrainConfig(seed=seed),
        evaluate=EvaluateConfig(batches=1, batch_size=10_000),
    )
    values = error if isinstance(error, Mapping) else {"near": error, "far": error}
    folder = (folder or Path()) / f"{scheme}-seed{seed}"
    run = Run(folder, config, scheme, seed, swept or {}, tuple(values), metric)
    if error is None:
        return Outcome(run, reason="the loss is nan")
    metrics = {split: {metric: value} for split, value in values.items() if value is not None}
    measured = {"params": 1000, "steps": 10, "seconds": 2.0, "pace": 0.2} | rest
    return Outcome(run, "", metrics, **measured)


def outcomes(errors: Mapping[str, Sequence[Any]], **rest: Any) -> list[Outcome]:
    """Scheme → what `outcome` takes as the error of each seed."""
    return [
        outcome(scheme, seed, error=error, **rest)
        for scheme, values in errors.items()
        for seed, error in enumerate(values)
    ]
