"""A trained model, back from its run folder."""

from __future__ import annotations

from pathlib import Path

from xcope.config import Config, build_model, load_config
from xcope.modules import TransformerWrapper
from xcope.training import checkpoint
from xcope.training.run import RunFolder
from xcope.training.state import load_weights


def load_run(run_dir: Path | str) -> tuple[Config, TransformerWrapper]:
    """The config and the trained model (on the CPU, evaluation mode) of a run.

    Raises:
        RunError: no run folder, no checkpoint yet, or a damaged one.
    """
    run = RunFolder(Path(run_dir))
    run.require()
    config = load_config(run.config)
    tensors, _ = checkpoint.load(run.checkpoint, ["model"])
    model = build_model(config)
    load_weights(model, tensors["model"], run.checkpoint)
    model.eval()
    return config, model
