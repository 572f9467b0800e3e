"""Writing the gallery into a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xcope.gallery.example import named
from xcope.gallery.pages import Facts, all_pages, measured
from xcope.gallery.pictures import contact_sheet, draw

COSTS = Path("results/schemes-cpu/schemes.csv")


def pages(root: Path, names: Sequence[str] = ()) -> dict[str, str]:
    """File name → Markdown.

    Args:
        root: of the repository, whose configs and measurements are read.
        names: of schemes; for none of them every page, and the README that lists them.

    Raises:
        FlagError: an unknown name; a scheme without a YAML file.
    """
    named(names, root / "configs")
    facts = Facts(named((), root / "configs"), measured(root / COSTS))
    return all_pages(facts, names)


def write_pages(out: Path, root: Path, names: Sequence[str] = ()) -> list[Path]:
    """Write `pages`; returns the files."""
    texts = pages(root, names)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    return [out / name for name in texts]


def write_pictures(out: Path, root: Path, names: Sequence[str] = ()) -> list[Path]:
    """Write the pictures of these schemes, or of all, and then the contact sheet; the files.

    Raises:
        FlagError: as `pages`.
    """
    examples = named(names, root / "configs")
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for one in examples:
        draw(one, out / f"{one.name}.png")
        files.append(out / f"{one.name}.png")
    if not names:
        contact_sheet(examples, out / "contact-sheet.png")
        files.append(out / "contact-sheet.png")
    return files
