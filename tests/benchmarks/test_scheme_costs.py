"""Which schemes have bars, and what a cost says of them."""

import pytest

import xcope
from benchmarks.schemes import costs as module
from benchmarks.schemes.costs import TIME_LIMITS, Cost, costs
from benchmarks.schemes.workloads import Scale


def test_bars_are_of_registered_schemes():
    assert set(TIME_LIMITS) <= set(xcope.schemes())


@pytest.mark.parametrize(
    ("cost", "verdict"),
    [
        (Cost("rotary", 1.15, 1.5), "met"),
        (Cost("rotary", 1.16, 1.5), "NOT MET: time"),
        (Cost("fire", 3.1, 1.51), "NOT MET: time, memory"),
        (Cost("cope", 9.0, 1.2), "met"),  # its time has bars in the benchmark of CoPE
        (Cost("cope", 1.0, 1.6), "NOT MET: memory"),
    ],
)
def test_verdicts(cost, verdict):
    assert cost.verdict == verdict
    assert verdict in str(cost)


def test_a_cost_in_words():
    words = " ".join(str(Cost("alibi", 1.1, 1.2, 7.5, "flash")).split())
    assert words == "alibi time 1.10 ≤ 1.2 memory 1.20 ≤ 1.5 met x-transformers 7.50 (flash)"
    assert "x-transformers" not in str(Cost("fire", 1.1, 1.2))


def test_what_is_measured_over_what(monkeypatch):
    """Ratios of works that say who they are, instead of being run."""

    def ratio(top, bottom, repeats):
        names = [getattr(work, "args", [work])[0] for work in (top, bottom)]
        return (*(type(name).__name__ for name in names), repeats)

    def memory(name, n, threads):
        assert (n, threads) == (16, 1)
        return 100 if name is None else 130

    monkeypatch.setattr(module, "ratio", ratio)
    monkeypatch.setattr(module, "memory", memory)
    scale = Scale(n=16, repeats=7, slow=3)
    found = {cost.scheme: cost for cost in costs(xcope.schemes(), scale, threads=1)}
    assert list(found) == list(xcope.schemes())
    for name, cost in found.items():
        assert cost.time == ("Layer", "Plain", 7)
        assert cost.memory == 1.3
        has_it = xcope.schemes()[name].counterpart() is not None
        assert (cost.upstream is not None) == bool(cost.upstream_how) == has_it
    theirs = ["TransformerWrapper", "TransformerWrapper"]
    assert found["rotary"].upstream == (*theirs, 7)
    assert found["t5"].upstream == (*theirs, 3)
    assert {found[name].upstream_how for name in ("rotary", "alibi", "none")} == {"flash"}
    assert {found[name].upstream_how for name in ("t5", "dynamic", "cope")} == {"n×n"}
