"""What was measured where people train: CSV files, a picture and a README that says how."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.measure import Bar, Breakdown
from benchmarks.report import (
    MILLISECONDS,
    QUICK_RUN,
    breakdown_table,
    machine,
    missed,
    write_breakdowns,
)
from benchmarks.small.breakdown import PARTS
from benchmarks.small.costs import Steps
from benchmarks.small.workloads import FULL, PLAIN, Rows, Scale, Size, theirs
from xcope.markdown import code_block, page, table, write_csv
from xcope.plotting import BLUE, GREY, INK, ORANGE, plain, save_png
from xcope.positions import schemes


@dataclass(frozen=True)
class Figures:
    """What was found with so many threads.

    Args:
        attention: bars of attention alone.
        breakdowns: of bars that are missed.
    """

    threads: int
    steps: Sequence[Steps]
    attention: Sequence[Bar]
    breakdowns: Sequence[Breakdown]

    @property
    def bars(self) -> list[Bar]:
        """All bars."""
        return [*(bar for steps in self.steps for bar in steps.bars), *self.attention]


@dataclass(frozen=True)
class Measured:
    """All that a run of the benchmark found.

    Args:
        command: what to type to run it again.
        figures: with one thread, then with more.
        commands: bars of commands, in processes of their own.
        seconds: how long the run took.
    """

    command: str
    scale: Scale
    figures: Sequence[Figures]
    commands: Sequence[Bar]
    seconds: float

    @property
    def titles(self) -> list[str]:
        """``1 thread``, ``2 threads``."""
        return [f"{f.threads} thread{'s' * (f.threads > 1)}" for f in self.figures]

    @property
    def steps(self) -> list[tuple[Steps, ...]]:
        """Of each size, with each number of threads."""
        return list(zip(*(f.steps for f in self.figures), strict=True))

    @property
    def attention(self) -> list[tuple[Bar, ...]]:
        """Each bar of attention, with each number of threads."""
        return list(zip(*(f.attention for f in self.figures), strict=True))


def write(folder: Path, measured: Measured) -> None:
    """Write bars, steps and breakdown (CSV), small.png and README.md."""
    folder.mkdir(parents=True, exist_ok=True)
    bars: list[tuple[int | None, Bar]]
    bars = [(f.threads, bar) for f in measured.figures for bar in f.bars]
    bars += [(None, bar) for bar in measured.commands]
    write_csv(
        folder / "bars.csv",
        ("bar", "threads", "ratio", "limit", "goal", "met", "goal_met"),
        ((b.name, t, f"{b.ratio:.3f}", b.limit, b.goal, b.met, b.goal_met) for t, b in bars),
    )
    write_csv(
        folder / "steps.csv",
        ("size", "threads", "model", "seconds", "over_plain"),
        (
            (s.size, f.threads, name, f"{s.seconds(name):.5f}", f"{s.over(name):.3f}")
            for f in measured.figures
            for s in f.steps
            for name in s.names
        ),
    )
    found = [
        replace(b, case=f"{b.case}, {title}")
        for f, title in zip(measured.figures, measured.titles, strict=True)
        for b in f.breakdowns
    ]
    write_breakdowns(folder / "breakdown.csv", found, PARTS)
    plot(measured, folder / "small.png")
    (folder / "README.md").write_text(readme(measured, found), encoding="utf-8")


def readme(measured: Measured, found: Sequence[Breakdown]) -> str:
    """The report as Markdown; ``found`` are all profiles, their cases with the threads."""
    blocks = [
        *_head(measured),
        *_bars(measured),
        *_steps(measured),
        *_missed(measured, found),
    ]
    return page(blocks)


def _head(measured: Measured) -> Iterator[str]:
    yield "# What positions cost where people train"
    yield code_block(measured.command, "bash")
    yield f"{machine()}. The run took {measured.seconds / 60:.1f} minutes."
    yield (
        "float32, on a CPU. What is compared runs in turn in one process; a ratio is the median "
        "over the rounds of one's time over the other's in the same round. Short rows, small "
        "models: what [cope-cpu](../cope-cpu/README.md) and "
        "[schemes-cpu](../schemes-cpu/README.md) measure of long rows is not repeated here."
    )
    sizes = "; ".join(map(_size, measured.scale.sizes))
    yield (
        "**Train step**: forward, cross-entropy, backward and a step of AdamW on random tokens, of "
        f"models with {sizes}. The first is the quickstart's. *The plain model* is written as "
        "nanoGPT's without positions "
        "([plain.py](../../benchmarks/small/plain.py)), its parameters those of ours with `none`; "
        "all in one process that keeps what a step frees, as training does "
        "(`xcope.training.keep_freed_memory`); "
        "*x-transformers' own* has the same flags and weights as ours."
    )
    rows = "; ".join(map(_rows, measured.scale.rows))
    yield (
        "**Attention**: forward and backward of causal attention alone over "
        "`torch.nn.functional.scaled_dot_product_attention` without positions; q, k, v and the "
        f"table random, gates about 0.5. {rows}. Never saturating: gates near 0, so that the "
        "count never reaches max_pos."
    )


def _size(size: Size) -> str:
    return (
        f"{size.depth} layers of width {size.dim}, {size.heads} heads, batches of {size.batch} "
        f"rows of {size.n} tokens of {size.tokens} kinds, CoPE's max_pos {size.max_pos}"
    )


def _rows(rows: Rows) -> str:
    return f"n {rows.n}: b={rows.b} h={rows.h} d={rows.d} max_pos={rows.max_pos}"


# -- bars ----------------------------------------------------------------------------------------


def _bars(measured: Measured) -> Iterator[str]:
    yield "## Bars"
    if measured.scale != FULL:
        yield QUICK_RUN
    yield "![Train steps, attention and commands, and their bars](small.png)"
    rows = []
    for at_once in measured.steps:
        bars = list(zip(*(steps.bars for steps in at_once), strict=True))
        rows += [_row(bars[0]), _row(bars[1]), _others(at_once[0].size, bars[2:])]
    rows += map(_row, measured.attention)
    yield table(("", *measured.titles, "limit", "goal", ""), rows, "-r")
    seconds = [
        (b.name, f"{b.ratio:.2f}", b.text(b.limit), b.text(b.goal), b.verdict)
        for b in measured.commands
    ]
    yield "Commands, each in a fresh process:"
    yield table(("", "", "limit", "goal", ""), seconds, "-r")


def _row(bars: Sequence[Bar]) -> list[str]:
    """A bar with each number of threads; it is met if it is with all."""
    worst = max(bars, key=lambda bar: bar.ratio)
    return [
        worst.name,
        *(f"{bar.ratio:.3f}" for bar in bars),
        *(worst.text(worst.limit), worst.text(worst.goal), worst.verdict),
    ]


def _others(size: Size, bars: Sequence[Sequence[Bar]]) -> list[str]:
    """The bars of all other schemes in one row: the highest ratios, and who misses."""
    worst = [max(column, key=lambda bar: bar.ratio) for column in zip(*bars, strict=True)]
    name, *cells, verdict = _row(worst)
    name = f"train step, {size}: every other scheme over x-transformers' own, the highest"
    short = [_scheme(row[0]) for row in bars if not all(bar.met for bar in row)]
    return [name, *cells, f"NOT MET: {', '.join(short)}" if short else verdict]


def _scheme(bar: Bar) -> str:
    return bar.name.partition(": ")[2].partition(" over ")[0]


# -- train steps ---------------------------------------------------------------------------------


def _steps(measured: Measured) -> Iterator[str]:
    yield "## Train steps"
    yield "Time over the plain model's; last, ours over x-transformers' own."
    titles = measured.titles
    head = [
        "",
        *(f"ours, {title}" for title in titles),
        *(f"x-transformers, {title}" for title in titles),
        *(f"ours over x-transformers, {title}" for title in titles),
    ]
    for at_once in measured.steps:
        taken = ", ".join(
            f"{MILLISECONDS * steps.seconds(PLAIN):.3g} ms with {title}"
            for steps, title in zip(at_once, titles, strict=True)
        )
        yield f"### {at_once[0].size}"
        yield f"The plain model takes {taken}."
        names = [name for name in at_once[0].names if name in schemes()]
        yield table(head, ([name, *_over(at_once, name)] for name in names), "-r")


def _over(at_once: Sequence[Steps], name: str) -> Iterator[str]:
    """Ours over the plain model's, x-transformers' over it, ours over x-transformers'."""
    for top, bottom in ((name, PLAIN), (theirs(name), PLAIN), (name, theirs(name))):
        for steps in at_once:
            known = top in steps.names and bottom in steps.names
            yield f"{steps.over(top, bottom):.2f}" if known else "–"


# -- what bounds ---------------------------------------------------------------------------------


def _missed(measured: Measured, found: Sequence[Breakdown]) -> Iterator[str]:
    yield "## Where the time of missed bars goes"
    yield (
        "torch's profiler, ms of one run (the median of 3): CoPE's operator; that of attention "
        "with index biases, which also serves schemes without any; SDPA's kernel; "
        "turning q and k; the model's matrix products; layer norms; AdamW; the rest (activations, "
        "copies, sums, what Python does between)."
    )
    yield breakdown_table(found, PARTS)
    lines = []
    for figures, title in zip(measured.figures, measured.titles, strict=True):
        for bar in figures.bars:
            if not bar.met:
                case = f"{bar.parts}, {title}"
                pair = [b for b in found if b.case == case]
                lines.append(f"- {case}: {missed(bar)}{_bound(pair)}")
    if lines:
        yield "Bars that are missed, and the parts that differ:"
        yield "\n".join(lines)


def _bound(pair: Sequence[Breakdown]) -> str:
    """By what the one is slower or faster than the other, over the other's time."""
    if len(pair) != 2:
        return ""
    mine, other = pair
    gaps = {part: (mine.parts[part] - other.parts[part]) / other.whole for part in PARTS}
    told = ", ".join(f"{part} {gap:+.2f}" for part, gap in gaps.items() if abs(gap) > 0.005)
    return f" Beyond that of {other.what}, over its whole: {told}."


# -- the picture ---------------------------------------------------------------------------------

Drawn = Mapping[str, Sequence[Bar]]
"""Label of a row → its bar with one thread, and with more."""
FARTHEST = 2.4
"""What is more is written at the end of the axis."""


def plot(measured: Measured, path: Path) -> None:
    """Draw every bar: models by size and scheme, attention by length, commands."""
    figure = Figure(figsize=(13, 9.5), layout="constrained")
    panels = figure.subplots(2, 3, height_ratios=(5, 4))
    for panel, at_once in zip(panels[0], measured.steps, strict=True):
        labels = [_pair_label(pair.top, pair.bottom) for pair in at_once[0].pairs]
        bars = zip(*(steps.bars for steps in at_once), strict=True)
        drawn: Drawn = dict(zip(labels, bars, strict=True))
        _draw(panel, f"train step, {at_once[0].size}", drawn)
        panel.set_xlabel("over x-transformers' own, or as said", fontsize=9)
    named = {bars[0].name.removeprefix("attention, "): bars for bars in measured.attention}
    over_sdpa, over_cope = ": CoPE over SDPA", " over plain CoPE"
    drawn = {name.removesuffix(over_sdpa): named[name] for name in named if over_sdpa in name}
    _draw(panels[1, 0], "attention, CoPE over SDPA", drawn)
    drawn = {_variant_label(name): named[name] for name in named if over_cope in name}
    _draw(panels[1, 1], "attention, variants over plain CoPE", drawn)
    drawn = {fill(bar.name.partition(":")[0], width=16): [bar] for bar in measured.commands}
    _draw(panels[1, 2], "commands, seconds", drawn)
    figure.legend(
        handles=_legend(measured.titles), loc="outside upper center", ncols=5, frameon=False
    )
    save_png(figure, path)


def _pair_label(top: str, bottom: str) -> str:
    return top if bottom == theirs(top) else f"{top} / {bottom}"


def _variant_label(name: str) -> str:
    """``n 48, cope_sep_keys``."""
    rows, _, title = name.partition(": ")
    return f"{rows}, {title.partition('(')[2].partition(')')[0]}"


def _draw(panel: Axes, title: str, drawn: Drawn) -> None:
    """A row for each bar, a dot for each number of threads, a tick for the limit."""
    found = [value for bars in drawn.values() for b in bars for value in (b.ratio, b.limit or 1)]
    high = min(FARTHEST, 1.08 * max(found))
    for y, bars in enumerate(drawn.values()):
        for index, bar in enumerate(bars):
            colour = GREY if bar.limit is None else BLUE if bar.met else ORANGE
            filled = colour if index + 1 == len(bars) else "white"
            if bar.ratio <= high:
                panel.plot(bar.ratio, y, "o", color=colour, markerfacecolor=filled, markersize=7)
        beyond = ", ".join(f"{bar.ratio:.3g}" for bar in bars if bar.ratio > high)
        if beyond:
            panel.annotate(f"{beyond} →", (high, y), color=ORANGE, ha="right", va="center")
        if bars[0].limit is not None:
            panel.plot(bars[0].limit, y, "|", color=INK, markersize=12, markeredgewidth=2)
    panel.set_yticks(range(len(drawn)), list(drawn))
    panel.set_ylim(len(drawn) - 0.4, -0.6)
    panel.set_xlim(0, high)
    panel.axvline(1, color=GREY, linewidth=1, zorder=0)
    panel.set_title(title, color=INK, fontsize=11)
    plain(panel)


def _legend(titles: Sequence[str]) -> list[Line2D]:
    """What dots and ticks mean."""
    style: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 7}
    fills = ["white"] * (len(titles) - 1) + [INK]
    threads = [
        Line2D([], [], color=INK, markerfacecolor=fill, label=title, **style)
        for fill, title in zip(fills, titles, strict=True)
    ]
    return [
        *threads,
        Line2D([], [], color=BLUE, label="within the limit", **style),
        Line2D([], [], color=ORANGE, label="over the limit", **style),
        Line2D([], [], color=INK, label="limit", **{**style, "marker": "|", "markersize": 12},
               markeredgewidth=2),
    ]  # fmt: skip
