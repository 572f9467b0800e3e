"""The run folder: which file is where, and what may be replaced."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from xcope import files
from xcope.config import Config, TaskConfig, TrainConfig, build_task, load_config, read_config
from xcope.config.compose import parse_override
from xcope.config.schema import Longer
from xcope.errors import did_you_mean, listing
from xcope.training import checkpoint, lock, trackers
from xcope.training.errors import NoRunError, RunError
from xcope.training.lock import Writer

FREE = frozenset(
    {
        "train.device",
        "train.log_every",
        "train.checkpoint_every",
        "train.track",
        "train.track_project",
    }
)
"""Keys that do not touch the weights: a run may go on with others."""
MAY_CHANGE = FREE | {"train.steps", "train.longer", "import"}
"""Keys that may be given when a run goes on, besides those of ``evaluate``."""


@dataclass(frozen=True)
class Result:
    """What a finished run gives.

    Args:
        splits: test split → metric → value, as `xcope.training.evaluate` returns it.
        params: number of trained parameters.
        steps: number of updates.
        seconds: training time, evaluation not included.
        by_position: test split → ``edges`` and ``values``, as far as it was measured.
        data: side of the corpus → its documents, bytes and tokens; nothing for other tasks.
    """

    splits: Mapping[str, Mapping[str, float]]
    params: int
    steps: int
    seconds: float
    by_position: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


RESULT = TypeAdapter(Result)


class RunFolder:
    """The folder of one run.

    ``config.yaml`` (resolved), ``metrics.jsonl``, ``checkpoint/``, ``results.json`` (the same for
    identical runs), ``timing.json`` (never the same), ``tensorboard/``, ``wandb/`` and
    ``tracked.json`` (`xcope.training.trackers`), ``plugins/`` (copies of
    those that the config names), ``init_from.json`` (what a warm start took over),
    ``results-<steps>.json`` and ``timing-<steps>.json`` (of a run that was made longer: what it had
    before), ``tokenizer.json`` where tokens are not bytes; ``.lock`` and, while it is written to,
    ``.writer.json`` (`xcope.training.lock`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.checkpoint = path / "checkpoint"
        self.results = path / "results.json"
        self.timing = path / "timing.json"
        self.plugins = path / "plugins"
        self.init_from = path / "init_from.json"

    def exists(self) -> bool:
        """Whether a run has begun here."""
        return self.config.is_file()

    def holds(self, config: Config) -> bool:
        """Whether a run of this very config has begun here."""
        content = contents(config)
        try:
            return all(files.read_text(self.path / name) == content[name] for name in content)
        except (FileNotFoundError, files.UnreadableError):
            return False

    def require(self) -> None:
        """Raise `RunError` unless a run has begun here."""
        if not self.exists():
            raise NoRunError(self.path)

    @contextmanager
    def opened(self, config: Config, *, resume: bool, overwrite: bool) -> Iterator[Writer]:
        """Context in which the folder is ready for a run of ``config`` and only we write to it.

        Raises:
            RunError: the folder is taken, another process writes to it, or its checkpoint was made
                with another config.
        """
        if resume and overwrite:
            raise RunError("resume and overwrite exclude each other: choose one")
        if not self.exists() and self.path.is_dir():
            names = {file.name for file in self.path.iterdir()}
            if names - lock.NAMES:
                raise RunError(f"{self.path} is not empty and is no run folder: choose another")
        self.path.mkdir(parents=True, exist_ok=True)
        with lock.only_writer(self.path) as writer:
            if self.exists() and resume:
                self._go_on(config)
            elif self.exists() and overwrite:
                self._clear()
            elif self.exists():
                raise RunError(
                    f"{self.path} holds a run already: --resume {self.path} goes on with it, "
                    "--overwrite starts again, --out chooses another folder"
                )
            for name, content in contents(config).items():
                files.write_text(self.path / name, content)
            yield writer

    def write_result(self, result: Result, **timing: Any) -> None:
        """Write ``results.json``, and what varies between identical runs to ``timing.json``."""
        values = asdict(result)
        for name in ("by_position", "data"):
            if not values[name]:
                del values[name]
        files.write_json(self.timing, {"seconds": values.pop("seconds"), **timing})
        files.write_json(self.results, values)

    def read_result(self) -> Result | None:
        """The result of a finished run, None before."""
        if not self.results.exists():
            return None
        values = checkpoint.read_json(self.results)
        try:
            return RESULT.validate_python({**values, "seconds": self.read_timing()["seconds"]})
        except (TypeError, KeyError, ValidationError) as error:
            reason = " ".join(str(error).split())
            message = f"{self.results} or {self.timing} is damaged: {reason:.200}"
            raise RunError(message) from None

    def read_timing(self) -> dict[str, Any]:
        """What varies between identical runs: ``seconds``, ``peak_bytes``, ``device``, …"""
        timing: dict[str, Any] = checkpoint.read_json(self.timing)
        return timing

    def _go_on(self, config: Config) -> None:
        if checkpoint.exists(self.checkpoint):
            check_unchanged(checkpoint.load_state(self.checkpoint)["config"], config, self.path)
        result = self.read_result()
        if result is not None and result.steps < config.train.steps:
            for file in (self.results, self.timing):
                file.rename(file.with_stem(f"{file.stem}-{result.steps}"))
        elif not self.holds(config):
            self.results.unlink(missing_ok=True)

    def _clear(self) -> None:
        """Remove what a run wrote, and nothing else that a person may have put there."""
        checkpoint.remove(self.checkpoint)
        for name in (*trackers.FOLDERS, self.plugins.name):
            shutil.rmtree(self.path / name, ignore_errors=True)
        earlier = [*self.path.glob("results-*.json"), *self.path.glob("timing-*.json")]
        named = (self.results, self.timing, self.metrics, self.config, self.init_from)
        for file in (*named, *earlier, self.path / trackers.IDENTITY):
            file.unlink(missing_ok=True)


def default_run_dir(config: Config, config_path: Path) -> Path:
    """``out`` of the config, else ``runs/<config's file name>-<label>-seed<k>``."""
    if config.out is not None:
        return Path(config.out)
    return Path("runs") / safe_name(f"{config_path.stem}-{config.label()}-seed{config.train.seed}")


def safe_name(label: str) -> str:
    """A label as part of a file name: ``cope(max_pos=32)`` → ``cope-max_pos=32``."""
    return re.sub(r"[^A-Za-z0-9_.+=]+", "-", label).strip("-.") or "run"


def contents(config: Config) -> dict[str, str]:
    """File → content of what a run of ``config`` begins with: its config, and what its task keeps
    to be made again, named in the config as a file beside it."""
    options, kept = build_task(config).kept()
    task = TaskConfig(name=config.task.name, **{**config.task.options, **options})
    return {"config.yaml": config.model_copy(update={"task": task}).to_yaml(), **kept}


def settings(config: Config) -> dict[str, Any]:
    """What decides the weights of a run: dotted key → value, as JSON holds it.

    Of what the task keeps it is the content, wherever it was read from.
    """
    sections = ("model.", "task.", "train.")
    options, kept = build_task(config).kept()
    digest = hashlib.sha256("\0".join(kept.values()).encode()).hexdigest()
    return {
        key: value
        for key, value in {**config.flat(), **{f"task.{one}": digest for one in options}}.items()
        if key.startswith(sections) and key not in FREE
    }


def to_go_on(run_dir: Path | str, changes: Sequence[str] = ()) -> Config:
    """The config with which a run goes on.

    Args:
        changes: ``key=value`` of what may be another than before: what the weights do not depend
            on, and more steps (``train.steps=N train.longer=rewarm`` or ``stretch``, see
            `xcope.training.schedule`).

    Raises:
        RunError: another key, fewer steps, or more of them without saying how the rate goes on.
        ConfigError: see `load_config`.
    """
    run = RunFolder(Path(run_dir))
    run.require()
    values = {".".join(path): node.plain() for path, node in map(parse_override, changes)}
    for key in values:
        if key not in MAY_CHANGE and not key.startswith("evaluate."):
            raise RunError(
                f"{key} decides what the run is, and cannot change while it goes on: train another "
                f"run. What may be given with --resume: {listing(sorted(MAY_CHANGE))} and the keys "
                f"of 'evaluate'{did_you_mean(key, MAY_CHANGE)}"
            )
    others = [text for text in changes if parse_override(text)[0] != ("train", "longer")]
    code = [text for text in others if parse_override(text)[0] == ("import",)]
    before = read_config(run.config, code)  # first: it asks before a stranger's code is run
    config = load_config(run.config, others, data=False)
    longer = _longer(run, before.train, config.train.steps, values.get("train.longer"))
    train = config.train.model_copy(update={"longer": longer})
    return config.model_copy(update={"train": train})


def _longer(run: RunFolder, train: TrainConfig, steps: int, how: Any) -> list[Longer]:
    """How a run was made longer, with what is asked for now."""
    done = 0
    if checkpoint.exists(run.checkpoint):
        done = checkpoint.load_state(run.checkpoint)["step"]
    ways = (
        "train.longer=rewarm (the planned steps first, then a second warm-up to train.lr and a "
        "cosine over the added ones) or train.longer=stretch (from now on the rate of a run that "
        f"was planned for {steps} from the beginning)"
    )
    if how not in (None, "rewarm", "stretch"):
        raise RunError(f"train.longer={how} is not a way to go on: choose {ways}")
    if steps < train.steps:
        raise RunError(
            f"train.steps={steps}: a run can become longer, not shorter; this one is planned for "
            f"{train.steps}, and {done} are done"
        )
    if steps == train.steps:
        if how is not None:
            raise RunError(f"train.longer={how} needs train.steps=N, more than {train.steps}")
        return train.longer
    if not done:  # nothing has been trained by the shorter plan
        return train.longer
    if how is None:
        raise RunError(
            f"train.steps={steps}: this run was planned for {train.steps}, {done} of them are "
            f"done, and its learning rate falls to 0 by then. Say how it goes on: {ways}"
        )
    return [*train.longer, Longer(how=how, after=done, steps=train.steps)]


def check_unchanged(then: Mapping[str, Any], config: Config, path: Path) -> None:
    """Raise `RunError` if a checkpoint with settings ``then`` belongs to another config.

    One that was made before the run became longer belongs to it.
    """
    train = config.train
    for i, one in enumerate(train.longer):
        shorter = train.model_copy(update={"longer": train.longer[:i], "steps": one.steps})
        if settings(config.model_copy(update={"train": shorter})) == then:
            return
    now = settings(config)
    changed = [
        f"{key} was {then.get(key)!r} and is {now.get(key)!r}"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key)
    ]
    if changed:
        raise RunError(
            f"the checkpoint in {path} was made with another config: {'; '.join(changed)}. "
            "Undo the change, or train in another folder"
        )
