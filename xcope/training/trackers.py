"""TensorBoard, Weights & Biases and trackio, as Accelerate speaks to them: where a run is watched.

What stands in ``metrics.jsonl`` and ``results.json`` does not depend on them. A tracker that fails
is told once and left alone from then on; the run goes on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from accelerate import tracking
from accelerate.tracking import GeneralTracker

from xcope import files
from xcope.config import Config, TrainConfig
from xcope.errors import words_of

EVENTS, IDENTITY = "tensorboard", "tracked.json"
"""Within the run folder: TensorBoard's events; by what name trackers know the run."""
FOLDERS = (EVENTS, "wandb")
"""What trackers write in a run folder; trackio writes to its own place."""


def wanted(train: TrainConfig) -> list[str]:
    """The trackers of ``train.track``; TensorBoard, where it is installed, if none is named."""
    if train.track is not None:
        return list(dict.fromkeys(train.track))
    return ["tensorboard"] if importlib.util.find_spec("tensorboard") else []


class Trackers:
    """Context in which what a run logs goes to its trackers, too.

    A run that goes on goes on in the same run of its trackers.

    Args:
        folder: the run folder, whose name the trackers show.
        step: the step from which the run goes on; 0 for a new one.
        group: under which they show runs together.
        warn: is given a line for each tracker that fails.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        step: int,
        *,
        group: str | None,
        warn: Callable[[str], None],
    ) -> None:
        self._config, self._folder, self._group = config, folder, group
        self._step, self._warn = step, warn
        self._running: dict[str, GeneralTracker] = {}
        self._known: tuple[str, bool] | None = None

    def __enter__(self) -> Self:
        for name in wanted(self._config.train):
            with self._watched(name):
                tracker = self._made(name)
                tracker.start()
                self._running[name] = tracker
                if name == "tensorboard" and not self._step:
                    tracker.log({"config": f"```yaml\n{self._config.to_yaml()}```"}, step=0)
        return self

    def _made(self, name: str) -> GeneralTracker:
        project, config = self._config.train.track_project, self._config
        if name == "tensorboard":
            # what an earlier process logged after this step is hidden
            return tracking.TensorBoardTracker(EVENTS, self._folder, purge_step=self._step + 1)
        facts = {"scheme": config.label(), **config.flat()}
        label, (known, goes_on) = self._folder.name, self._identity()
        shared: dict[str, Any] = {"group": self._group, "config": facts}
        if name == "wandb":
            return tracking.WandBTracker(
                project,
                name=label,
                id=known,
                resume="allow" if goes_on else None,
                dir=str(self._folder),
                settings={"console": "off"},
                **shared,
            )
        # it knows a run by its name alone
        return tracking.TrackioTracker(project, name=f"{label}-{known}", resume="allow", **shared)

    def _identity(self) -> tuple[str, bool]:
        """By what a tracker knows the run, and whether it was told of it before."""
        path = self._folder / IDENTITY
        if self._known is None:
            try:
                self._known = str(files.parse_json(files.read_text(path))["id"]), True
            except (FileNotFoundError, files.UnreadableError, KeyError, TypeError):
                self._known = secrets.token_hex(4), False
                files.write_json(path, {"id": self._known[0]})
        return self._known

    def log(self, metrics: Mapping[str, float], *, again: bool = False) -> None:
        """Tell what was logged.

        Args:
            metrics: has the key ``step``.
            again: the process that was stopped logged this step, too. TensorBoard has forgotten it
                by then; the others have not, and are not told twice.
        """
        step = int(metrics["step"])
        values = {f"train/{name}": value for name, value in metrics.items() if name != "step"}
        for name in list(self._running):
            if name == "tensorboard" or not again:
                with self._watched(name):
                    self._running[name].log(values, step=step)

    def results(self, splits: Mapping[str, Mapping[str, float]], step: int) -> None:
        """Tell what a finished run was measured at."""
        values = {
            f"test/{split}/{metric}": value
            for split, metrics in splits.items()
            for metric, value in metrics.items()
        }
        for name in list(self._running):
            with self._watched(name):
                if name == "tensorboard":
                    # the same numbers, and beside them what the run was made with
                    self._running[name].tracker.add_hparams(
                        _plain(self._config), values, run_name=".", global_step=step
                    )
                else:
                    self._running[name].log(values, step=step)

    @contextlib.contextmanager
    def _watched(self, name: str) -> Iterator[None]:
        """Let a tracker print to stderr, and fail without harm."""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        except Exception as error:  # whatever a library of another's raises
            self._running.pop(name, None)
            reason = " ".join(words_of(error).split())
            if name == "wandb":
                reason += " (WANDB_MODE=offline needs neither network nor login)"
            self._warn(f"{name} does not follow this run, which goes on without it: {reason}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for name in list(self._running):
            with self._watched(name):
                tracker = self._running.pop(name)
                tracker.finish()
                if name == "trackio" and name in sys.modules:
                    # else it finishes again, and says so, when Python ends
                    sys.modules[name].context_vars.current_run.set(None)


def _plain(config: Config) -> dict[str, Any]:
    """The config as TensorBoard takes it: numbers, truth values and texts."""
    flat = {"scheme": config.label(), **config.flat()}
    return {k: v if isinstance(v, int | float | str) else str(v) for k, v in flat.items()}
