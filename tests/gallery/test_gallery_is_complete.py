"""docs/schemes has what the registry asks for, no less and no more, and what it says is true."""

import ast
import re
from pathlib import Path

import pytest
import yaml
from matplotlib.image import imread

import xcope
from gallery.examples import example, named
from gallery.pages import pages
from gallery.pictures import contact_sheet, draw
from xcope.positions import parse

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NAMES = sorted(xcope.schemes())


@pytest.fixture(scope="module")
def generated():
    return pages(ROOT)


def page_of(name):
    return (DOCS / "schemes" / f"{name}.md").read_text()


@pytest.mark.parametrize("file", [*(f"{name}.md" for name in NAMES), "README.md"])
def test_the_page_is_what_the_gallery_writes_now(generated, file):
    committed = DOCS / "schemes" / file
    assert committed.is_file(), "python scripts/gallery.py writes it"
    assert committed.read_text() == generated[file], "python scripts/gallery.py --pages renews it"


def test_there_is_a_picture_for_each_scheme_and_nothing_stale():
    wanted = {f"{name}{end}" for name in NAMES for end in (".md", ".png")}
    wanted |= {"README.md", "contact-sheet.png"}
    assert {file.name for file in (DOCS / "schemes").iterdir()} == wanted
    for file in (DOCS / "schemes").glob("*.png"):
        assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", [*NAMES, "contact-sheet"])
def test_the_picture_is_what_the_gallery_draws_now(tmp_path, name):
    if name == "contact-sheet":
        contact_sheet(named((), ROOT / "configs"), tmp_path / "now.png")
    else:
        draw(example(name, ROOT / "configs"), tmp_path / "now.png")
    committed, now = imread(DOCS / "schemes" / f"{name}.png"), imread(tmp_path / "now.png")
    assert committed.shape == now.shape, "python scripts/gallery.py renews it"
    # other processors round otherwise, which shades a pixel here and there
    changed = abs(committed - now) > 0.05
    assert changed.mean() < 1e-4, "python scripts/gallery.py renews it"


@pytest.mark.parametrize("file", sorted(DOCS.rglob("*.md")), ids=lambda file: file.name)
def test_what_is_linked_exists(file):
    links = re.findall(r"\]\(((?!http)[^)#]+)(?:#[\w-]+)?\)", file.read_text())
    for link in links:
        assert (file.parent / link).exists(), link


@pytest.mark.parametrize("name", NAMES)
def test_what_the_page_says_switches_the_scheme_on(name):
    text = page_of(name)
    (lines,) = re.findall(r"```python\n(.*?)\n```", text, flags=re.DOTALL)
    (block,) = re.findall(r"```yaml\n(.*?)\n```", text, flags=re.DOTALL)
    plan = parse(yaml.safe_load(block)["model"]["position"])
    first, *switches = map(ast.unparse, ast.parse(lines).body)
    assert first == "from xcope import Decoder"
    assert switches
    for line in switches:
        assert eval(line, {"Decoder": xcope.Decoder}).plan == plan, line


@pytest.mark.parametrize("name", NAMES)
def test_each_option_has_its_row_with_a_meaning(name):
    rows = page_of(name).partition("## Options")[2].partition("## Cost")[0].splitlines()
    cells = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows[4:] if row
    ]
    options = xcope.schemes()[name].options()
    assert {row[0].strip("`") for row in cells} == set(options)
    assert all(row[4] for row in cells)
