"""Recency, a scheme of this file: all heads prefer near keys.

Nobody, *No paper*, arXiv 2401.00001, and ``code``.

    s_ij ← s_ij − |i − j| / size

    size > 0

It is gone after its test.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from gallery.examples import described, meanings
from gallery.pages import pages
from gallery.pictures import write_pictures
from xcope.errors import FlagError
from xcope.positions import Slot, registry
from xcope.positions.alibi import Alibi

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Recency(Alibi):
    """``position: recency``: the options of ``alibi``, and

    Args:
        size: how far; the slope
            is 1 / ``size``.
    """

    name: ClassVar[str] = "recency"
    title: ClassVar[str] = "Recency"
    slot: ClassVar[Slot | None] = Slot.BIAS
    oracle: ClassVar[str] = "formula"

    size: float = 8.0


@pytest.fixture
def repository(monkeypatch, tmp_path):
    """A copy of what the gallery reads, where one scheme more is registered."""
    monkeypatch.setattr(registry, "_SCHEMES", {**registry._SCHEMES, "recency": Recency})
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    return tmp_path


def write_yaml(repository, text="{name: recency, size: 4.0}"):
    (repository / "configs/schemes/recency.yaml").write_text(f"model:\n  position: {text}\n")


def test_it_gets_a_picture_a_page_and_its_rows(repository):
    write_yaml(repository)
    found = pages(repository)
    assert found["recency.md"].startswith("# Recency: `recency`\n\nRecency, a scheme of this file")
    assert "`recency_size`" in found["recency.md"]
    assert "[`recency`](recency.md)" in found["README.md"]
    assert "`recency`" in found["cope.md"]
    (picture,) = write_pictures(repository / "out", repository, ["recency"])
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_without_yaml_it_is_told_what_is_missing(repository):
    with pytest.raises(FlagError, match=r"'recency' has no .*recency\.yaml: write it"):
        pages(repository)


def test_measurements_come_from_the_results(repository):
    write_yaml(repository)
    assert "Not measured." in pages(repository)["recency.md"]
    results = repository / "results/schemes-cpu"
    results.mkdir(parents=True)
    head = "scheme,time_over_sdpa,memory_over_sdpa,x_transformers_over_ours\n"
    (results / "schemes.csv").write_text(f"{head}recency,1.25,1.02,\n")
    page = pages(repository)["recency.md"]
    assert "| time over attention without positions (SDPA) | 1.25 |" in page
    assert "| peak memory over it | 1.02 |" in page
    assert "x-transformers' time" not in page
    assert "Not measured." in pages(repository)["rotary.md"]


def test_the_docstring_becomes_paragraphs_and_one_block_of_formulas():
    assert described(Recency).split("\n\n")[1:] == [
        "Nobody, *No paper*, arXiv [2401.00001](https://arxiv.org/abs/2401.00001), and `code`.",
        "```text\ns_ij ← s_ij − |i − j| / size",
        "size > 0\n```",
        "It is gone after its test.",
    ]


def test_meanings_are_the_scheme_s_own_and_then_the_inherited():
    told = meanings(Recency)
    assert next(iter(told.items())) == ("size", "how far; the slope is 1 / `size`.")
    assert set(told) == set(Recency.options())
