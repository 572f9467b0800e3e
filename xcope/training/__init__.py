"""Train a model, measure it, sample from it; runs that survive interruption."""

from typing import TYPE_CHECKING

from xcope import lazy

if TYPE_CHECKING:
    from xcope.training.device import device_for, keep_freed_memory
    from xcope.training.errors import (
        BrokenModelError,
        RunDivergedError,
        RunError,
        RunInterruptedError,
    )
    from xcope.training.evaluation import evaluate, tally
    from xcope.training.log import read_metrics
    from xcope.training.loop import train
    from xcope.training.metrics import results_table
    from xcope.training.progress import Reporter, reporter
    from xcope.training.run import Result, RunFolder, default_run_dir, safe_name, to_go_on
    from xcope.training.sampling import example_prompt, rest_of_sequence, sample
    from xcope.training.state import load_run

__all__ = [
    "BrokenModelError",
    "Reporter",
    "Result",
    "RunDivergedError",
    "RunError",
    "RunFolder",
    "RunInterruptedError",
    "default_run_dir",
    "device_for",
    "evaluate",
    "example_prompt",
    "keep_freed_memory",
    "load_run",
    "read_metrics",
    "reporter",
    "rest_of_sequence",
    "results_table",
    "safe_name",
    "sample",
    "tally",
    "to_go_on",
    "train",
]

__getattr__, __dir__ = lazy.names(__name__, __file__)
