"""The interactive page: one HTML file without a network, its numbers embedded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import escape
from importlib import resources
from typing import Any

import torch

from xcope.inspect import encode
from xcope.inspect.labels import visible
from xcope.inspect.traced import LayerTrace, Trace


def page(trace: Trace, row: int = 0, title: str = "What attention looks at") -> str:
    """HTML in which each token is a query: earlier tokens are shaded by gate, attention or bias.

    What else schemes tell of themselves (`LayerTrace.maps`) is shown under its own name. Gates are
    rounded to 1/255, positions as well, attention to at most 0.004, bias and other maps to 1/65534
    of their range.

    Args:
        row: which text of the batch.
        title: heading of the page.
    """
    labels = trace.key_labels(row)
    facts: dict[str, Any] = {
        "labels": [visible(label) for label in labels],
        "breaks": [key for key, label in enumerate(labels) if label == "\n"],
        "unseen": _unseen(trace, row),
        "queries": trace.layers[0].seen.shape[-2],
        "layers": [],
    }
    numbers: list[str] = []
    for index, layer in enumerate(trace.layers):
        heads = []
        for head in range(len(layer.schemes)):
            about: dict[str, Any] = {"scheme": layer.schemes[head], "maxPos": layer.max_pos[head]}
            for name, values, *bounds in _tables(layer, row, head):
                about[name] = bounds
                numbers.append(_script(f"{name}-{index}-{head}", "text/plain", values))
            about["maps"] = []
            for number, (name, table) in enumerate(layer.further_maps(row, head).items()):
                steps, low, high = encode.bias(table)
                about["maps"].append([name, low, high])
                packed = encode.packed(steps)
                numbers.append(_script(f"map{number}-{index}-{head}", "text/plain", packed))
            heads.append(about)
        facts["layers"].append(heads)
    # a label may hold "</script>"
    described = json.dumps(facts, ensure_ascii=True).replace("<", "\\u003c")
    parts = {
        "title": escape(title),
        "style": _asset("page.css"),
        "data": "\n".join([_script("facts", "application/json", described), *numbers]),
        "code": _asset("page.js"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], _asset("page.html"))


def _tables(layer: LayerTrace, row: int, head: int) -> Iterator[tuple[Any, ...]]:
    """Name, packed numbers and what else is needed to read them, of one head."""
    yield "attention", encode.packed(encode.attention(layer.attention[row, head]))
    if layer.bias is not None:
        bias = layer.bias[row] if layer.bias.ndim == 4 else layer.bias
        table, low, high = encode.bias(bias[head])
        if layer.counts(head) or low != 0 or high != 0:
            yield "bias", encode.packed(table), low, high
    if layer.gates is not None and layer.saturated is not None and layer.counts(head):
        yield "gates", encode.packed(encode.gates(layer.gates[row, head]))
        yield "saturated", encode.packed(encode.saturated_from(layer.saturated[row, head]))


def _unseen(trace: Trace, row: int) -> list[int]:
    """Keys that no query sees: padding."""
    seen = [layer.seen[row].flatten(0, 1).any(0) for layer in trace.layers]
    return (~torch.stack(seen).any(0)).nonzero().flatten().tolist()


def _script(name: str, kind: str, text: str) -> str:
    return f'<script type="{kind}" id="{name}">{text}</script>'


def _asset(name: str) -> str:
    return (resources.files("xcope.inspect") / name).read_text(encoding="utf-8")
