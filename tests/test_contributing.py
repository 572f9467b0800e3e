"""CONTRIBUTING.md is true: what it names is there, and a commit is checked as CI checks."""

import pathlib
import re

import yaml

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def test_every_file_that_it_names_is_there():
    named = [
        name
        for name in re.findall(r"`([\w./-]+(?:\.\w+|/))`", TEXT)
        if "/" in name and "NAME" not in name
    ]
    assert len(named) > 15
    roots = (ROOT, ROOT / "xcope")
    assert [name for name in named if not any((root / name).exists() for root in roots)] == []


def test_the_picture_shows_every_package():
    picture = TEXT.split("```")[1]
    packages = {path.parent.name for path in ROOT.glob("xcope/*/__init__.py")}
    files = {path.stem for path in ROOT.glob("xcope/[!_]*.py")}
    shown = set(re.findall(r"[a-z]+", picture))
    assert (packages | files) - shown == set()


def test_a_commit_is_checked_as_ci_checks():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [hook["entry"].removeprefix(".venv/bin/") for hook in repo["hooks"]]
    script = (ROOT / "scripts/test").read_text()
    checks = script.partition("checks() {")[2].partition("}")[0].split("&&")
    wanted = [check.strip().replace(" --check", "").removesuffix(" .") for check in checks]
    assert [entry.removesuffix(" --force-exclude") for entry in entries] == wanted
