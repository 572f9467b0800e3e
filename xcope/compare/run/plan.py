"""The runs of a sweep: what each is called, where it lives, and how far an earlier call got."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xcope import invocation
from xcope.config import Config, ConfigError, build_task, expand_sweep
from xcope.errors import did_you_mean, listing
from xcope.training import RunError, RunFolder, safe_name
from xcope.training.metrics import Metric, metric_called

NAME_LENGTH = 120
"""Longest name of a run's folder before a hash is added; file systems allow 255 bytes."""


class CompareError(RunError):
    """A comparison that cannot be made as asked; the message says what to change."""


class CompareInterruptedError(CompareError):
    """Ctrl-C or SIGTERM: the runs in hand saved a checkpoint, and the message says how to go on."""

    exit_code = 130


class CompareFailedError(CompareError):
    """Some runs failed; the report says which and why."""

    exit_code = 1


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Args:
        folder: the run folder; its name is the run's name.
        scheme: label of the positional scheme, with the options that are not the default.
        swept: the swept keys besides scheme and seed, each with this run's value as text; options
            of the scheme (``model.position.max_pos``) among them, although its label has them.
        splits: test splits that are measured, in the order of the task: in distribution first.
        metric: name of the task's headline metric.
        picked: what ``tune`` picked, key → value as text.
    """

    folder: Path
    config: Config
    scheme: str
    seed: int
    swept: Mapping[str, str]
    splits: tuple[str, ...]
    metric: str
    picked: Mapping[str, str] = field(default_factory=dict)

    @property
    def headline(self) -> Metric:
        """The task's headline metric."""
        return metric_called(self.metric)

    @property
    def name(self) -> str:
        """Unique within the comparison."""
        return self.folder.name

    @property
    def task(self) -> str:
        """The task with what is swept of it: ``counting``, ``counting(variables=3)``."""
        swept = {k: v for k, v in self.swept.items() if k.startswith("task.") and k != "task.name"}
        options = [_short(key, value) for key, value in swept.items()]
        whole = self.swept.get("task", self.config.task.name)
        return whole + (f"({', '.join(options)})" if options else "")

    @property
    def others(self) -> dict[str, str]:
        """What else is swept within a task: ``{"train.lr": "0.001"}``."""
        return {
            key: value
            for key, value in self.swept.items()
            if key.split(".")[0] != "task" and not _of_position(key)
        }

    @property
    def variant(self) -> str:
        """The scheme with what else is swept within a task: ``rotary``, ``rotary, lr=0.001``."""
        return ", ".join([self.scheme, *map(_short, self.others, self.others.values())])

    @property
    def same_config(self) -> bool:
        """Whether the folder holds a run of this very config, complete or not."""
        return RunFolder(self.folder).holds(self.config)

    @property
    def complete(self) -> bool:
        """Whether the folder holds the results of this very config."""
        return RunFolder(self.folder).results.is_file() and self.same_config


def plan(config: Config, out: Path) -> list[Run]:
    """The runs of a config's sweep in order, first key slowest, in folders under ``out/runs``.

    What ``tune`` picks is not known yet, and not in their configs.

    Raises:
        CompareError: the config has no sweep, or two of its runs would be the same.
        ConfigError: a baseline that is not in the sweep.
    """
    if not config.sweep:
        raise CompareError(
            "the config has no sweep: add for instance sweep: {model.position: [none, rotary, "
            f"cope], train.seed: [0, 1, 2]}}, or train it alone with {invocation.command('train')}"
        )
    swept = combinations(config.sweep)
    configs = [one.model_copy(update={"out": None}) for one in expand_sweep(config, data=False)]
    runs = make_runs(configs, swept, out / "runs")
    _check_baseline(config, runs)
    return runs


def combinations(axes: Mapping[str, Sequence[object]]) -> list[dict[str, str]]:
    """Each combination of values as text, first key slowest, without the scheme and the seed."""
    shown = [key for key in axes if key not in ("train.seed", "model.position")]
    return [
        {key: as_text(value) for key, value in zip(axes, row, strict=True) if key in shown}
        for row in itertools.product(*axes.values())
    ]


def _of_position(key: str) -> bool:
    """Whether a swept key is part of the scheme's label."""
    return f"{key}.".startswith("model.position.")


def make_runs(
    configs: Sequence[Config], swept: Sequence[Mapping[str, str]], folder: Path
) -> list[Run]:
    """A run for each config, in a folder of its own.

    Args:
        swept: for each config, what differs between runs besides scheme and seed.

    Raises:
        CompareError: two of them are the same.
    """
    schemes = [config.label() for config in configs]
    labels = []
    for config, scheme, values in zip(configs, schemes, swept, strict=True):
        beside = [_short(key, value) for key, value in values.items() if not _of_position(key)]
        labels.append("-".join([f"{scheme}-seed{config.train.seed}", *beside]))
    return [
        _run(config, scheme, keys, folder / name)
        for config, scheme, keys, name in zip(
            configs, schemes, swept, folder_names(labels), strict=True
        )
    ]


def _run(config: Config, scheme: str, swept: Mapping[str, str], folder: Path) -> Run:
    task, chosen = build_task(config), config.evaluate.splits
    splits = tuple(s for s in task.measurable if s in (chosen or task.splits))
    return Run(folder, config, scheme, config.train.seed, swept, splits, task.metric)


def _check_baseline(config: Config, runs: Sequence[Run]) -> None:
    names = dict.fromkeys([*(run.scheme for run in runs), *(run.variant for run in runs)])
    if config.baseline is not None and config.baseline not in names:
        raise ConfigError(
            f"{config.baseline!r} is not in the sweep: choose among {listing(names)}"
            f"{did_you_mean(config.baseline, names)}",
            "baseline",
            config.source.mark_of(("baseline",)) if config.source else None,
        )


def _short(key: str, value: str) -> str:
    return f"{last_word(key)}={value}"


def last_word(key: str) -> str:
    """``lr`` of ``train.lr``."""
    return key.rpartition(".")[2]


def as_text(value: object) -> str:
    """A swept value as it stands in names and tables: ``cope(max_pos=32)``, ``a+b``, ``true``."""
    if isinstance(value, Mapping):
        key = "preset" if "preset" in value else "name"
        options = ", ".join(f"{k}={as_text(v)}" for k, v in value.items() if k != key)
        name = str(value.get(key, ""))
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
