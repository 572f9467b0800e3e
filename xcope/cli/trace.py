"""``xcope trace``: what the attention of a trained model computes on a text, in numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xcope import cli
from xcope.cli import _show, _traced
from xcope.errors import FlagError

if TYPE_CHECKING:
    from torch import Tensor

    from xcope.inspect import LayerTrace, Trace

EXAMPLES = """
xcope trace runs/x
xcope trace runs/copy --text ". 3 . 7 | 3 7" --layer 0 --head 1
xcope trace runs/x --sample sparse --index 3 --out trace.npz
xcope trace runs/x --layer 1 --out layer1.json
"""
KINDS = (".json", ".npz")


@cli.command(EXAMPLES)
@click.argument("run", type=cli.RUN)
@_traced.reading_options
@click.option("--layer", type=int, help="only this layer of attention, counted from 0")
@click.option("--head", type=int, help="only this head, counted from 0")
@click.option(
    "--out",
    type=cli.PATH,
    metavar="FILE",
    help="write all matrices (queries × keys) here instead: .npz for NumPy, or .json",
)
@cli.device_option
@cli.trust_option
def command(
    run: Path, layer: int | None, head: int | None, out: Path | None, device: str, **read: Any
) -> None:
    """Print what attention does on a text: for each head and query, to which keys it attends, and
    which its gates count.

    RUN is the folder of a run. What is written has logits, attention and, where a scheme has them,
    bias, gates and positions of each head; from Python: xcope.inspect.trace.
    """
    if out is not None and out.suffix not in KINDS:
        raise FlagError("out", f"--out {out}: a name that ends in {' or '.join(KINDS)} is needed")
    found, title = _traced.traced(run, device, **read)
    chosen = list(heads(found, layer, head))
    if out is None:
        print(title)
        for index, one in chosen:
            print(f"\nlayer {index}, head {one}: {found.layers[index].schemes[one]}")
            print(table(found, found.layers[index], one))
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    write(out, found, chosen)
    print(f"Written: {out}")


def heads(found: Trace, layer: int | None, head: int | None) -> Iterator[tuple[int, int]]:
    """Layer and head of all that were asked for.

    Raises:
        FlagError: there is no such layer or head.
    """
    for flag, given, most in (
        ("layer", layer, len(found.layers)),
        ("head", head, len(found.layers[0].schemes)),
    ):
        if given is not None and not 0 <= given < most:
            raise FlagError(flag, f"--{flag} {given}: the model has 0 to {most - 1}")
    for index, one in enumerate(found.layers):
        if layer in (None, index):
            yield from ((index, h) for h in range(len(one.schemes)) if head in (None, h))


def table(found: Trace, layer: LayerTrace, head: int) -> str:
    """A line for each query."""
    from xcope.inspect.labels import visible

    keys = [visible(label) for label in found.key_labels()]
    attention = layer.attention[0, head]
    first = len(keys) - len(attention)
    gates = None if layer.gates is None else layer.gates[0, head]
    if gates is not None and gates.isnan().all():
        gates = None
    positions = None if gates is None or layer.positions is None else layer.positions[0, head]
    columns = ["query", "attends to (share)"]
    if gates is not None:
        columns[1:1] = ["counts"] * (positions is not None)
        columns.append("gates (widest open)")
    rows = []
    for query, shares in enumerate(attention):
        place = first + query
        row = [f"{place} {keys[place]}"]
        if positions is not None:
            row.append(f"{positions[query, : place + 1].max():.1f}")
        row.append(largest(shares[: place + 1], keys))
        if gates is not None:
            row.append(largest(gates[query, : place + 1], keys))
        rows.append(row)
    return _show.table(columns, rows)


def largest(values: Tensor, keys: list[str], most: int = 3) -> str:
    """``3 | .81, 0 a .12``: the keys with the largest values, those near 0 left out."""
    top = values.topk(min(most, len(values)))
    return ", ".join(
        f"{key} {keys[key]} {f'{value:.2f}'.removeprefix('0')}"
        for value, key in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        if value >= 0.005
    )


def write(out: Path, found: Trace, chosen: list[tuple[int, int]]) -> None:
    """Write the matrices of the chosen heads, for NumPy or as JSON."""
    labels = list(found.key_labels())
    if out.suffix == ".npz":
        import numpy

        arrays: dict[str, Any] = {
            f"layer{layer}.head{head}.{name}": matrix.numpy()
            for layer, head in chosen
            for name, matrix in matrices(found.layers[layer], head).items()
        }
        numpy.savez_compressed(
            out, ids=found.ids[0].numpy(), labels=numpy.array(labels, dtype=str), **arrays
        )
        return
    told = [
        {"layer": layer, "head": head, "scheme": found.layers[layer].schemes[head]}
        | {name: rounded(matrix) for name, matrix in matrices(found.layers[layer], head).items()}
        for layer, head in chosen
    ]
    said = {"labels": labels, "ids": found.ids[0].tolist(), "heads": told}
    out.write_text(json.dumps(said, allow_nan=False) + "\n", encoding="utf-8")


def matrices(layer: LayerTrace, head: int) -> dict[str, Tensor]:
    """Name → (queries keys) of a head, of what it has."""
    found = {
        name: tensor[head] if tensor.ndim == 3 else tensor[0, head]
        for name, tensor in layer.named.items()
    }
    return {name: one for name, one in found.items() if not one.isnan().all()}


def rounded(matrix: Tensor) -> list[list[Any]]:
    """As JSON holds it: six digits, null for what is no number."""
    if not matrix.is_floating_point():
        rows: list[list[Any]] = matrix.tolist()
        return rows
    finite = matrix.isfinite().tolist()
    return [
        [float(f"{value:.6g}") if known else None for value, known in zip(*row, strict=True)]
        for row in zip(matrix.tolist(), finite, strict=True)
    ]
