"""What a person sees: a bar on a terminal, plain lines elsewhere."""

import importlib
import io
import logging
import sys
import time

import pytest
from rich.console import Console

from xcope.training.progress import Bar, Lines, Reporter, reporter


def show(reporter: Reporter) -> None:
    reporter.start("cope(max_pos=32)", 0, 2)
    reporter.step(1, 0.75)
    reporter.step(2, 0.25)
    reporter.end()


def slow_first_step(reporter: Reporter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of 100 steps whose first takes a minute, all others half a second."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    reporter.start("cope", 0, 100)
    logging.getLogger("xcope.ops.compiled.runtime").info("compiling kernels, once")
    for step in range(1, 11):
        now += 60.0 if step == 1 else 0.5
        reporter.step(step, 0.5)
    reporter.end()


def test_a_terminal_gets_a_bar_with_loss_speed_and_count():
    screen = io.StringIO()
    show(Bar(Console(file=screen, force_terminal=True, width=120)))
    for part in ("cope(max_pos=32)", "2/2", "loss 0.2500", "steps/s"):
        assert part in screen.getvalue()


def test_a_log_gets_plain_lines():
    log = io.StringIO()
    show(Lines(Console(file=log), every=0))
    begin, first, last = log.getvalue().splitlines()
    assert begin == "cope(max_pos=32): step 0 of 2"
    assert first == "step 1/2  loss 0.7500"
    assert last.endswith("  0 s left")


def test_a_log_gets_few_lines():
    log = io.StringIO()
    show(Lines(Console(file=log), every=3600))
    assert len(log.getvalue().splitlines()) == 2


def test_the_first_step_which_compiles_kernels_is_no_measure_of_the_time_left(monkeypatch):
    log = io.StringIO()
    slow_first_step(Lines(Console(file=log), every=0), monkeypatch)
    _, compiling, first, second, *_, last = log.getvalue().splitlines()
    assert compiling == "compiling kernels, once"
    assert first == "step 1/100  loss 0.5000"
    assert second == "step 2/100  loss 0.5000  2.0 steps/s  49 s left"
    assert last == "step 10/100  loss 0.5000  2.0 steps/s  45 s left"


def test_a_bar_says_that_kernels_are_compiled_while_they_are(monkeypatch):
    screen = io.StringIO()
    bar = Bar(Console(file=screen, force_terminal=True, width=160))
    bar.start("cope", 0, 100)
    logging.getLogger("xcope.ops.compiled.runtime").info("compiling kernels, once")
    bar._progress.refresh()
    assert "compiling kernels, once" in screen.getvalue()
    bar.step(1, 0.5)
    bar._progress.refresh()
    bar.end()
    last = screen.getvalue().rpartition("\n")[0].rpartition("cope")[2]
    assert "compiling" not in last
    assert "steps/s" not in last


def test_numba_tells_that_it_compiles_and_not_that_it_reads_its_cache(
    tmp_path, monkeypatch, caplog
):
    runtime = pytest.importorskip("xcope.ops.compiled.runtime")
    monkeypatch.setattr(importlib.import_module("numba").config, "CACHE_DIR", str(tmp_path))
    (tmp_path / "twice.py").write_text("def twice(x):\n    return 2 * x\n")
    caplog.set_level(logging.INFO, "xcope.ops.compiled.runtime")
    for said in (["compiling kernels, once"], []):
        caplog.clear()
        monkeypatch.setattr(runtime._compiling, "told", False)
        monkeypatch.syspath_prepend(tmp_path)
        sys.modules.pop("twice", None)
        doubled = runtime.compiled(importlib.import_module("twice").twice)
        assert doubled(3) == 6
        assert doubled(0.5) == 1.0 if said else doubled(4) == 8
        assert caplog.messages == said
    del sys.modules["twice"]


def test_measuring_a_large_split_shows_how_far_it_is(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    log = io.StringIO()
    lines = Lines(Console(file=log))
    for batch in range(1, 31):
        now += 1.0
        lines.measured("held_out", batch, 30)
    assert log.getvalue().splitlines() == [
        "measuring held_out: batch 10 of 30",
        "measuring held_out: batch 20 of 30",
    ]
    screen = io.StringIO()
    bar = Bar(Console(file=screen, force_terminal=True, width=120))
    bar.measured("held_out", 1, 2)
    bar.measured("held_out", 2, 2)
    bar.measured("sparse", 1, 1)
    assert "measuring held_out" in screen.getvalue()
    assert "measuring sparse" in screen.getvalue()


@pytest.mark.parametrize(("terminal", "kind"), [(True, Bar), (False, Lines)])
def test_stderr_decides(monkeypatch: pytest.MonkeyPatch, terminal: bool, kind: type):
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    assert isinstance(reporter(), kind)
