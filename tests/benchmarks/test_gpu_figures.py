"""What a figure says of its bar, and what is correct."""

import math

import pytest
import torch
from gpu.cope_cases import CopeCase

from benchmarks import measure
from benchmarks.gpu.compare import compared
from benchmarks.gpu.figures import Figure
from benchmarks.gpu.report import folder_name
from benchmarks.measure import Timing, timings


def figure(mine, other, error="", **options):
    return Figure(part="bars", name="a", over="b", shape="", n=1, dtype="",
                  mine=Timing(mine, error=error), other=Timing(other), **options)  # fmt: skip


@pytest.mark.parametrize(
    ("one", "ratio", "bound", "verdict"),
    [
        (figure(3.0, 2.0), 1.5, "–", ""),
        (figure(3.0, 2.0, limit=1.5), 1.5, "≤ 1.5", "met"),
        (figure(3.2, 2.0, limit=1.5), 1.6, "≤ 1.5", "NOT MET"),
        (figure(2.0, 60.0, limit=30, inverse=True), 30.0, "≥ 30", "met"),
        (figure(2.0, 58.0, limit=30, inverse=True), 29.0, "≥ 30", "NOT MET"),
        (figure(None, 1.0, "out of memory"), None, "–", "a: out of memory"),
        (figure(None, 1.0, "out of memory", limit=2), None, "≤ 2", "NOT MET: a: out of memory"),
        (figure(1.0, None, must_run=True), None, "runs", "met"),
        (figure(None, 1.0, "out of memory", must_run=True), None, "runs",
         "NOT MET: a: out of memory"),
    ],
)  # fmt: skip
def test_verdicts(one, ratio, bound, verdict):
    assert one.ratio == ratio
    assert (one.bound, one.verdict) == (bound, verdict)
    assert str(one).endswith(verdict)


def test_a_contender_that_fails_leaves_the_others():
    runs = []

    def fails_later():
        runs.append(1)
        if len(runs) > measure.WARM + 1:
            raise ValueError("so late")

    def fails():
        raise ValueError("at once")

    found = timings(
        torch.device("cpu"),
        {"works": lambda: lambda: None, "fails": lambda: fails, "later": lambda: fails_later},
        3,
    )
    assert found["works"].seconds is not None
    assert (found["fails"].seconds, found["fails"].error) == (None, "ValueError: at once")
    assert (found["later"].seconds, found["later"].error) == (None, "ValueError: so late")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80gb-hbm3"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("Tesla V100-SXM2-16GB", "tesla-v100-sxm2-16gb"),
    ],
)
def test_folder_names(monkeypatch, name, folder):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert folder_name(torch.device("cuda")) == folder
    assert folder_name(torch.device("cpu")) == "cpu"


def test_errors_and_their_bars():
    case = CopeCase(name="x", dtype="float32")
    exact = {"out": torch.ones(4).double(), "k": torch.full((4,), 1e-12).double()}
    plain = {"out": torch.full((4,), 1 + 1e-4), "k": torch.zeros(4)}

    def errors(out, k):
        return compared(
            case, {"out": torch.full((4,), out), "k": torch.full((4,), k)}, plain, exact
        )

    out, k = errors(1 + 3.9e-4, 1e-5)
    assert out.plain == pytest.approx(1e-4, rel=0.01)
    assert out.bar == pytest.approx(4e-4, rel=0.01)
    assert out.ok
    # a gradient that is 0 by its formula is held to the largest tensor
    assert (k.error, k.bar) == (pytest.approx(1e-5, rel=0.01), 2e-5)
    assert k.ok
    out, k = errors(1 + 4.1e-4, math.nan)
    assert not out.ok
    assert not k.ok
