"""A model that is not finite is called broken, by name; the last good checkpoint stays."""

import math
import os
import resource
import signal

import pytest
import torch

from xcope.config import Config, build_model, build_task
from xcope.training import (
    BrokenModelError,
    RunDivergedError,
    RunError,
    RunFolder,
    checkpoint,
    evaluate,
    sample,
    train,
)


def config(**changes) -> Config:
    """A run of three updates."""
    return Config.model_validate(
        {
            "model": {"dim": 16, "depth": 1, "heads": 2, "position": "rotary"},
            "task": {"name": "selective_copy", "tokens": 3, "blanks": 3, "values": 4},
            "train": {
                "steps": 3,
                "batch_size": 4,
                "device": "cpu",
                "checkpoint_every": 1,
                **changes,
            },
            "evaluate": {"batches": 1, "batch_size": 4},
        }
    )


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model(config()).eval()


BAD = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("number", BAD)
def test_evaluation_names_the_split_and_the_weight(model, number):
    model.to_logits.weight.data[0, 0] = number
    with pytest.raises(BrokenModelError, match=r"'in_distribution'.*to_logits\.weight .* in 1 of"):
        evaluate(model, build_task(config()), batches=1, batch_size=4, seed=0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("number", BAD)
def test_sampling_says_that_a_model_is_broken(model, temperature, number):
    model.to_logits.weight.data[0, 0] = number
    with pytest.raises(BrokenModelError, match=r"logits are not finite\. to_logits\.weight"):
        sample(model, [1, 2], 3, temperature=temperature)


def test_temperatures_at_the_edges_are_their_limits(model):
    likeliest = sample(model, [1, 2], 5, temperature=0)
    for cold in (5e-324, 1e-300, 1e-40, 1e-20):
        assert sample(model, [1, 2], 5, temperature=cold) == likeliest
    for hot in (1e20, 1e300):
        drawn = sample(model, [1, 2], 5, temperature=hot, top_k=2)
        assert len(drawn) == 5
    assert sample(model, [1, 2], 5, temperature=1e300, top_k=1) == likeliest
    assert sample(model, [1, 2], 5, top_k=10**9) == sample(model, [1, 2], 5)


@pytest.mark.parametrize("temperature", [math.nan, math.inf, -1.0])
def test_other_temperatures_are_refused(model, temperature):
    with pytest.raises(ValueError, match="temperature"):
        sample(model, [1], 1, temperature=temperature)


def test_seeds_are_those_of_pytorch(model):
    for seed in (-1, -(2**63), 2**63, 2**64 - 1):
        assert len(sample(model, [1], 1, seed=seed)) == 1
    for seed in (2**64, -(2**63) - 1, 10**30):
        with pytest.raises(ValueError, match="seed"):
            sample(model, [1], 1, seed=seed)


def test_a_broken_model_does_not_replace_the_last_good_checkpoint(tmp_path, monkeypatch):
    save = checkpoint.save

    def save_and_break(folder, groups, state):
        save(folder, groups, state)
        if state["step"] == 1:  # the next update goes wrong
            monkeypatch.setattr("xcope.training.loop.learning_rate", lambda step, train: math.inf)

    monkeypatch.setattr(checkpoint, "save", save_and_break)
    with pytest.raises(RunDivergedError, match=r"after step 2: .* holds NaN or infinity"):
        train(config(), tmp_path / "x")
    tensors, state = checkpoint.load(RunFolder(tmp_path / "x").checkpoint, ["model"])
    assert state["step"] == 1
    assert all(tensor.isfinite().all() for tensor in tensors["model"].values())


def test_a_full_disk_keeps_the_checkpoint_before_and_says_so(tmp_path):
    folder = tmp_path / "checkpoint"
    checkpoint.save(folder, {"model": {"w": torch.ones(4)}}, {"step": 1})
    usual = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(RunError, match="cannot be written, the one before it is kept"):
            checkpoint.save(folder, {"model": {"w": torch.ones(10_000)}}, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, usual)
    assert checkpoint.load_state(folder)["step"] == 1
    assert os.listdir(tmp_path) == ["checkpoint"]
