"""What was measured of CoPE attention: CSV files, pictures and a README that says how."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.cope.breakdown import PARTS
from benchmarks.cope.costs import Point, Saturation, Variant
from benchmarks.cope.workloads import DIM, FULL, HEADS, Scale
from benchmarks.measure import MEBIBYTE, Bar, Breakdown
from benchmarks.report import (
    QUICK_RUN,
    breakdown_table,
    machine,
    missed,
    plot_lengths,
    write_breakdowns,
)
from xcope.markdown import code_block, page, table, write_csv
from xcope.plotting import BLUE, GREY, INK, plain, save_png


@dataclass(frozen=True)
class Measured:
    """All that a run of the benchmark found.

    Args:
        command: what to type to run it again.
        scratch: see `breakdown.scratch`.
        seconds: how long the run took.
    """

    command: str
    scale: Scale
    bars: Sequence[Bar]
    points: Sequence[Point]
    saturation: Sequence[Saturation]
    variants: Sequence[Variant]
    breakdowns: Sequence[Breakdown]
    scratch: Mapping[str, int]
    seconds: float


def write(folder: Path, measured: Measured) -> None:
    """Write bars, benchmark, saturation, variants and breakdown (CSV), two PNGs and README.md."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(
        folder / "bars.csv",
        ("bar", "ratio", "limit", "goal", "met", "goal_met"),
        ((b.name, f"{b.ratio:.3f}", b.limit, b.goal, b.met, b.goal_met) for b in measured.bars),
    )
    write_csv(
        folder / "benchmark.csv",
        ("attention", "n", "seconds", "mebibytes"),
        ((p.name, p.n, f"{p.seconds:.5f}", f"{p.mebibytes:.1f}") for p in measured.points),
    )
    write_csv(
        folder / "saturation.csv",
        ("max_pos", "saturated_share", "ratio"),
        ((s.max_pos, f"{s.share:.4f}", f"{s.ratio:.3f}") for s in measured.saturation),
    )
    write_csv(
        folder / "variants.csv",
        ("variant", "over", "ratio"),
        ((v.name, v.over, f"{v.ratio:.3f}") for v in measured.variants),
    )
    write_breakdowns(folder / "breakdown.csv", measured.breakdowns, PARTS)
    names = dict.fromkeys(point.name for point in measured.points)
    curves = {
        name: [(p.n, p.seconds, p.mebibytes) for p in measured.points if p.name == name]
        for name in names
    }
    plot_lengths(curves, folder / "benchmark.png", "peak memory, MiB")
    plot_saturation(measured.saturation, folder / "saturation.png")
    (folder / "README.md").write_text(readme(measured), encoding="utf-8")


def readme(measured: Measured) -> str:
    """The report as Markdown."""
    blocks = [
        *_head(measured),
        *_bars(measured),
        *_missed(measured),
        *_curves(measured),
        *_saturation(measured),
        *_variants(measured),
    ]
    return page(blocks)


def _head(measured: Measured) -> Iterator[str]:
    yield "# What CoPE attention costs on a CPU"
    yield code_block(measured.command, "bash")
    yield f"{machine()}. The run took {measured.seconds / 60:.1f} minutes."
    yield (
        f"float32, b=1 h={HEADS} d={DIM}, causal, n={measured.scale.n} unless said otherwise; q, "
        "k, v and the table random. Gates are about 0.5; where they are near 0 (q = 1 + 0.2 randn, "
        "k = −1 + 0.2 randn) the count never reaches max_pos. Times are medians, of what is "
        "compared in turn in one process; memory is the peak over idle of a forward and backward, "
        "inputs and gradients included, in a process of its own. SDPA is "
        "`torch.nn.functional.scaled_dot_product_attention` without positions."
    )


def _bars(measured: Measured) -> Iterator[str]:
    yield "## Bars"
    if measured.scale != FULL:
        yield QUICK_RUN
    rows = [
        (b.name, f"{b.ratio:.2f}", b.text(b.limit), b.text(b.goal), b.verdict)
        for b in measured.bars
    ]
    yield table(("", "ratio", "limit", "goal", ""), rows, "-r")
    for bar in measured.bars:
        if bar.growth:
            yield (
                f"Memory that grows {bar.growth}× ± 10 % with {bar.growth}× the length is linear; "
                "growing less, it is sublinear."
            )


def _missed(measured: Measured) -> Iterator[str]:
    yield "## Where the time and the memory go"
    yield (
        "torch's profiler, ms of one run (the median of 3): CoPE's kernels, which are one call; "
        "attention without CoPE, SDPA's or our own; everything else."
    )
    yield breakdown_table(measured.breakdowns, PARTS)
    short = [bar for bar in measured.bars if not bar.goal_met or not bar.met]
    if short:
        yield "Bars or goals that are missed, and what bounds them:"
        yield "\n".join(f"- {bar.name}: {_bound(bar, measured)}" for bar in short)


def _bound(bar: Bar, measured: Measured) -> str:
    """What the profile says bounds a bar."""
    text = missed(bar)
    pair = [b for b in measured.breakdowns if b.case == bar.parts]
    if len(pair) == 2:
        mine, other = pair
        shares = ", ".join(
            f"{part} {mine.parts[part] / other.whole:.2f}"
            for part in PARTS
            if mine.parts[part] > 0.005 * other.whole
        )
        text += f" Of {other.what}'s time: {shares}"
        inside = other.parts["other attention"] / other.whole
        text += f" (its own attention {inside:.2f})." if inside < 0.9 else "."
    elif bar.parts is not None and bar.parts in measured.scratch:
        text += (
            f" MiB: the memory of a thread {measured.scratch[bar.parts] / MEBIBYTE:.1f}; all of "
            f"SDPA, inputs and gradients included, {_sdpa_mebibytes(measured):.1f}."
        )
    return text


def _sdpa_mebibytes(measured: Measured) -> float:
    """SDPA's peak at the length of the bars."""
    return next(p.mebibytes for p in measured.points if (p.name, p.n) == ("SDPA", measured.scale.n))


def _curves(measured: Measured) -> Iterator[str]:
    yield "## Time and memory against n"
    yield "Forward and backward, max_pos 64 ([benchmark.csv](benchmark.csv))."
    yield "![Time and peak memory against n](benchmark.png)"


def _saturation(measured: Measured) -> Iterator[str]:
    yield "## Time against the share of saturated tiles"
    yield (
        "Once all queries of a unit of work have counted to max_pos − 1 the rest of their keys is "
        "plain flash attention. Share of the causal (query, key) pairs that were computed so, and "
        "forward and backward over SDPA:"
    )
    rows = [(s.max_pos, f"{s.share:.1%}", f"{s.ratio:.2f}") for s in measured.saturation]
    yield table(("max_pos", "saturated", "over SDPA"), rows, "-r")
    yield "![Time over SDPA against the share of saturated pairs](saturation.png)"


def _variants(measured: Measured) -> Iterator[str]:
    yield "## Variants"
    yield "Forward and backward; max_pos 64 and gates about 0.5 unless said otherwise."
    rows = [(v.name, v.over, f"{v.ratio:.2f}") for v in measured.variants]
    yield table(("", "over", "ratio"), rows, "-r")


def plot_saturation(found: Sequence[Saturation], path: Path) -> None:
    """Draw cost against the share of saturated pairs, a dot for each length of the table."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    panel = figure.subplots()
    shares = [100 * f.share for f in found]
    ratios = [f.ratio for f in found]
    panel.plot(shares, ratios, color=BLUE, marker="o", markersize=5)
    panel.axhline(1, color=GREY, linewidth=1)
    panel.annotate("SDPA", (0, 1), (0, 4), textcoords="offset points", color=INK)
    for one, share in zip(found, shares, strict=True):
        text = panel.annotate(
            f"max_pos {one.max_pos}", (share, one.ratio), (7, 3), textcoords="offset points"
        )
        text.set(fontsize=9, color=INK, rotation=0 if share < 5 else 45)
    panel.set_xlim(-3, 112)
    panel.set_xticks(range(0, 101, 20))
    panel.set_ylim(0, 1.12 * max(*ratios, 1))
    panel.set_xlabel("saturated (query, key) pairs, %")
    panel.set_ylabel("time over SDPA")
    plain(panel)
    save_png(figure, path)
