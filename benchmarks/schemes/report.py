"""What the schemes cost as CSV, a picture and a README that says how, in one folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.report import QUICK_RUN, machine
from benchmarks.schemes.costs import Cost
from benchmarks.schemes.workloads import DIM, DIM_HEAD, FULL, HEADS, Scale
from xcope.markdown import code_block, page, table, write_csv
from xcope.plotting import BLUE, GREY, INK, ORANGE, plain, save_png


@dataclass(frozen=True)
class Measured:
    """All that a run of the benchmark found.

    Args:
        command: what to type to run it again.
        seconds: how long the run took.
    """

    command: str
    scale: Scale
    costs: Sequence[Cost]
    seconds: float


def write(folder: Path, measured: Measured) -> None:
    """Write schemes.csv, schemes.png and README.md."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(
        folder / "schemes.csv",
        (
            *("scheme", "time_over_sdpa", "time_limit", "memory_over_sdpa", "memory_limit"),
            *("x_transformers_over_ours", "x_transformers", "naive_over_ours", "naive"),
        ),
        (
            (
                *(c.scheme, f"{c.time:.3f}", c.time_limit, f"{c.memory:.3f}", c.memory_limit),
                *(c.upstream and f"{c.upstream:.3f}", c.upstream_how),
                *(c.naive and f"{c.naive:.3f}", c.naive_how),
            )
            for c in measured.costs
        ),
    )
    plot_costs(measured.costs, folder / "schemes.png")
    (folder / "README.md").write_text(readme(measured), encoding="utf-8")


def readme(measured: Measured) -> str:
    """The report as Markdown."""
    return page((*_head(measured), *_table(measured)))


def _head(measured: Measured) -> Iterator[str]:
    n = measured.scale.n
    yield "# What every scheme costs on a CPU"
    yield code_block(measured.command, "bash")
    yield f"{machine()}. The run took {measured.seconds / 60:.1f} minutes."
    yield (
        f"float32, b=1 h={HEADS} d={DIM_HEAD}, causal, n={n}; q, k and v random, the options those "
        "of [configs/schemes](../../configs/schemes). Times are medians, of what is compared in "
        "turn in one process; memory is the peak over idle of what is held at once, in a process "
        "of its own, inputs, parameters and gradients included."
    )
    yield (
        "**Over SDPA**: forward and backward of one layer's attention under the scheme, from q, k "
        "and v to their gradients and those of all the scheme's parameters, over "
        "`torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)` without "
        "positions. What a scheme computes from its parameters (tables, perceptrons, sines) is in "
        "it. Forgetting attention and contextual rotary also project embeddings "
        f"(1 {n} {DIM}) to their gates; schemes of the input also add their vectors to such "
        "embeddings."
    )
    yield (
        "**x-transformers over ours**: forward and backward of whole models that have one layer "
        f"of attention and no feed-forward (dim {DIM}, projections, normalisation and residual "
        "included) with the same flags and weights, gradients to all parameters. *flash*: its "
        "`attn_flash=True`, to which it hands a bias written out as (h n n); *n×n*: it "
        "refuses flash attention for the scheme. *Naive*, of schemes that x-transformers lacks: "
        "attention alone in torch operations that hold what is said, as flash-linear-attention's "
        "naive versions do."
    )


def _table(measured: Measured) -> Iterator[str]:
    if measured.scale != FULL:
        yield QUICK_RUN
    head = (
        *("", "time over SDPA", "limit", "memory over SDPA", "limit", ""),
        *("x-transformers, or naive, over ours", ""),
    )
    yield table(head, map(_row, measured.costs), "-r")
    yield "![What every scheme costs](schemes.png)"


def _row(cost: Cost) -> list[str]:
    limit = f"≤ {cost.time_limit:g}" if cost.time_limit else "–"
    over = cost.upstream or cost.naive
    theirs = f"{over:.2f}" if over else "–"
    return [
        *(cost.scheme, f"{cost.time:.2f}", limit, f"{cost.memory:.2f}", f"≤ {cost.memory_limit:g}"),
        *(cost.verdict, theirs, cost.upstream_how or cost.naive_how or "–"),
    ]


def plot_costs(costs: Sequence[Cost], path: Path) -> None:
    """Draw time, memory and x-transformers' time, a row for each scheme."""
    figure = Figure(figsize=(11, 1.4 + 0.27 * len(costs)), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    _bars(panels[0], "time over SDPA", [c.time for c in costs], [c.time_limit for c in costs])
    _bars(
        panels[1],
        "peak memory over SDPA",
        [c.memory for c in costs],
        [c.memory_limit for c in costs],
    )
    panels[2].set_xscale("log")
    panels[2].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[2].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panels[2].xaxis.set_minor_locator(NullLocator())
    _bars(panels[2], "x-transformers' time over ours", [c.upstream or c.naive for c in costs])
    panels[0].set_yticks(range(len(costs)), [c.scheme for c in costs])
    panels[0].set_ylim(len(costs) - 0.4, -0.6)
    panels[0].legend(loc="lower right", frameon=False, fontsize=9)
    save_png(figure, path)


def _bars(
    panel: Axes, title: str, values: Sequence[float | None], limits: Sequence[float | None] = ()
) -> None:
    """Draw bars that begin at 1 (as much as SDPA), and their limits."""
    for row, value in enumerate(values):
        if value is not None:
            panel.barh(row, value - 1, left=1, height=0.62, color=BLUE)
            panel.annotate(
                f"{value:.3g}" if value >= 10 else f"{value:.2f}",
                (max(value, 1), row),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=INK,
            )
    rows = [row for row, limit in enumerate(limits) if limit is not None]
    if rows:
        marked = [limit for limit in limits if limit is not None]
        panel.plot(marked, rows, "|", color=ORANGE, markersize=11, markeredgewidth=2, label="limit")
    panel.axvline(1, color=GREY, linewidth=1)
    panel.margins(x=0.14)
    panel.set_title(title, color=INK, fontsize=11)
    plain(panel, grid="x")
