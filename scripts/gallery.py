"""Draw what each positional scheme does to attention, and write its page."""

from __future__ import annotations

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load: no traceback

import sys
from pathlib import Path

import click

from xcope import catalogue, cli
from xcope.describe import described

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "schemes"
sys.path.insert(0, str(ROOT / "docs"))  # before this folder, where `gallery` is this file
from gallery import write_pages, write_pictures  # noqa: E402

EXAMPLES = """
python scripts/gallery.py
python scripts/gallery.py --pages
python scripts/gallery.py --only cope,rotary --out /tmp/gallery
"""


@cli.command(EXAMPLES)
@click.option("--out", type=cli.PATH, default=PAGES)
@click.option(
    "--only",
    type=cli.NamesType(),
    default=[],
    metavar="SCHEME,…",
    help="these schemes' pictures and pages, without the contact sheet and the README",
)
@click.option("--pages", is_flag=True, help="only the Markdown")
def command(out: Path, only: list[str], pages: bool) -> None:
    """Draw what each positional scheme does to attention, and write its page.

    Also writes what xcope schemes and quick checks of configs read: xcope/catalogue.json.
    """
    files = write_pages(out, ROOT, only)
    if out == PAGES and not only:
        catalogue.write(described())
        files.append(catalogue.FILE)
    if not pages:
        files += write_pictures(out, ROOT, only)
    print(f"Written: {len(files)} files in {out}")


if __name__ == "__main__":
    sys.exit(cli.run(command))
