"""A trained model, back from its run folder."""

from __future__ import annotations

from pathlib import Path

from xcope.config import Config, build_task, read_config
from xcope.config.build import make_model
from xcope.modules import TransformerWrapper
from xcope.training import checkpoint
from xcope.training.run import RunFolder
from xcope.training.state import load_weights


def load_run(run_dir: Path | str) -> tuple[Config, TransformerWrapper]:
    """The config and the trained model (on the CPU, evaluation mode) of a run.

    The run folder alone is read: what the task is drawn from may be gone.

    Raises:
        ConfigError: a config that was changed and cannot be used.
        RunError: no run folder, no checkpoint yet, or a damaged one.
    """
    run = RunFolder(Path(run_dir))
    run.require()
    config = read_config(run.config)
    tensors, state = checkpoint.load(run.checkpoint, ["model"])
    # runs before version 0.2 do not say it; their task does
    num_tokens = state.get("num_tokens") or build_task(config).num_tokens
    longest = config.model.max_seq_len or build_task(config).max_seq_len
    model = make_model(config.model, num_tokens, longest)
    load_weights(model, tensors["model"], run.checkpoint)
    model.eval()
    return config, model
