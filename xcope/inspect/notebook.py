"""A trace in a notebook: a line for each head, the last query's tokens shaded by gate."""

from __future__ import annotations

from html import escape

from xcope.inspect.labels import visible
from xcope.inspect.summary import HeadSummary, summary
from xcope.inspect.traced import Trace

HEADS, TOKENS = 32, 40
"""What is shown at most: heads, and tokens before the last query."""
HUE = "0 114 178"


def as_html(trace: Trace, row: int = 0) -> str:
    """A small table that needs nothing from elsewhere."""
    heads = summary(trace)
    lines = "".join(_line(trace, one, row) for one in heads[:HEADS])
    left_out = len(heads) - HEADS
    more = f"<p>… and {left_out} more heads: see <code>trace.layers</code></p>" * (left_out > 0)
    texts, n = trace.ids.shape
    return (
        f"<p><b>Trace</b> of {texts} × {n} tokens, {len(trace.layers)} layers. The last tokens of "
        f"text {row} as its last query sees them, shaded by gate (in heads without CoPE by the "
        "root of attention); hold the pointer over one for its numbers.</p>"
        '<table style="font-size:12px"><thead><tr><th>layer, head</th><th>scheme</th>'
        "<th>mean gate</th><th>saturated</th><th>looks back</th><th>last query</th></tr></thead>"
        f"<tbody>{lines}</tbody></table>{more}"
    )


def _line(trace: Trace, one: HeadSummary, row: int) -> str:
    layer = trace.layers[one.layer]
    if layer.gates is None or layer.positions is None or one.mean_gate is None:
        shades, places = layer.attention[row, one.head, -1].tolist(), None
    else:
        shades = layer.gates[row, one.head, -1].tolist()
        places = layer.positions[row, one.head, -1].tolist()
    labels = trace.key_labels(row)
    spans = []
    for key in range(max(0, len(labels) - TOKENS), len(labels)):
        note, shade = f"attention {shades[key]:.3f}", shades[key] ** 0.5
        if places is not None:
            shade = shades[key]
            note = f"gate {shades[key]:.2f}, position {places[key]:.2f}"
        # 0.7: text stays readable on the darkest shade, in light and dark notebooks
        spans.append(
            f'<span title="{note}" style="background:rgb({HUE}/{0.7 * shade:.2f});'
            f'padding:0 2px;margin:1px">{escape(visible(labels[key]))}</span>'
        )
    numbers = "".join(
        f"<td>{'–' if value is None else format(value, '.2f')}</td>"
        for value in (one.mean_gate, one.saturated)
    )
    return (
        f"<tr><td>{one.layer}, {one.head}</td><td>{escape(one.scheme)}</td>{numbers}"
        f"<td>{one.distance:.1f} tokens</td>"
        f'<td style="text-align:left;font-family:monospace">{"".join(spans)}</td></tr>'
    )
