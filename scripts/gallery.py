"""Draw what each positional scheme does to attention, and write its page."""

from __future__ import annotations

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load: no traceback

import argparse
import sys
from pathlib import Path

from xcope import cli

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))  # before this folder, where `gallery` is this file
from gallery import write_pages, write_pictures  # noqa: E402

EXAMPLES = """
python scripts/gallery.py
python scripts/gallery.py --pages
python scripts/gallery.py --only cope,rotary --out /tmp/gallery
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--out", type=cli.path, default=ROOT / "docs" / "schemes")
    parser.add_argument(
        "--only",
        type=names,
        default=[],
        metavar="SCHEME,…",
        help="these schemes' pictures and pages, without the contact sheet and the README",
    )
    parser.add_argument("--pages", action="store_true", help="only the Markdown")
    return parser


def names(text: str) -> list[str]:
    """``cope,rotary`` → the two names."""
    return [name for part in text.split(",") if (name := part.strip())]


def main(args: argparse.Namespace) -> None:
    """Write the files."""
    files = write_pages(args.out, ROOT, args.only)
    if not args.pages:
        files += write_pictures(args.out, ROOT, args.only)
    print(f"Written: {len(files)} files in {args.out}")


if __name__ == "__main__":
    sys.exit(cli.run(parser(), main))
