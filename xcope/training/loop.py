"""The training loop: update, log, save; stop politely when asked to, then measure."""

from __future__ import annotations

import math
import shlex
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor

from xcope import invocation, plugins
from xcope.config import Config, build_task, check_data, check_trackers, copies_for
from xcope.environment import noted
from xcope.tasks import IGNORE, Task
from xcope.training import checkpoint
from xcope.training.device import PeakMemory, accelerated, deterministic, seed_everything
from xcope.training.errors import RunDivergedError, RunError, RunInterruptedError
from xcope.training.evaluation import broken_weights, tally
from xcope.training.lock import Writer
from xcope.training.log import MetricsLog
from xcope.training.metrics import BITS_PER_BYTE
from xcope.training.progress import Reporter, Silent
from xcope.training.run import Result, RunFolder
from xcope.training.schedule import learning_rate
from xcope.training.state import TrainingState
from xcope.training.trackers import Trackers
from xcope.training.warm import check_start

WHAT_HELPS = (
    "The last checkpoint is kept. A smaller train.lr, a longer train.warmup or a smaller "
    "train.clip may help"
)
STOPS = (signal.SIGINT, signal.SIGTERM)

BITS_OF_NOTHING = 8
"""Per byte, where every byte is as likely as any other."""
PATIENCE = 1.0
"""Seconds in which further signals count as the first: a terminal and a launcher may both send."""


def train(
    config: Config,
    run_dir: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    group: str | None = None,
) -> Result:
    """Train the model of ``config`` on its task, measure it, and leave all of it in ``run_dir``.

    Args:
        config: a run, not a sweep.
        run_dir: the run folder; see `RunFolder` for what is in it.
        resume: go on from the checkpoint in ``run_dir``, or begin where there is none. Ends at the
            same numbers as a run that was never interrupted.
        overwrite: replace the run in ``run_dir``.
        reporter: is told of the progress; None for silence.
        group: under which trackers (``train.track``) show this run and others together.

    Raises:
        RunError: ``run_dir`` is taken, another process writes to it, or its checkpoint is damaged
            or of another config.
        RunInterruptedError: Ctrl-C or SIGTERM; a checkpoint was saved.
        RunDivergedError: the loss, a gradient or a weight became infinite or NaN.
        BrokenModelError: the loss on a test split is infinite or NaN.
        ConfigError: the data of the task cannot be read, or the run that this one is to begin
            with (``train.init_from``); a tracker that is not installed.
        FlagError: a device, precision or batch size that this machine cannot serve; a plugin that
            is missing.
    """
    run = RunFolder(Path(run_dir))
    plugins.load(config.plugins, copies_for(run.path))
    begun = resume and checkpoint.exists(run.checkpoint)
    if not begun:
        check_start(config, run.path)
    if not (resume and run.results.exists()):
        check_trackers(config)
    reporter = reporter or Silent()
    with accelerated(config.train) as accelerator, ExitStack() as stack:
        writer = None
        if accelerator.is_main_process:
            opened = run.opened(config, resume=resume, overwrite=overwrite)
            writer = stack.enter_context(opened)
            plugins.keep(config.plugins, run.plugins)
        accelerator.wait_for_everyone()
        step = checkpoint.load_state(run.checkpoint)["step"] if begun else 0
        trackers = Trackers(config, run.path, step, group=group, warn=reporter.warn)
        if step < config.train.steps or not run.results.exists():
            check_data(config)
            # before memory is measured: what a tracker takes is no scheme's
            trackers = stack.enter_context(trackers) if accelerator.is_main_process else trackers
        memory = PeakMemory(accelerator.device)
        state = TrainingState.fresh(config, accelerator)
        if begun:
            state.load(run.checkpoint)
        elif config.train.init_from is not None:
            taken = state.warm_start()
            if accelerator.is_main_process:
                taken.write(run.init_from)
                for line in taken.lines():
                    reporter.note(line)
        task = build_task(config)
        try:
            if state.step < config.train.steps:
                if writer is not None:
                    describe(task, reporter)
                run_steps(state, task, run, reporter, writer, trackers)
                state.peak_bytes = memory.bytes()
            return finished(state, task, run, reporter, trackers)
        except KeyboardInterrupt:
            raise RunInterruptedError(how_to_go_on(run)) from None


def describe(task: Task, reporter: Reporter) -> None:
    """Tell how much data each side has, and what is odd about them."""
    sizes = task.sizes()
    for side, one in sizes.items():
        reporter.note(f"{side}: " + ", ".join(f"{n:,} {what}" for what, n in one.items()))
    for note in task.notes():
        reporter.note(f"note: {note}")


def run_steps(
    state: TrainingState,
    task: Task,
    run: RunFolder,
    reporter: Reporter,
    writer: Writer | None,
    trackers: Trackers,
) -> None:
    """Update the weights until ``train.steps``; log, save, and stop politely when asked to.

    Args:
        writer: this process's right to write to the folder; None where another one writes.
    """
    train = state.config.train
    main = state.accelerator.is_main_process
    began = time.perf_counter() - state.seconds
    with ExitStack() as stack:
        stack.enter_context(deterministic(state.accelerator.device))
        interruption = stack.enter_context(Interruption())
        if main:
            log = stack.enter_context(MetricsLog(run.metrics, state.step, trackers))
            stack.callback(reporter.end)
            reporter.start(state.config.label(), state.step, train.steps)
        while state.step < train.steps:
            metrics = update(state, task)
            if writer is not None:
                writer.check()
            state.seconds = time.perf_counter() - began
            if main:
                reporter.step(state.step, metrics["loss"])
                # what it takes, and how long it holds the run up, is no training
                began = time.perf_counter() - state.seconds
                if is_due(state.step, train.log_every) or state.step in (1, train.steps):
                    log.write({"step": state.step, **metrics, "seconds": state.seconds})
            stop = asked_to_stop(state, interruption)
            if is_due(state.step, train.checkpoint_every) or stop or state.step == train.steps:
                check_weights(state)
                state.save(run.checkpoint)
            if stop:
                raise RunInterruptedError(how_to_go_on(run))


def update(state: TrainingState, task: Task) -> dict[str, float]:
    """One update of the weights; returns ``loss``, ``lr`` and ``grad_norm`` (before clipping).

    Raises:
        RunDivergedError: loss or gradients are not finite; the weights are as before.
    """
    train, accelerator = state.config.train, state.accelerator
    seed_everything("dropout", train.seed, state.step, accelerator.process_index)
    lr = learning_rate(state.step, train)
    for group in state.optimizer.param_groups:
        group["lr"] = lr * group["scale"]
    loss = mean_loss(state, task)
    accelerator.backward(loss)
    grad_norm = accelerator.clip_grad_norm_(state.model.parameters(), train.clip or math.inf)
    metrics = {
        "loss": float(accelerator.reduce(loss.detach(), "mean")),
        "lr": lr,
        "grad_norm": float(grad_norm),
    }
    check_finite(metrics, state)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step += 1
    return metrics


def mean_loss(state: TrainingState, task: Task) -> Tensor:
    """Cross entropy of this process's share of the batch.

    It is scaled so that its mean over processes is the mean over all scored tokens of the batch,
    however many processes there are.
    """
    train, accelerator = state.config.train, state.accelerator
    batch = task.batch("train", train.batch_size, train.seed, state.step)
    scored = int((batch.targets != IGNORE).sum())
    share = slice(accelerator.process_index, None, accelerator.num_processes)
    own = batch.rows(share).to(accelerator.device)
    logits = own.logits(state.model)
    total: Tensor = F.cross_entropy(
        logits.float().transpose(1, 2), own.targets, ignore_index=IGNORE, reduction="sum"
    )
    return total * (int(accelerator.num_processes) / scored)


def check_finite(metrics: dict[str, float], state: TrainingState) -> None:
    """Stop before a bad update; under fp16 the loss scaler skips steps with bad gradients."""
    watched = ("loss",) if state.accelerator.scaler is not None else ("loss", "grad_norm")
    bad = [f"{name} is {metrics[name]}" for name in watched if not math.isfinite(metrics[name])]
    if bad:
        raise RunDivergedError(
            f"training stopped at step {state.step + 1}: {' and '.join(bad)}. {WHAT_HELPS}"
        )


def check_weights(state: TrainingState) -> None:
    """Stop before a broken model replaces the last good checkpoint."""
    broken = broken_weights(state.accelerator.unwrap_model(state.model))
    if broken:
        raise RunDivergedError(f"training stopped after step {state.step}: {broken}. {WHAT_HELPS}")


def is_due(step: int, every: int) -> bool:
    """Whether something that happens ``every`` so many steps (0: never) happens at ``step``."""
    return every > 0 and step % every == 0


def asked_to_stop(state: TrainingState, interruption: Interruption) -> bool:
    """Whether any process got a signal, so that all stop after the same step."""
    if state.accelerator.num_processes == 1:
        return interruption.requested
    if interruption.requested:
        state.accelerator.set_trigger()
    return bool(state.accelerator.check_trigger())


def how_to_go_on(run: RunFolder) -> str:
    """What a person reads after an interruption, wherever it happened."""
    if not checkpoint.exists(run.checkpoint):
        return f"stopped before the first checkpoint; {run.path} has no weights yet"
    step = checkpoint.load_state(run.checkpoint)["step"]
    return (
        f"stopped; the checkpoint after step {step} is in {run.path}. To go on:\n"
        f"  {invocation.command('train')} --resume {shlex.quote(str(run.path))}"
    )


def finished(
    state: TrainingState, task: Task, run: RunFolder, reporter: Reporter, trackers: Trackers
) -> Result:
    """Measure the trained model, or take the result that an earlier process wrote."""
    if state.accelerator.is_main_process and run.read_result() is None:
        measure(state, task, run, reporter, trackers)
    state.accelerator.wait_for_everyone()
    result = run.read_result()
    if result is None:
        raise RunError(f"{run.results} is missing")
    return result


def measure(
    state: TrainingState, task: Task, run: RunFolder, reporter: Reporter, trackers: Trackers
) -> None:
    """Evaluate the trained model in float32 and write the result."""
    model, how, began = state.bare, state.config.evaluate, time.perf_counter()
    tallies = tally(
        model, task, batches=how.batches, batch_size=how.batch_size, seed=how.seed,
        splits=how.splits, measured=reporter.measured,
    )  # fmt: skip
    splits = {split: one.metrics(task) for split, one in tallies.items()}
    by_position = {split: one.by_position(task) for split, one in tallies.items()}
    for split, metrics in splits.items():
        if metrics.get(BITS_PER_BYTE.name, 0.0) > BITS_OF_NOTHING:
            reporter.note(
                f"warning: {metrics[BITS_PER_BYTE.name]:.2f} bits per byte on split {split!r} are "
                f"more than the {BITS_OF_NOTHING} of a guess: its text is unlike training's, or "
                "there is too little of it"
            )
    params = sum(p.numel() for p in model.parameters() if p.requires_grad)
    run.write_result(
        Result(splits, params, state.step, state.seconds, by_position, task.sizes()),
        steps_per_second=state.step / state.seconds,
        evaluate_seconds=time.perf_counter() - began,
        peak_bytes=state.peak_bytes,
        **noted(state.accelerator.device),
    )
    trackers.results(splits, state.step)


class Interruption:
    """Context in which SIGINT or SIGTERM sets `requested`; one more, later, acts as usual.

    Outside the main thread, where Python delivers no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._usual: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._usual = {s: signal.signal(s, self._request) for s in STOPS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def _request(self, signum: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested, self._since = True, time.monotonic()
        elif time.monotonic() - self._since > PATIENCE:
            self._restore()
            signal.raise_signal(signum)

    def _restore(self) -> None:
        for number, usual in self._usual.items():
            signal.signal(number, usual)
        self._usual = {}
