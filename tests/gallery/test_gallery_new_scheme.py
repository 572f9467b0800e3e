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
import torch
from matplotlib.figure import Figure

from gallery.examples import described
from gallery.pages import pages
from gallery.pictures import panels, write_pictures
from xcope.describe import meanings
from xcope.errors import FlagError
from xcope.positions import AttendModule, Scheme, Slot, registry
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


class Gated(AttendModule):
    """Logits minus the keys between key and query whose gate is above ½."""

    def forward(self, q, logits, seen, inputs):
        return -self.trace(q, logits, seen, inputs)["open keys"]

    def trace(self, q, logits, seen, inputs):
        gates = logits.sigmoid() * seen
        return {"gates": gates, "open keys": (gates > 0.5).flip(-1).cumsum(-1).flip(-1)}


class Remembering(AttendModule):
    """Adds the first of two numbers that the key's token left behind."""

    remembers = True

    def remember(self, x):
        return x[:, None, :, :2].expand(-1, 8, -1, -1)

    def forward(self, q, logits, seen, inputs):
        return inputs.remembered[:, :, None, :, 0].expand_as(logits)


class Idle(AttendModule):
    """Adds nothing before training, and tells nothing."""

    def forward(self, q, logits, seen, inputs):
        return torch.zeros_like(logits)


class OfValues(Gated):
    """Gates from what is set by hand in place of the values."""

    gate_keys = "values"

    def trace(self, q, logits, seen, inputs):
        return super().trace(q, inputs.scale * (q @ inputs.gate_k.mT), seen, inputs)


@dataclass(frozen=True, kw_only=True)
class Attending(Scheme):
    """``position: attending``."""

    name: ClassVar[str] = "attending"
    title: ClassVar[str] = "Attending"
    slot: ClassVar[Slot | None] = Slot.ATTEND
    oracle: ClassVar[str] = "formula"
    paper: ClassVar[str] = "No paper"
    formula: ClassVar[str] = "q·k − …"
    module: ClassVar[type[AttendModule]] = Gated

    def build(self, geometry):
        return self.module()


def tables(monkeypatch, module):
    """Title → what is drawn of the sentence, rows of queries."""
    monkeypatch.setattr(Attending, "module", module)
    drawn = {}
    for panel in panels(Attending()):
        axes = Figure().subplots()
        panel.draw(axes)
        drawn[panel.title] = torch.tensor(axes.images[0].get_array().filled(torch.nan))
    return drawn


@pytest.mark.parametrize("module", [Gated, OfValues])
def test_what_an_attend_scheme_adds_and_tells_is_drawn(monkeypatch, module):
    drawn = tables(monkeypatch, module)
    maps = ["gates, q·k by hand", "open keys, q·k by hand"]
    assert list(drawn) == ["added to the logits before training", *maps]
    last = [5] * 4 + [4] * 4 + [3] * 4 + [2] * 3 + [1] * 4 + [0] * 3  # t h e ␣, c a t ␣, …
    added, gates, counts = drawn.values()
    assert counts[-1].tolist() == last
    assert added[-1].tolist() == [-count for count in last]
    assert gates[-1, 3] > 0.99
    assert gates[-1, 4] < 0.01
    assert counts[4, 5:].isnan().all()  # keys after the query


def test_what_tokens_leave_behind_is_set_by_hand_and_drawn_fresh(monkeypatch):
    by_hand, fresh = tables(monkeypatch, Remembering).values()
    assert by_hand[-1].tolist() == [-1.5 * (letter == " ") for letter in "the cat sat on the mat"]
    assert fresh[-1].unique().numel() == 22


def test_a_scheme_that_does_nothing_yet_is_drawn_as_such(monkeypatch):
    ((title, added),) = tables(monkeypatch, Idle).items()
    assert title == "added to the logits before training"
    assert added[-1].abs().max() == 0


def test_an_attend_scheme_gets_its_picture_and_page(monkeypatch, repository):
    monkeypatch.setattr(registry, "_SCHEMES", {**registry._SCHEMES, "attending": Attending})
    write_yaml(repository)
    file = repository / "configs/schemes/attending.yaml"
    file.write_text("model:\n  position: attending\n")
    (picture,) = write_pictures(repository / "out", repository, ["attending"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    page = pages(repository)["attending.md"]
    assert "gates are open at spaces only" in page
    assert "the attention operation itself" in page
