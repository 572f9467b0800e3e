"""Write what is generated in docs/, beside the schemes' pages: reference pages and pictures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
from generate import walk  # noqa: E402
from generate.keys import config_page  # noqa: E402
from generate.notebooks import run  # noqa: E402


def main(arguments: list[str] | None = None) -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--notebooks", action="store_true", help="run the notebooks again, too")
    args = parser.parse_args(arguments)
    (args.out / "images").mkdir(parents=True, exist_ok=True)
    (args.out / "config.md").write_text(config_page(), encoding="utf-8")
    walk.write_pictures(args.out / "images")
    if args.notebooks:
        for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
            run(notebook, args.out / "notebooks" / notebook.name)


if __name__ == "__main__":
    sys.exit(main())
