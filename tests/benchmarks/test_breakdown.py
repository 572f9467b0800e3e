"""The parts of a profile add up to the whole, and are the right ones."""

import pytest

from benchmarks.cope.breakdown import breakdowns, buffers
from benchmarks.cope.workloads import QUICK


def test_the_parts_of_a_profile():
    found = breakdowns(QUICK)
    assert len(found) == 12
    for one in found:
        assert sum(one.parts.values()) == pytest.approx(one.whole, rel=0.05)
        inside = {part for part, seconds in one.parts.items() if seconds > 0}
        cope = {"products", "elementwise", "rest of CoPE"}
        assert inside == (cope if one.what == "CoPE" else {"SDPA"}) | {"outside attention"}


def test_buffers_are_those_of_tiles():
    found = buffers(QUICK)
    short, long = found["peak memory, max_pos 64"], found["peak memory, max_pos 256"]
    assert set(short) == {"L", "dL", "s", "dp"}
    assert long["L"] > short["L"]
    assert long["s"] == short["s"]
