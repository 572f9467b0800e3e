"""Splits that are longer by a multiple: which there are, how long, and what stays as it was."""

from collections.abc import Callable

import pytest
import torch

from xcope.errors import FlagError
from xcope.tasks import Task, task, tasks
from xcope.tasks.stretch import Stretchable

STRETCHABLE = [name for name, kind in tasks().items() if issubclass(kind, Stretchable)]


def test_all_tasks_with_a_length_are_stretchable():
    assert STRETCHABLE == [
        "copy", "counting", "flip_flop", "indexing", "parity", "recall", "text"
    ]  # fmt: skip
    assert task("selective_copy").length_splits == ("in_distribution",)


@pytest.mark.parametrize("name", STRETCHABLE)
def test_lengths_are_the_stated_multiples(name: str, small_task: Callable[..., Task]) -> None:
    plain, one = small_task(name, stretch=1), small_task(name, stretch=8)
    longer = ("longer_2x", "longer_4x", "longer_8x")
    assert plain.length_splits == plain.splits[:1]
    assert one.splits == (*plain.splits, *longer)
    assert one.length_splits == (one.splits[0], *longer)
    fixed = {"copy": 2, "counting": 2, "indexing": 3 + 1 + 8 + 1}.get(name, 0)
    size = one.seq_len("train") - fixed
    for split, multiple in zip(one.length_splits, (1, 2, 4, 8), strict=True):
        assert one.seq_len(split) == multiple * size + fixed
        assert one.batch(split, 2, 0, 0).tokens.shape == (2, one.seq_len(split))
    assert one.max_seq_len == one.seq_len("longer_8x")
    for split in ("train", *plain.splits):
        assert torch.equal(one.batch(split, 4, 0, 0).tokens, plain.batch(split, 4, 0, 0).tokens)


@pytest.mark.parametrize("name", STRETCHABLE)
@pytest.mark.parametrize("stretch", [0, 3, -4])
def test_stretch_is_a_power_of_two(name: str, stretch: int) -> None:
    with pytest.raises(FlagError, match=f"stretch={stretch}.*power of two") as caught:
        task(name, {"stretch": stretch})
    assert caught.value.flag == "stretch"


def test_a_split_that_stretch_does_not_reach_is_unknown():
    one = task("parity", {"stretch": 2})
    with pytest.raises(FlagError, match=r"longer_4x.*longer_2x"):
        one.seq_len("longer_4x")


def test_longer_windows_need_enough_text(tmp_path):
    (tmp_path / "book.txt").write_bytes(b"x" * 200)
    options = {"corpus": str(tmp_path / "book.txt"), "length": 32, "held_out": 0.5}
    task("text", {**options, "stretch": 2})
    with pytest.raises(FlagError, match=r"longer_4x.*67 bytes") as caught:
        task("text", {**options, "stretch": 4})
    assert caught.value.flag == "stretch"
