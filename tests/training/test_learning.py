"""Training lowers the loss; optimiser and schedule do what they are described to do."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn
from training_runs import At, MakeConfig, press_ctrl_c, weights

from xcope.config import TrainConfig, build_model, build_task
from xcope.errors import FlagError
from xcope.training import RunDivergedError, RunInterruptedError, train
from xcope.training.device import accelerated
from xcope.training.loop import mean_loss, update
from xcope.training.schedule import learning_rate
from xcope.training.state import TrainingState, adamw


def test_a_few_dozen_steps_lower_the_loss_clearly(tiny: MakeConfig, tmp_path: Path):
    config = tiny(
        "task={name: selective_copy, tokens: 2, blanks: 1, dense_blanks: 0, values: 2}",
        "train.steps=60", "train.batch_size=32", "model.dim=32",
    )  # fmt: skip
    result = train(config, tmp_path / "run")
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    # two values, equally likely: a guess costs ln 2
    assert first["loss"] > math.log(2)
    assert result.splits["in_distribution"]["loss"] < 0.5 * math.log(2)


def test_the_rate_rises_to_its_peak_and_falls_towards_zero():
    config = TrainConfig(steps=100, lr=2.0, warmup=0.05)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[:6] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0, 2.0])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[-1] < 0.002


@pytest.mark.parametrize("warmup", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_rate_is_sane_for_any_warm_up(steps: int, warmup: float):
    config = TrainConfig(steps=steps, lr=1.0, warmup=warmup)
    rates = [learning_rate(step, config) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == 1


def test_only_matrices_decay():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = adamw(model, TrainConfig(lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.95 if parameter.ndim == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), factor * before[name])


def test_what_the_scheme_learns_has_a_rate_of_its_own(tiny: MakeConfig):
    config = tiny(
        "model.position={name: cope, max_pos: 4, init_std: 0.1}", "train.position_lr_scale=10",
        "train.warmup=0", "train.weight_decay=0",
    )  # fmt: skip
    with accelerated(config.train) as accelerator:
        state = TrainingState.fresh(config, accelerator)
        before = {name: p.detach().clone() for name, p in state.bare.named_parameters()}
        update(state, build_task(config))
    # Adam's first step is the learning rate wherever there is a gradient
    steps = {
        name: (parameter.detach() - before[name]).abs().max().item() / config.train.lr
        for name, parameter in state.bare.named_parameters()
    }
    tables = [name for name in steps if name.endswith("cope.pos_emb")]
    assert len(tables) == config.model.depth
    for name, step in steps.items():
        assert step == pytest.approx(10 if name in tables else 1, rel=0.01), name


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: float
):
    with pytest.raises(RunInterruptedError):
        train(tiny(), tmp_path / "good", reporter=At(5, press_ctrl_c))

    def spoiled(state: TrainingState, task: Any) -> torch.Tensor:
        return mean_loss(state, task) * (loss if state.step == 7 else 1)

    monkeypatch.setattr("xcope.training.loop.mean_loss", spoiled)
    with pytest.raises(RunDivergedError, match=rf"step 8: loss is {loss}.*checkpoint is kept"):
        train(tiny(), tmp_path / "bad")
    good, kept = weights(tmp_path / "good"), weights(tmp_path / "bad")
    assert all(torch.equal(good[name], kept[name]) for name in good)


def test_an_absurd_learning_rate_is_told_not_hidden(tiny: MakeConfig, tmp_path: Path):
    config = tiny("train.lr=1.0e+30", "train.clip=null", "train.steps=40")
    with pytest.raises(RunDivergedError, match=r"smaller train\.lr"):
        train(config, tmp_path / "run")


def test_shares_of_several_processes_add_up_to_the_whole_batch(tiny: MakeConfig):
    # flip-flop scores another number of tokens in each sequence
    config = tiny("task={name: flip_flop, instructions: 6}")
    model, task = build_model(config), build_task(config)

    def loss_and_gradient(processes: int) -> tuple[torch.Tensor, torch.Tensor]:
        losses, gradients = [], []
        for index in range(processes):
            accelerator = SimpleNamespace(
                process_index=index, num_processes=processes, device=torch.device("cpu")
            )
            state = SimpleNamespace(config=config, accelerator=accelerator, model=model, step=3)
            loss = mean_loss(cast(TrainingState, state), task)
            model.zero_grad()
            loss.backward()
            losses.append(loss.detach())
            gradients.append(model.to_logits.weight.grad.clone())
        return torch.stack(losses).mean(), torch.stack(gradients).mean(dim=0)

    for one, four in zip(loss_and_gradient(1), loss_and_gradient(4), strict=True):
        torch.testing.assert_close(one, four)


def test_a_batch_that_processes_cannot_share_equally_is_refused(
    tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch
):
    three = SimpleNamespace(num_processes=3, device=torch.device("cpu"))
    monkeypatch.setattr("xcope.training.device.Accelerator", lambda **options: three)
    refusal = "batch_size=8 cannot be shared equally by 3 processes"
    with pytest.raises(FlagError, match=refusal), accelerated(tiny().train):
        pytest.fail("three processes share a batch of eight")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("override", ["train.device=cuda", "train.precision=fp16"])
def test_what_needs_a_gpu_says_so(tiny: MakeConfig, tmp_path: Path, override: str):
    with pytest.raises(FlagError, match="GPU"):
        train(tiny(override), tmp_path / "run")
    assert not (tmp_path / "run").exists()
