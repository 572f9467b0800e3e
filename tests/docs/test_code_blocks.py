"""Every code block of the README, of CONTRIBUTING.md and of docs/ works as it stands."""

import contextlib
import io
import sys

import pytest
from code_blocks import ROOT, Block, Reader, blocks

from xcope import plugins, registry
from xcope.compare.report.columns import COLUMNS
from xcope.positions import registry as positions_registry
from xcope.tasks import registry as tasks_registry
from xcope.training.metrics import METRICS

PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")],
    key=lambda page: page.as_posix(),
)
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
SHOWN = {"text", "json", "csv", "toml"}
"""What is only to be looked at."""
TRIED = {"python", "yaml", "sh"}


@pytest.fixture
def reader(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(sys, "path", [*sys.path])
    registries = [
        positions_registry._SCHEMES, tasks_registry._TASKS, METRICS, COLUMNS, registry._ORIGINS
    ]  # fmt: skip
    before = [dict(one) for one in registries]
    yield Reader(tmp_path)
    for one, kept in zip(registries, before, strict=True):
        one.clear()
        one.update(kept)


def try_all(page: str, reader: Reader) -> list[Block]:
    """Try every block; returns those that were."""
    tried = []
    for block in blocks(page):
        where = f"line {block.line}: "
        assert block.language in SHOWN | TRIED, f"{where}a block needs one of {SHOWN | TRIED}"
        if block.language == "text" and not block.why:
            lines = block.text.splitlines()
            typed = [line for line in lines if line.startswith(("$ ", "python ", "pip "))]
            assert not typed, f"{where}what is typed is a block of sh"
            continue
        if block.language in SHOWN:
            continue
        if block.why:
            assert len(block.why.split()) >= 3, f"{where}not run, but why?"
            continue
        try:
            run(block, reader)
        except BaseException as error:
            error.add_note(f"the block at line {block.line}:\n{block.text}")
            raise
        tried.append(block)
    return tried


def run(block: Block, reader: Reader) -> None:
    if block.language == "sh":
        reader.type(block.text)
    elif block.language == "yaml":
        reader.load(block)
    elif block.file:
        reader.write(block)
    else:
        code = compile(block.text, f"block at line {block.line}", "exec")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, reader.scope)
        reader.printed = printed.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_every_block_works(name, reader):
    if name == "docs/commands.md":  # its examples name files and runs of the reader's
        reader.any_run = True
        for block in blocks((ROOT / "docs/extend.md").read_text()):
            if block.file:
                reader.write(block)
    page = (ROOT / name).read_text()
    tried = try_all(page, reader)
    assert page.count("```") % 2 == 0
    assert len(tried) or not any(f"```{language}" in page for language in TRIED)


def test_what_is_said_to_be_printed_is_printed(reader):
    page = (ROOT / "docs/cope.md").read_text()
    *_, said = (block.text for block in blocks(page) if block.language == "text")
    try_all(page, reader)
    assert reader.printed == said
    assert "3 3 3" in said


BROKEN = {
    "python": "x = undefined",
    "an import": "from xcope import NoSuchThing",
    "yaml": "model: {dimm: 3}",
    "a scheme": "model: {position: ropee}",
    "a command": "xcope trian configs/quickstart.yaml",
    "an option": "xcope train configs/quickstart.yaml --epochs 3",
    "a key": "xcope compare configs/quickstart.yaml train.stepps=3",
    "a config": "xcope train configs/nowhere.yaml",
    "a run": "xcope evaluate runs/never-made",
    "a script": "python scripts/trian.py x.yaml",
    "an option of a script": "python scripts/gallery.py --onyl cope",
    "a path of tests": "./scripts/test tests/nowhere",
    "an extra": 'pip install ".[everything]"',
    "a word": "frobnicate --now",
}
LANGUAGES = {"python": "python", "an import": "python", "yaml": "yaml", "a scheme": "yaml"}


@pytest.mark.parametrize("what", BROKEN)
def test_a_block_that_does_not_work_is_found(what, reader):
    language = LANGUAGES.get(what, "sh")
    with pytest.raises(Exception):  # noqa: B017 whatever it raises, the page's test fails
        try_all(f"```{language}\n{BROKEN[what]}\n```\n", reader)


def test_a_block_without_a_language_or_a_reason_is_found(reader):
    for page in ("```\nx\n```\n", "<!-- not run: no -->\n```sh\nx\n```\n", "```text\n$ x\n```\n"):
        with pytest.raises(AssertionError):
            try_all(page, reader)
    assert try_all("<!-- not run: it needs a GPU -->\n\n```sh\nfrobnicate\n```\n", reader) == []
