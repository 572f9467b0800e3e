"""What the schemes cost as CSV, a picture and a README that says how, in one folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from xcope.benchmark.schemes.costs import MEMORY_LIMIT, Cost
from xcope.benchmark.schemes.plots import plot_costs
from xcope.benchmark.schemes.workloads import DIM, DIM_HEAD, FULL, HEADS, Scale
from xcope.benchmark.tables import QUICK_RUN, machine, table, write_csv


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
    """schemes.csv, schemes.png, README.md."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(
        folder / "schemes.csv",
        (
            *("scheme", "time_over_sdpa", "time_limit", "memory_over_sdpa", "memory_limit"),
            *("x_transformers_over_ours", "x_transformers"),
        ),
        (
            (
                *(c.scheme, f"{c.time:.3f}", c.time_limit, f"{c.memory:.3f}", MEMORY_LIMIT),
                *(c.upstream and f"{c.upstream:.3f}", c.upstream_how),
            )
            for c in measured.costs
        ),
    )
    plot_costs(measured.costs, folder / "schemes.png")
    (folder / "README.md").write_text(readme(measured), encoding="utf-8")


def readme(measured: Measured) -> str:
    """The report as Markdown."""
    return "\n\n".join((*_head(measured), *_table(measured))) + "\n"


def _head(measured: Measured) -> Iterator[str]:
    n = measured.scale.n
    yield "# What every scheme costs on a CPU"
    yield f"```bash\n{measured.command}\n```"
    yield machine(measured.seconds)
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
        f"it. Forgetting attention also projects embeddings (1 {n} {DIM}) to its gates; schemes of "
        "the input also add their vectors to such embeddings."
    )
    yield (
        "**x-transformers over ours**: forward and backward of whole models that have one layer "
        f"of attention and no feed-forward (dim {DIM}, projections, normalisation and residual "
        "included) with the same flags and weights, gradients to all parameters. *flash*: its "
        "`attn_flash=True`, to which it hands a bias written out as (h n n); *n×n*: it "
        "refuses flash attention for the scheme."
    )


def _table(measured: Measured) -> Iterator[str]:
    if measured.scale != FULL:
        yield QUICK_RUN
    head = (
        *("", "time over SDPA", "limit", "memory over SDPA", "limit", ""),
        *("x-transformers over ours", ""),
    )
    yield table(head, map(_row, measured.costs))
    yield "![What every scheme costs](schemes.png)"


def _row(cost: Cost) -> list[str]:
    limit = f"≤ {cost.time_limit:g}" if cost.time_limit else "–"
    theirs = f"{cost.upstream:.2f}" if cost.upstream else "–"
    return [
        *(cost.scheme, f"{cost.time:.2f}", limit, f"{cost.memory:.2f}", f"≤ {MEMORY_LIMIT:g}"),
        *(cost.verdict, theirs, cost.upstream_how or "–"),
    ]
