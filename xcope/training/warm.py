"""Warm start: begin with what fits of the weights of another run (``train.init_from``).

A weight of the same name and shape is taken over. A table of positions of another length is begun
from what its module makes of the old one (``resized``); all else begins as in a run of its own. So
a scheme, a depth, a vocabulary may change: the schemes' own tables begin at zero, or where their
scheme says, and layers that both have keep their weights. Only the weights of the other run are
read; none of its code is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xcope import files
from xcope.config import Config, ConfigError, build_task
from xcope.config.build import make_model_for
from xcope.training import checkpoint
from xcope.training.errors import RunError

FOLDED = re.compile(r"(?<=\blayers\.)\d+(?=\.)")
"""In the name of a weight, the number of its layer."""


@dataclass(frozen=True)
class WarmStart:
    """What was taken over from another run.

    Args:
        run: its folder.
        step: updates that its weights had.
        taken: names of the weights that were taken over.
        in_part: name → which entries of a table of another length were.
        new: name → shape of a weight that began afresh.
        dropped: name → shape of a weight of the run that has no place here.
        numbers: how many numbers were taken over, and how many the model has.
        notes: what else a reader should know.
    """

    run: str
    step: int
    taken: tuple[str, ...]
    in_part: Mapping[str, str]
    new: Mapping[str, tuple[int, ...]]
    dropped: Mapping[str, tuple[int, ...]]
    numbers: tuple[int, int]
    notes: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """For people; layers that differ only in their number share a line."""
        weights = len(self.taken) + len(self.in_part) + len(self.new)
        yield (
            f"train.init_from: {len(self.taken) + len(self.in_part)} of {weights} weights "
            f"({self.numbers[0]:,} of {self.numbers[1]:,} numbers) begin as in {self.run} after "
            f"step {self.step}"
        )
        for word, named in (
            ("in part", self.in_part),
            ("new", self.new),
            ("dropped", self.dropped),
        ):
            yield from (f"  {word}: {name} {what}" for name, what in _folded(named).items())
        yield from (f"  note: {note}" for note in self.notes)

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        files.write_json(path, asdict(self))


def warm_start(model: nn.Module, config: Config) -> WarmStart:
    """Take over what fits of the run ``train.init_from``.

    Raises:
        ConfigError: no such run, no checkpoint, a damaged one, or no weight that fits.
    """
    try:
        groups, state = checkpoint.load(_checkpoint(config), ["model"])
    except RunError as error:
        raise _refused(config, str(error)) from error
    return _take(model, groups["model"], config, state)


def check_start(config: Config, *cleared: Path) -> None:
    """Raise `ConfigError` if ``train.init_from`` names a run that nothing can be taken from.

    Args:
        cleared: folders that will not hold by then what they hold now.
    """
    if config.train.init_from is None:
        return
    source = Path(config.train.init_from).resolve()
    for folder in cleared:
        if source.is_relative_to(folder.resolve()):
            raise _refused(
                config, f"{folder} is cleared for the new run: train it in another folder"
            )
    try:
        shapes = checkpoint.shapes(_checkpoint(config), "model")
        state = checkpoint.load_state(_checkpoint(config))
    except RunError as error:
        raise _refused(config, str(error)) from error
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    model = make_model_for(config.model, build_task(config), device="meta")
    _take(model, weights, config, state)


def _checkpoint(config: Config) -> Path:
    """Where the weights of the other run lie."""
    run = Path(config.train.init_from or "")
    if not run.is_dir():
        raise _refused(config, f"there is no folder {run}")
    return run / "checkpoint"


def _take(
    model: nn.Module, weights: Mapping[str, Tensor], config: Config, state: Mapping[str, Any]
) -> WarmStart:
    parameters = dict(model.named_parameters())
    taken, in_part = list[str](), dict[str, str]()
    new = dict[str, tuple[int, ...]]()
    numbers = 0
    with torch.no_grad():
        for name, parameter in parameters.items():
            old = weights.get(name)
            begun = None if old is None else _begun(model, name, parameter, old)
            if begun is None or old is None:
                new[name] = tuple(parameter.shape)
                continue
            parameter.copy_(begun)
            numbers += parameter.numel()
            if begun is old:
                taken.append(name)
            else:
                in_part[name] = f"{_shape(old.shape)} → {_shape(parameter.shape)}"
    kept = {*taken, *in_part, *dict(model.named_buffers())}
    # a weight that two modules share has a second name
    shared = {name for name in model.state_dict() if name not in parameters}
    dropped = {
        name: tuple(weight.shape)
        for name, weight in weights.items()
        if name not in kept and name not in shared
    }
    if not taken and not in_part:
        raise _refused(
            config, f"no weight of {config.train.init_from} fits this model: {_why(new, dropped)}"
        )
    return WarmStart(
        str(config.train.init_from),
        int(state["step"]),
        tuple(taken),
        in_part,
        new,
        dropped,
        (numbers, sum(parameter.numel() for parameter in parameters.values())),
        tuple(_notes(config, state)),
    )


def _begun(model: nn.Module, name: str, parameter: nn.Parameter, old: Tensor) -> Tensor | None:
    """What a parameter begins with, ``old`` itself where it fits; None: as in a run of its own."""
    if old.shape == parameter.shape:
        return old
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        resized = getattr(model.get_submodule(".".join(parts[:end])), "resized", None)
        if resized is not None:
            begun: Tensor | None = resized(".".join(parts[end:]), old)
            return begun
    return None


def _why(new: Mapping[str, tuple[int, ...]], dropped: Mapping[str, tuple[int, ...]]) -> str:
    """The first weight that has another shape."""
    for name, shape in new.items():
        if name in dropped:
            return f"its {name} is {_shape(dropped[name])}, this model's {_shape(shape)}"
    return "none has the name of one of this model's"


def _notes(config: Config, state: Mapping[str, Any]) -> Iterator[str]:
    then = state.get("config", {})
    for key, now in (("name", config.task.name), ("tokenizer", config.task.rest.get("tokenizer"))):
        before = then.get(f"task.{key}")
        if before != now:
            yield (
                f"its tokens were those of task.{key}={before}, and these are of {now}: the same "
                "number may mean another token"
            )


def _folded(named: Mapping[str, Any]) -> dict[str, str]:
    """Names and what is said of them, with the numbers of layers in one name:
    ``layers.{0,2}.1.to_q.weight``."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, what in named.items():
        text = what if isinstance(what, str) else _shape(what)
        number = FOLDED.search(name)
        key = name if number is None else FOLDED.sub("{}", name, count=1)
        found.setdefault((key, text), []).append(number[0] if number else "")
    return {
        key.replace("{}", numbers[0] if len(numbers) == 1 else f"{{{','.join(numbers)}}}"): text
        for (key, text), numbers in found.items()
    }


def _shape(shape: Any) -> str:
    return f"({' '.join(map(str, shape))})"


def _refused(config: Config, message: str) -> ConfigError:
    mark = config.source.mark_of(("train", "init_from")) if config.source else None
    return ConfigError(message, "train.init_from", mark)
