"""Photograph pages for the docs, in the chromium of this machine: a report, gates, the site."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click
from playwright.sync_api import Browser, sync_playwright

from xcope import cli

ROOT = Path(__file__).resolve().parents[1]

EXAMPLES = """
python scripts/screenshots.py
python scripts/screenshots.py report gates
"""


@dataclass(frozen=True)
class Shot:
    """A page, and the part of it that is shown.

    Args:
        page: from the folder of the repository, or of the site.
        size: width and height of the window, in CSS pixels.
        of_site: it is one of the built site.
        choose: what is chosen before, as CSS selects it.
    """

    page: str
    size: tuple[int, int]
    of_site: bool = False
    choose: tuple[str, ...] = ()


HEAD = ("#layers input >> nth=1", "#heads input >> nth=2")
SHOTS = {
    "report": Shot("runs/quickstart/report.html", (1100, 760)),
    "gates": Shot("results/selective_copy/gates.html", (1000, 560), choose=HEAD),
    "site": Shot("index.html", (1320, 760), of_site=True),
}


@cli.command(EXAMPLES)
@click.argument("names", nargs=-1, type=click.Choice(list(SHOTS)))
@click.option("--out", type=cli.PATH, default=ROOT / "docs" / "images")
@click.option("--site", type=cli.PATH, help="the built site (default: it is built)")
def command(names: tuple[str, ...], out: Path, site: Path | None) -> None:
    """Photograph pages for the docs, in the chromium of this machine."""
    wanted = {name: shot for name, shot in SHOTS.items() if name in (names or SHOTS)}
    out.mkdir(parents=True, exist_ok=True)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        raise click.UsageError("there is no chromium on the PATH; CHROMIUM=… names one")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as running:
        if site is None and any(shot.of_site for shot in wanted.values()):
            build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", folder]
            subprocess.run(build, cwd=ROOT, check=True)
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, shot in wanted.items():
            root = (site or Path(folder)) if shot.of_site else ROOT
            take(browser, shot, root, out / f"{name}.png")
            print(f"Written: {out / f'{name}.png'}")
        browser.close()


def take(browser: Browser, shot: Shot, root: Path, out: Path) -> None:
    """Open a page and photograph the window."""
    width, height = shot.size
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="light",
        reduced_motion="reduce",
    )
    page = context.new_page()
    file = root / shot.page
    if not file.is_file():
        raise click.UsageError(f"there is no {file}: run ./scripts/quickstart first")
    page.goto(file.as_uri())
    page.wait_for_load_state("networkidle")
    for chosen in shot.choose:
        page.locator(chosen).check(force=True)
    page.screenshot(path=out, animations="disabled")
    context.close()


if __name__ == "__main__":
    sys.exit(cli.run(command))
