"""Pictures of the tiled walk: its own code runs, and what it does with each tile is noted.

The example is a sentence whose gates are set by hand, open at spaces: positions count words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from unittest import mock

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from torch import Tensor

from xcope.ops.cope.cpu import eager, walk
from xcope.ops.cope.cpu.tiles import BackwardRows, CopeHeads, ForwardRows
from xcope.ops.cope.inputs import CopeInputs
from xcope.ops.tiling import tiles
from xcope.ops.tiling.tiles import Tile
from xcope.plotting import BLUE, FAINT, GREY, INK, ORANGE, plain, save_png

SENTENCE = "the cat sat on the mat and slept"
N = len(SENTENCE)
SIDE = 8
"""Queries and keys of a tile; the walk's own tiles are larger."""
MAX_POS = 3
LOGIT = 8.0
"""q·k by hand, below zero where the key is no space: gates of 0.9997 and 0.0003."""
FORWARD, BACKWARD = eager.forward, eager.backward
COUNTING, PLAIN = "#CFE6F5", "#EFEFEF"


@dataclass(frozen=True)
class Step:
    """One tile as it was walked.

    Args:
        tile: which queries and keys.
        counted: whether gates were counted in it; else it was plain attention.
        carried: the count of each of its queries behind the tile, (R).
    """

    tile: Tile
    counted: bool
    carried: Tensor


@dataclass
class Recorder:
    """Notes each tile whose elementwise work is done."""

    forward_steps: list[Step] = field(default_factory=list)
    backward_steps: list[Step] = field(default_factory=list)

    def forward(
        self, s: Tensor, a: Tensor, rows: ForwardRows, tile: Tile, heads: CopeHeads
    ) -> None:
        counted = bool((rows.start < 0).any())
        FORWARD(s, a, rows, tile, heads)
        self.forward_steps.append(Step(tile, counted, rows.count[0].clone()))

    def backward(
        self, s: Tensor, dp: Tensor, a: Tensor, rows: BackwardRows, tile: Tile, heads: CopeHeads
    ) -> None:
        counted = not bool((rows.start >= tile.j1).all())
        BACKWARD(s, dp, a, rows, tile, heads)
        self.backward_steps.append(Step(tile, counted, rows.count[0].clone()))


def example() -> CopeInputs:
    """One head that counts the spaces of the sentence."""
    d = 4
    spaces = torch.tensor([letter == " " for letter in SENTENCE])
    q = torch.ones(1, 1, N, d, dtype=torch.float64)
    k = torch.where(spaces, LOGIT / d, -LOGIT / d)[:, None].expand(1, 1, N, d).double()
    generator = torch.Generator().manual_seed(0)
    v, e = (torch.randn(n, d, generator=generator).double() for n in (N, MAX_POS))
    return CopeInputs.checked(
        q, k, v.view(1, 1, N, d), pos_emb=e, scale=1.0, gate_k=None, mask=None
    )


def recorded(inputs: CopeInputs) -> Recorder:
    """Walk forward and backward, in small tiles."""
    recorder = Recorder()
    with (
        mock.patch.multiple(eager, forward=recorder.forward, backward=recorder.backward),
        mock.patch.multiple(tiles, QUERIES=SIDE, KEYS=SIDE),
    ):
        saved = walk.forward(inputs)
        walk.backward(torch.ones_like(saved.out), saved, inputs)
    return recorder


def write_pictures(out: Path) -> list[Path]:
    """Draw the order of the tiles, and one row; returns the files."""
    inputs = example()
    recorder = recorded(inputs)
    files = [out / "walk-tiles.png", out / "walk-row.png"]
    for file, figure in zip(files, (_orders(recorder), _row(inputs, recorder)), strict=True):
        save_png(figure, file, dpi=110)
    return files


def _orders(recorder: Recorder) -> Figure:
    figure = Figure(figsize=(11.5, 6.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _tiles(left, recorder.forward_steps, "forward: from the diagonal to the start")
    _tiles(right, recorder.backward_steps, "backward: from the start to the diagonal")
    return figure


def _tiles(axes: Axes, steps: Sequence[Step], title: str) -> None:
    letters = SENTENCE.replace(" ", "␣")
    for number, step in enumerate(steps, 1):
        tile = step.tile
        corner, size = (tile.j0 - 0.5, tile.i0 - 0.5), (tile.j1 - tile.j0, tile.i1 - tile.i0)
        colour = COUNTING if step.counted else PLAIN
        axes.add_patch(Rectangle(corner, *size, facecolor=colour, edgecolor="white", linewidth=2))
        middle = (tile.j0 + tile.j1 - 1) / 2, (tile.i0 + tile.i1 - 1) / 2
        if tile.j1 == tile.i1:  # below the diagonal, which cuts it
            middle = middle[0] - 1.5, middle[1] + 1.2
        axes.text(*middle, str(number), ha="center", va="center", fontsize=15, color=INK)
    for before, after in pairwise(steps):
        if before.tile.i0 == after.tile.i0:
            leftwards = after.tile.j0 < before.tile.j0
            edge = (before.tile.j0 if leftwards else before.tile.j1) - 0.5
            # beside the number, across the edge
            height = (before.tile.i0 + before.tile.i1 - 1) / 2 + 2.4
            ends = (edge + 1.7, edge - 1.7) if leftwards else (edge - 1.7, edge + 1.7)
            points = [(end, height) for end in ends]
            axes.add_patch(
                FancyArrowPatch(*points, arrowstyle="-|>", mutation_scale=11, color=ORANGE)
            )
            carried = f"{step_count(before):.0f}"
            axes.text(edge, height - 0.4, carried, ha="center", va="bottom", fontsize=9, color=INK)
    for edge in range(N):  # what comes after its query is hidden
        axes.add_patch(Rectangle((edge + 0.5, edge - 0.5), N, 1, facecolor="white", linewidth=0))
    axes.plot([-0.5, N - 0.5], [-0.5, N - 0.5], color=GREY, linewidth=1)
    axes.set_xlim(-0.5, N - 0.5)
    axes.set_ylim(N - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_xticks(range(N), letters, fontsize=8, family="monospace")
    axes.set_yticks(range(N), letters, fontsize=8, family="monospace")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("key j", color=INK)
    axes.set_ylabel("query i", color=INK)
    axes.set_title(title, fontsize=11, color=INK)
    for colour, text, height in (
        (COUNTING, "gates are counted", 2.0),
        (PLAIN, f"every row has counted to {MAX_POS - 1}:\nplain flash attention", 5.0),
    ):
        axes.add_patch(Rectangle((N - 15.5, height - 0.8), 1.6, 1.6, facecolor=colour))
        axes.text(N - 13.2, height, text, va="center", fontsize=9, color=INK)
    axes.add_patch(
        FancyArrowPatch(
            (N - 15.5, 8.2), (N - 13.8, 8.2), arrowstyle="-|>", mutation_scale=11, color=ORANGE
        )
    )
    axes.text(N - 13.2, 8.2, "count of the last row, carried", va="center", fontsize=9, color=INK)


def step_count(step: Step) -> float:
    """The count of a tile's last query behind it."""
    return float(step.carried[-1])


def _row(inputs: CopeInputs, recorder: Recorder) -> Figure:
    """The last query: its gates, and the count as it grows from tile to tile."""
    steps = [step for step in recorder.forward_steps if step.tile.i1 == N]
    gates = (inputs.scale * (inputs.q @ inputs.k.mT)).sigmoid()[0, 0, -1]
    count = gates.flip(0).cumsum(0).flip(0)
    figure = Figure(figsize=(11.5, 3), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(N), gates.tolist(), color="#BBBBBB", width=0.7, label="gate")
    counted = min(step.tile.j0 for step in steps if step.counted)
    axes.step(
        range(counted, N), count[counted:].tolist(), where="mid", color=BLUE, linewidth=1,
        alpha=0.6, label="count, as far as it is counted",
    )  # fmt: skip
    axes.plot(
        range(N),
        count.clamp(max=MAX_POS - 1).tolist(),
        color=BLUE,
        linewidth=2.4,
        drawstyle="steps-mid",
        label=f"position: the count, at most {MAX_POS - 1}",
    )
    for step in steps:
        axes.axvline(step.tile.j0 - 0.5, color=FAINT if step.tile.j0 else "white", zorder=0)
        if not step.counted:
            axes.axvspan(step.tile.j0 - 0.5, step.tile.j1 - 0.5, color=PLAIN, zorder=0)
            middle = (step.tile.j0 + step.tile.j1 - 1) / 2
            axes.text(middle, 4.3, "plain flash attention", ha="center", fontsize=9, color=INK)
        elif step.tile.j0:
            axes.annotate(
                f"carried: {step_count(step):.0f}",
                (step.tile.j0 - 0.5, step_count(step)),
                (step.tile.j0 + 0.6, step_count(step) + 1.2),
                arrowprops={"arrowstyle": "-|>", "color": ORANGE},
                fontsize=9,
                color=INK,
            )
    plain(axes, "y")
    axes.set_xticks(range(N), SENTENCE.replace(" ", "␣"), family="monospace")
    axes.set_xlim(-0.6, N - 0.4)
    axes.set_ylim(0, 5.2)
    axes.set_xlabel("key j; the query is the last letter, and the walk goes from right to left")
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    return figure
