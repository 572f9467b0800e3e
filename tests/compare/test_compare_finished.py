"""A finished comparison prints the same again, without torch, unless anything is different."""

import json
import os
import subprocess
import sys
from shutil import copytree

import pytest
from compare_runs import REPO, files

from xcope import catalogue
from xcope.compare.run import finished
from xcope.compare.run.finished import Printed
from xcope.config import load_config

AGAIN = """
import runpy, sys
for name in ("torch", "x_transformers", "accelerate", "matplotlib", "numba"):
    sys.modules[name] = None  # importing it fails
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_finished_comparison_prints_the_same_again_without_torch(made):
    before = files(made.out, "**/*.*")
    script = str(REPO / "scripts" / "compare.py")
    again = subprocess.run(
        [sys.executable, "-c", AGAIN, script, "tiny.yaml", "--jobs", "2"],
        cwd=made.config.parent,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (again.returncode, again.stdout) == (0, made.printed)
    assert again.stderr == "4 of 4 runs are complete already, and so is the report\n"
    assert files(made.out, "**/*.*") == before


@pytest.mark.parametrize(
    "change",
    [
        lambda out: (out / "report.html").unlink(),
        lambda out: (out / "results.csv").write_text("mine"),
        lambda out: (out / "runs" / "none-seed0" / "results.json").write_text("{}"),
        lambda out: (out / "runs" / "another").mkdir() or (out / "runs/another/x").write_text(""),
        lambda out: (out / finished.NAME).write_text("{"),
    ],
)
def test_a_folder_that_has_changed_is_read_again(made, tmp_path, change):
    out = copytree(made.out, tmp_path / "out")
    key = json.loads((out / finished.NAME).read_text())["key"]
    assert finished.printed(out, key) == Printed(4, made.printed)
    change(out)
    assert finished.printed(out, key) is None


def test_another_question_has_another_key(made, tmp_path, monkeypatch):
    def key(*overrides: str, **asked: object) -> str | None:
        config = load_config(made.config, overrides, sweep=True, build=False)
        return finished.key(config, asked)

    monkeypatch.setattr(catalogue, "read", catalogue._read)
    usual = key()
    assert usual == key() is not None
    file = tmp_path / "theirs.json"
    file.write_text("one")
    named = key(f"train.init_from={file}")
    file.write_text("other")
    keys = [
        usual,
        named,
        key(f"train.init_from={file}"),
        key("evaluate.seed=5"),
        key(show=["loss"]),
    ]
    package = copytree(REPO / "xcope" / "compare" / "report" / "templates", tmp_path / "package")
    monkeypatch.setattr(catalogue, "FOLDER", package)
    keys.append(key())
    next(package.glob("*.jinja")).write_text("another page")
    keys.append(key())
    assert len({*keys}) == len(keys)
    monkeypatch.setattr(catalogue, "read", lambda: None)  # plugins are about
    assert key() is None
    assert finished.printed(made.out, None) is None
