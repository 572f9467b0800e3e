"""Worker processes: one that dies fails its run only; bars on a terminal."""

import multiprocessing
import os
import signal
from io import StringIO
from multiprocessing.context import ForkServerProcess

import torch
from rich.console import Console

from xcope.compare import plan
from xcope.compare.run import worker
from xcope.compare.run.display import Bars, Lines
from xcope.compare.run.pool import run_all
from xcope.compare.run.worker import Moved


class Killing(Lines):
    """Kills the worker of the first run as soon as it trains."""

    killed = False

    def moved(self, run, progress: Moved) -> None:
        super().moved(run, progress)
        if not self.killed:
            self.killed = True
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


def test_a_worker_that_dies_fails_its_run_alone(config, tmp_path):
    runs = plan(config, tmp_path)[:2]
    text = StringIO()
    shown = Killing(Console(file=text), runs)
    failed = run_all(runs, jobs=1, threads=1, logs=tmp_path / "logs", display=shown)
    assert list(failed) == [runs[0].name]
    assert "SIGKILL" in failed[runs[0].name]
    assert "FAILED" in text.getvalue()
    assert not runs[0].complete
    assert runs[1].complete
    assert not multiprocessing.active_children()


def test_a_terminal_shows_a_bar_for_each_run_in_hand_and_one_for_all(config, tmp_path):
    runs = plan(config, tmp_path)
    text = StringIO()
    with Bars(Console(file=text, force_terminal=True, width=100), runs) as bars:
        bars.moved(runs[0], Moved(0, 6))
        bars.moved(runs[1], Moved(2, 6, 1.25))
        bars.ended(runs[0], "")
        bars.ended(runs[2], "it broke")
    shown = text.getvalue()
    for part in ("all steps", "2/24", runs[1].name, "loss 1.2500", "done in", "FAILED: it broke"):
        assert part in shown


def test_a_process_that_cannot_start_fails_its_run_alone(config, tmp_path, monkeypatch):
    def no_room(self):
        raise EOFError

    monkeypatch.setattr(ForkServerProcess, "start", no_room)
    runs, text = plan(config, tmp_path)[:2], StringIO()
    shown = Lines(Console(file=text), runs)
    failed = run_all(runs, jobs=1, threads=1, logs=tmp_path / "logs", display=shown)
    reason = "its process cannot start (EOFError), perhaps out of memory"
    assert failed == {run.name: reason for run in runs}
    assert reason in text.getvalue()


def test_kernels_are_compiled_before_a_runs_seconds_count(config, monkeypatch, tmp_path):
    done = []
    monkeypatch.setattr(worker, "call_for", lambda q: done.append(f"{q.dtype}"))
    monkeypatch.setattr(worker, "_run", lambda job, connection: done.append("run"))
    monkeypatch.setattr(worker.signal, "signal", lambda *_: None)
    ours, theirs = multiprocessing.Pipe()
    threads = torch.get_num_threads()
    worker.serve(theirs, worker.Job(config, tmp_path, tmp_path / "log", ""), threads)
    assert done == ["torch.float32", "run"]
    assert ours.recv() is None
