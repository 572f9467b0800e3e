"""What a person sees: a bar on a terminal, plain lines elsewhere."""

import io
import sys

import pytest
from rich.console import Console

from xcope.training.progress import Bar, Lines, Reporter, reporter


def show(reporter: Reporter) -> None:
    reporter.start("cope(max_pos=32)", 0, 2)
    reporter.step(1, 0.75)
    reporter.step(2, 0.25)
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
    assert first.startswith("step 1/2  loss 0.7500  ")
    assert last.endswith("  0 s left")


def test_a_log_gets_few_lines():
    log = io.StringIO()
    show(Lines(Console(file=log), every=3600))
    assert len(log.getvalue().splitlines()) == 2


@pytest.mark.parametrize(("terminal", "kind"), [(True, Bar), (False, Lines)])
def test_stderr_decides(monkeypatch: pytest.MonkeyPatch, terminal: bool, kind: type):
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    assert isinstance(reporter(), kind)
