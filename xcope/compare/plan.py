"""The runs of a sweep: what each is called, where it lives, and how far an earlier call got."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xcope.compare.errors import CompareError
from xcope.config import Config, build_task, expand_sweep
from xcope.training import RunFolder, safe_name

NAME_LENGTH = 120
"""Longest name of a run's folder before a hash is added; file systems allow 255 bytes."""


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Args:
        folder: the run folder; its name is the run's name.
        scheme: label of the positional scheme, with the options that are not the default.
        swept: the swept keys besides scheme and seed, each with this run's value as text.
        splits: test splits of the task, in distribution first.
        metric: the task's headline metric.
    """

    folder: Path
    config: Config
    scheme: str
    seed: int
    swept: Mapping[str, str]
    splits: tuple[str, ...]
    metric: str

    @property
    def name(self) -> str:
        """Unique within the comparison."""
        return self.folder.name

    @property
    def task(self) -> str:
        """The task with what is swept of it: ``counting``, ``counting(variables=3)``."""
        swept = {k: v for k, v in self.swept.items() if k.startswith("task.") and k != "task.name"}
        options = [_short(key, value) for key, value in swept.items()]
        return self.config.task.name + (f"({', '.join(options)})" if options else "")

    @property
    def variant(self) -> str:
        """The scheme with what else is swept within a task: ``rotary``, ``rotary, lr=0.001``."""
        others = [_short(k, v) for k, v in self.swept.items() if k.split(".")[0] != "task"]
        return ", ".join([self.scheme, *others])

    @property
    def same_config(self) -> bool:
        """Whether the folder holds a run of this very config, complete or not."""
        file = RunFolder(self.folder).config
        return file.is_file() and file.read_text(encoding="utf-8") == self.config.to_yaml()

    @property
    def complete(self) -> bool:
        """Whether the folder holds the results of this very config."""
        return RunFolder(self.folder).results.is_file() and self.same_config


def plan(config: Config, out: Path) -> list[Run]:
    """The runs of a config's sweep in order, first key slowest, in folders under ``out/runs``.

    Raises:
        CompareError: the config has no sweep, or two of its runs would be the same.
    """
    if not config.sweep:
        raise CompareError(
            "the config has no sweep: add for instance sweep: {model.position: [none, rotary, "
            "cope], train.seed: [0, 1, 2]}, or train it alone with scripts/train.py"
        )
    rows = itertools.product(*config.sweep.values())
    swept = [
        {key: as_text(value) for key, value in zip(config.sweep, row, strict=True) if _shown(key)}
        for row in rows
    ]
    configs = [one.model_copy(update={"out": None}) for one in expand_sweep(config)]
    names = folder_names([_label(*pair) for pair in zip(configs, swept, strict=True)])
    return [
        _run(one, keys, out / "runs" / name)
        for one, keys, name in zip(configs, swept, names, strict=True)
    ]


def _shown(key: str) -> bool:
    """Whether a swept key is told neither by the scheme's label nor by the seed."""
    return key != "train.seed" and not f"{key}.".startswith("model.position.")


def _label(config: Config, swept: Mapping[str, str]) -> str:
    others = [_short(key, value) for key, value in swept.items()]
    return "-".join([f"{config.label()}-seed{config.train.seed}", *others])


def _run(config: Config, swept: Mapping[str, str], folder: Path) -> Run:
    task = build_task(config)
    seed = config.train.seed
    return Run(folder, config, config.label(), seed, swept, task.splits, task.metric)


def _short(key: str, value: str) -> str:
    return f"{key.rpartition('.')[2]}={value}"


def as_text(value: object) -> str:
    """A swept value as it stands in names and tables: ``cope(max_pos=32)``, ``a+b``, ``true``."""
    if isinstance(value, Mapping):
        options = ", ".join(f"{key}={as_text(v)}" for key, v in value.items() if key != "name")
        name = str(value.get("name", ""))
        return f"{name}({options})" if options else name
    if isinstance(value, list | tuple):
        return "+".join(map(as_text, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def folder_names(labels: Sequence[str]) -> list[str]:
    """A file name for each label; a short hash is added where it is long or not unique.

    Raises:
        CompareError: two labels are equal.
    """
    again = next((label for label, count in Counter(labels).items() if count > 1), None)
    if again:
        raise CompareError(f"the sweep has the same run twice: {again}")
    plain = [safe_name(label).replace("--", "-") for label in labels]
    count = Counter(name.lower() for name in plain)
    return [
        name
        if len(name) <= NAME_LENGTH and count[name.lower()] == 1
        else f"{name[:NAME_LENGTH]}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
        for name, label in zip(plain, labels, strict=True)
    ]
