"""``xcope gates``: what a trained model looks at, as a picture and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from xcope import cli
from xcope.cli import _traced

EXAMPLES = """
xcope gates runs/x
xcope gates runs/x --sample sparse --index 3
xcope gates runs/copy --text ". 3 . 7 | 3 7"
xcope gates runs/text --text "def f(x): return x" --out /tmp/gates
"""


@cli.command(EXAMPLES)
@click.argument("run", type=cli.RUN)
@_traced.reading_options
@click.option(
    "--out", type=cli.PATH, help="folder for gates.png and gates.html (default: RUN/gates)"
)
@cli.device_option
@cli.trust_option
def command(run: Path, out: Path | None, device: str, **read: Any) -> None:
    """Look inside a trained model: what its gates count, its positions, its attention.

    RUN is the folder of a run.
    """
    found, title = _traced.traced(run, device, **read)
    from rich.console import Console

    from xcope.inspect import page, picture, summary_table

    Console().print(summary_table(found, title))
    out = run / "gates" if out is None else out
    out.mkdir(parents=True, exist_ok=True)
    picture(found, out / "gates.png", title=title)
    written = (out / "gates.html").write_text(page(found, title=title), encoding="utf-8")
    print(f"Written: {out / 'gates.png'}, {out / 'gates.html'} ({written / 1e6:.1f} MB)")
