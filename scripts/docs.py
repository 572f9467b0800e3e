"""Write what is generated in docs/, beside the schemes' pages: reference pages and pictures."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from xcope import cli

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
from generate import walk  # noqa: E402
from generate.api import api_page  # noqa: E402
from generate.commands import commands_page  # noqa: E402
from generate.keys import config_page  # noqa: E402
from generate.notebooks import run  # noqa: E402

EXAMPLES = """
python scripts/docs.py
python scripts/docs.py --notebooks
"""


def pages() -> dict[str, str]:
    """File name → Markdown."""
    return {"api.md": api_page(), "commands.md": commands_page(), "config.md": config_page()}


@cli.command(EXAMPLES)
@click.option("--out", type=cli.PATH, default=ROOT / "docs")
@click.option("--notebooks", is_flag=True, help="run the notebooks again, too")
def command(out: Path, notebooks: bool) -> None:
    """Write the API, commands and keys, and draw the tiled walk."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (out / name).write_text(text, encoding="utf-8")
    walk.write_pictures(out / "images")
    if notebooks:
        for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
            run(notebook, out / "notebooks" / notebook.name)
    print(f"Written: {out}")


if __name__ == "__main__":
    sys.exit(cli.run(command))
