"""The table of what goes together has every pair, as `clash` decides it."""

import re
from pathlib import Path

import pytest

import xcope
from gallery.examples import named
from gallery.together import singles, together
from xcope.describe import refusal
from xcope.positions import clash

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def examples():
    return named((), ROOT / "configs")


@pytest.fixture(scope="module")
def blocks(examples):
    return list(together(examples))


def cells(table):
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()]


def test_each_pair_has_its_cell(examples, blocks):
    head, _, *rows = cells(blocks[-2])
    chosen = {one.name: one for one in singles(examples)}
    assert set(chosen) == {name for name, kind in xcope.schemes().items() if kind.slot is not None}
    order = [row[1].strip("`") for row in rows]
    assert sorted(order) == sorted(chosen)
    assert head[2:] == [row[0] for row in rows] == [str(n + 1) for n in range(len(rows))]
    reasons = dict(re.findall(r"- (\w): (.+)", blocks[-1]))
    for row, name in zip(rows, order, strict=True):
        assert len(row) == 2 + len(order)
        for cell, other in zip(row[2:], order, strict=True):
            one, two = chosen[name], chosen[other]
            why = clash(one, two)
            if one is two:
                assert cell == "·"
            elif why is None:
                assert cell == "✓"
            elif one.slot is two.slot:
                assert cell == "–"
            else:
                assert reasons[cell] in why


def test_pairs_of_slots_sum_up_the_pairs_of_schemes(blocks):
    head, _, *rows = cells(blocks[3])
    shown = {
        (row[0], slot): cell for row in rows for slot, cell in zip(head[1:], row[1:], strict=True)
    }
    assert shown["input", "rotation"] == "✓"
    assert shown["bias", "attend"] == "(✓)"
    assert shown["bias", "bias"] == "–"
    assert all(shown[a, b] == shown[b, a] for a, b in shown)


def test_combinations_are_refused_what_one_of_their_parts_is_refused(drawn):
    both = drawn("cope_rotary")
    assert "both fill the rotation slot" in refusal(both, drawn("xpos"))
    assert refusal(both, drawn("alibi")) is None
    assert refusal(drawn("none"), drawn("alibi")) is None
