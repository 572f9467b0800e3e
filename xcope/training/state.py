"""What changes while a model trains, and how it goes to a checkpoint and back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim import AdamW

from xcope import plugins
from xcope.config import Config, TrainConfig, build_model, build_task, read_config
from xcope.config.build import make_model
from xcope.modules import TransformerWrapper
from xcope.training import checkpoint
from xcope.training.device import seed_everything
from xcope.training.errors import RunError
from xcope.training.run import RunFolder, settings
from xcope.training.warm import WarmStart, warm_start


@dataclass
class TrainingState:
    """Model, optimiser and how far they are.

    There is no scheduler and no state of random generators in it: learning rate, data and dropout
    are functions of (seed, step).

    Args:
        model: as Accelerate prepared it; `bare` is the module inside.
        optimizer: AdamW, as Accelerate prepared it.
        step: updates done.
        seconds: training time so far, of all processes that worked on the run.
        peak_bytes: memory at the peak of training, over that before the model was made; None
            before the last step, or where the system does not tell.
    """

    config: Config
    accelerator: Accelerator
    model: nn.Module
    optimizer: AcceleratedOptimizer
    step: int = 0
    seconds: float = 0.0
    peak_bytes: int | None = None

    @classmethod
    def fresh(cls, config: Config, accelerator: Accelerator) -> TrainingState:
        """The state before the first step; initial weights are a function of the seed."""
        seed_everything("weights", config.train.seed)
        model = build_model(config)
        model.train()
        optimizer = adamw(model, config.train, model.position_parameters())
        model, optimizer = accelerator.prepare(model, optimizer)
        return cls(config, accelerator, model, optimizer)

    @property
    def bare(self) -> TransformerWrapper:
        """The model with x-transformers' parameter names, computing in float32."""
        bare: TransformerWrapper = self.accelerator.unwrap_model(
            self.model, keep_fp32_wrapper=False
        )
        return bare

    def warm_start(self) -> WarmStart:
        """Take over what fits of the weights of ``train.init_from``; see `warm_start`."""
        return warm_start(self._module(), self.config)

    def save(self, folder: Path) -> None:
        """Write a checkpoint (on the main process; the others wait)."""
        if self.accelerator.is_main_process:
            groups = {"model": self._module().state_dict(), "optimizer": self._moments()}
            checkpoint.save(folder, groups, self._rest())
        self.accelerator.wait_for_everyone()

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            RunError: it is damaged, or does not fit the model.
        """
        tensors, rest = checkpoint.load(folder, ("model", "optimizer"))
        load_weights(self._module(), tensors["model"], folder)
        self._load_moments(tensors["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(rest["scaler"])
        self.step, self.seconds = rest["step"], rest["seconds"]

    def _module(self) -> TransformerWrapper:
        module: TransformerWrapper = self.accelerator.unwrap_model(self.model)
        return module

    def _rest(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "step": self.step,
            "seconds": self.seconds,
            "scaler": None if scaler is None else scaler.state_dict(),
            "config": settings(self.config),
            "num_tokens": self._module().num_tokens,
            "block": self._module().attn_layers.block,
        }

    def _moments(self) -> dict[str, Tensor]:
        """AdamW's tensors as ``<parameter>/exp_avg``, …: names do not depend on any order."""
        return {
            f"{name}/{key}": tensor
            for name, parameter in self._module().named_parameters()
            for key, tensor in self.optimizer.state.get(parameter, {}).items()
        }

    def _load_moments(self, moments: dict[str, Tensor]) -> None:
        parameters = dict(self._module().named_parameters())
        for path, tensor in moments.items():
            name, key = path.rsplit("/", 1)
            parameter = parameters[name]
            # AdamW counts its steps on the CPU
            place = torch.device("cpu") if key == "step" else parameter.device
            self.optimizer.state[parameter][key] = tensor.to(place)


def adamw(
    model: nn.Module, train: TrainConfig, position_parameters: Iterable[nn.Parameter] = ()
) -> AdamW:
    """AdamW that decays only matrices, not gains, biases and other vectors.

    Each group of parameters has the factor of its learning rate under ``"scale"``: 1, or
    ``train.position_lr_scale`` for what the positional schemes learn.
    """
    own = set(position_parameters)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decay = train.weight_decay if parameter.ndim >= 2 else 0.0
            scale = train.position_lr_scale if parameter in own else 1.0
            groups.setdefault((decay, scale), []).append(parameter)
    return AdamW(
        [
            {"params": parameters, "weight_decay": decay, "scale": scale}
            for (decay, scale), parameters in groups.items()
        ],
        lr=train.lr,
        betas=train.betas,
    )


def load_run(
    run_dir: Path | str, *, trust: bool | None = None
) -> tuple[Config, TransformerWrapper]:
    """The config and the trained model (on the CPU, evaluation mode) of a run.

    Only the run folder is read: the data of the task may be gone.

    Args:
        trust: run plugins that the run asks for and that you have not named, or trained with, on
            this machine (`xcope.plugins`); None: ask, as `xcope.plugins.trusting` says.

    Raises:
        ConfigError: a config that was changed and cannot be used; a plugin that is missing, fails,
            or may not run.
        RunError: no run folder, no checkpoint yet, or a damaged one.
    """
    run = RunFolder(Path(run_dir))
    run.require()
    with plugins.trusting(trust):
        config = read_config(run.config)
    tensors, state = checkpoint.load(run.checkpoint, ["model"])
    # runs before version 0.2 do not say it; their task does
    num_tokens = state.get("num_tokens") or build_task(config).num_tokens
    longest = config.model.max_seq_len or build_task(config).max_seq_len
    model = make_model(config.model, num_tokens, longest, block=state.get("block"))
    load_weights(model, tensors["model"], run.checkpoint)
    model.eval()
    return config, model


def load_weights(model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Load a state dict strictly.

    Raises:
        RunError: names or shapes differ.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise RunError(f"the weights in {folder} do not fit the model: {reason:.400}") from None
