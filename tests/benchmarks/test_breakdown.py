"""The parts of a profile add up to the whole, and are the right ones."""

import pytest

from benchmarks.cope.breakdown import breakdowns, scratch
from benchmarks.cope.workloads import QUICK
from xcope.ops.compiled.frames import VECTORS
from xcope.ops.compiled.simd import LANES


def test_the_parts_of_a_profile():
    found = breakdowns(QUICK)
    assert len(found) == 12
    for one in found:
        assert sum(one.parts.values()) == pytest.approx(one.whole, rel=0.05)
        inside = {part for part, seconds in one.parts.items() if seconds > 0}
        cope = (
            {"CoPE forward"} if one.case.startswith("fwd,") else {"CoPE forward", "CoPE backward"}
        )
        assert inside == (cope if one.what == "CoPE" else {"other attention"}) | {
            "outside attention"
        }


def test_a_threads_memory_grows_with_the_table():
    """By L and its gradient: for each position and query two numbers."""
    found = scratch(QUICK)
    short, long = found["peak memory, max_pos 64"], found["peak memory, max_pos 256"]
    assert long - short == VECTORS * LANES * 2 * (256 - 64) * 4
