"""What scripts/docs.py writes is what the repository has, and says what the code does."""

import json
import re
import runpy
import shutil

import click
import pytest
import torch
from code_blocks import ROOT
from matplotlib.image import imread

from generate import walk
from generate.commands import commands_page
from generate.keys import config_page
from generate.notebooks import run
from xcope import cli
from xcope.config.schema import SECTIONS, Config, TuneConfig
from xcope.modules import decoder_flags, wrapper_flags
from xcope.ops.cope import positions
from xcope.positions import schemes
from xcope.tasks import tasks

pytestmark = pytest.mark.long

DOCS = ROOT / "docs"
PAGES = runpy.run_path(str(ROOT / "scripts/docs.py"))["pages"]()


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_the_code_gives_now(name):
    assert (DOCS / name).read_text() == PAGES[name], "python scripts/docs.py renews it"


# -- keys --------------------------------------------------------------------------------------


def rows(page, head):
    """First cells of the first table below a heading."""
    below = re.split(r"^#", page.split(f"\n{head}\n")[1], flags=re.MULTILINE)[0]
    return re.findall(r"^\| `([^`]+)` \|", below, flags=re.MULTILINE)


def test_every_key_of_every_section_has_its_row():
    page = config_page()
    for name, section in SECTIONS.items():
        assert rows(page, f"## `{name}`") == list(section.model_fields)
    assert rows(page, "## `tune`") == list(TuneConfig.model_fields)
    keys = {field.alias or key for key, field in Config.model_fields.items()}
    assert {*rows(page, "## Beside the sections")} == {"extends", *keys - SECTIONS.keys()}
    for name, task in tasks().items():
        assert {*rows(page, f"### `{name}`")} == {*task.options()}
    for line in page.splitlines():
        if line.startswith("| `"):
            assert all(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]), line


def test_every_flag_of_a_model_is_named():
    named = {*re.findall(r"`(\w+)`", config_page())}
    flags = decoder_flags() | wrapper_flags()
    twins = {flag for flag in flags if flag.removeprefix("cross_") in flags - {flag}}
    assert flags - named - twins == {"attn_layers", "num_tokens"}
    assert len(schemes()) <= len(re.findall(r"schemes/\w+\.md", config_page())) + 4


# -- commands ----------------------------------------------------------------------------------


def walked(group, ctx, path="xcope"):
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if isinstance(command, click.Group):
            yield from walked(command, ctx, f"{path} {name}")
        yield f"{path} {name}", command


def test_every_command_with_every_option_has_its_place():
    page = commands_page()
    for path, command in walked(cli.xcope, click.Context(cli.xcope)):
        below = re.split(r"^##", page.split(f" `{path}`\n")[1], flags=re.MULTILINE)[0]
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert any(f"`{name}" in below or f", {name}" in below for name in option.opts), (
                    path
                )


# -- pictures of the walk ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def walked_tiles():
    return walk.recorded(walk.example())


def test_forward_goes_from_the_diagonal_to_the_start_and_backward_the_other_way(walked_tiles):
    for steps, sign in ((walked_tiles.forward_steps, -1), (walked_tiles.backward_steps, 1)):
        by_rows = {}
        for step in steps:
            by_rows.setdefault(step.tile.i0, []).append(step.tile.j0)
        assert list(by_rows) == [0, 8, 16, 24]
        for i0, starts in by_rows.items():
            assert starts == sorted(range(0, i0 + 1, 8), reverse=sign < 0)


def test_what_is_carried_in_the_pictures_are_the_positions_of_the_definition(walked_tiles):
    inputs = walk.example()
    logits = inputs.scale * (inputs.q @ inputs.k.mT)
    seen = torch.ones(walk.N, walk.N).tril().bool()
    counted = positions(logits.masked_fill(~seen, -torch.inf).sigmoid(), 10**6)[0, 0]
    some_plain = 0
    for step in walked_tiles.forward_steps:
        truth = counted[step.tile.i0 : step.tile.i1, step.tile.j0]
        if step.counted:
            torch.testing.assert_close(step.carried, truth)
        else:
            some_plain += 1
            behind = counted[step.tile.i0 : step.tile.i1, step.tile.j1]
            assert (behind >= walk.MAX_POS - 1).all()
    assert some_plain == 3
    for step in walked_tiles.backward_steps:
        if step.counted and step.tile.j1 < step.tile.i1:
            behind = counted[step.tile.i0 : step.tile.i1, step.tile.j1]
            torch.testing.assert_close(step.carried, behind)


def test_the_pictures_are_what_is_drawn_now(tmp_path):
    for drawn in walk.write_pictures(tmp_path):
        committed, now = imread(DOCS / "images" / drawn.name), imread(drawn)
        assert committed.shape == now.shape, "python scripts/docs.py renews it"
        assert (abs(committed - now) > 0.05).mean() < 1e-4, "python scripts/docs.py renews it"


def test_pictures_are_small_and_used():
    pages = [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]
    text = "".join(page.read_text() for page in pages)
    for picture in (DOCS / "images").iterdir():
        assert picture.stat().st_size < 200_000, picture
        assert picture.name in text, f"{picture} is shown nowhere"


# -- notebooks ---------------------------------------------------------------------------------

NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def printed(book):
    outputs = [output for cell in book["cells"] for output in cell.get("outputs", ())]
    return "".join("".join(output.get("text", "")) for output in outputs)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_the_top_and_gives_what_it_shows(notebook, tmp_path, monkeypatch):
    shutil.copy(notebook, tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    now = run(tmp_path / notebook.name, tmp_path / "out.ipynb")
    committed = json.loads(notebook.read_text())
    cells = [cell for cell in committed["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells), "commit it with its outputs"
    assert [cell["source"] for cell in now["cells"] if cell["cell_type"] == "code"] == [
        "".join(cell["source"]) for cell in cells
    ]
    kinds = [[output["output_type"] for output in cell["outputs"]] for cell in cells]
    assert kinds == [
        [output["output_type"] for output in cell["outputs"]]
        for cell in now["cells"]
        if cell["cell_type"] == "code"
    ]
    assert notebook.stat().st_size < 200_000
    for claim in CLAIMS[notebook.stem]:
        claim(printed(now))
        claim(printed(committed))


def errors_of(text):
    """Scheme → the numbers of its line."""
    found = re.findall(r"^(rotary|rotary and CoPE|cope|CoPE)((?:\s+[\d.]+)+)$", text, re.MULTILINE)
    return {name.lower(): [float(number) for number in row.split()] for name, row in found}


def cope_carries_over(text):
    """Errors in distribution, dense, sparse; or at 1, 2 and 4 times the length.

    How small those of the last are is a matter of rounding, so short is the training.
    """
    errors = errors_of(text)
    assert max(errors["cope"][:2]) < 5
    assert min(errors["rotary"][1:]) > 15
    assert errors["cope"][2] < 0.5 * errors["rotary"][2]


def nothing_changes_at_first(text):
    (difference,) = re.findall(r"largest difference: (\S+)", text)
    assert float(difference) < 1e-5


CLAIMS = {
    "hugging_face": [cope_carries_over, nothing_changes_at_first],
    "swap_schemes": [cope_carries_over],
}
