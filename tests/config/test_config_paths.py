"""Values that are paths: relative to the YAML file that says them, absolute once they are read."""

import os
from pathlib import Path
from typing import Annotated

import pytest

from xcope.config import ConfigError, build_task, expand_sweep, load_config, read_config
from xcope.files import IsPath, UnknownPathError, located

MODEL = "model: {dim: 16, depth: 1, heads: 2, position: none}\n"
TEXT = "words of a book " * 200


@pytest.fixture(autouse=True)
def _book(write):
    write("shared/book.txt", TEXT)
    write("shared/other.txt", TEXT.upper())


def corpus_of(path: Path, *overrides: str) -> str:
    return load_config(path, overrides).task.options["corpus"]


def test_a_path_begins_at_the_folder_of_the_file_that_says_it(write, tmp_path: Path, monkeypatch):
    write("shared/task.yaml", "task: {name: text, length: 8, corpus: book.txt}\n")
    top = write("mine/deep/top.yaml", f"extends: ../../shared/task.yaml\n{MODEL}")
    assert corpus_of(top) == str(tmp_path / "shared/book.txt")
    monkeypatch.chdir(tmp_path / "mine")
    assert corpus_of(Path("deep/top.yaml")) == str(tmp_path / "shared/book.txt")


def test_the_task_may_be_named_in_another_file_than_its_path(write, tmp_path: Path):
    write("base.yaml", f"{MODEL}task: {{name: text, length: 8}}\n")
    top = write("mine/top.yaml", "extends: ../base.yaml\ntask: {corpus: ../shared/book.txt}\n")
    assert corpus_of(top) == str(tmp_path / "shared/book.txt")


def test_on_the_command_line_it_begins_at_the_working_folder(write, tmp_path: Path):
    top = write("mine/top.yaml", f"{MODEL}task: {{name: text, length: 8, corpus: nowhere}}\n")
    assert corpus_of(top, "task.corpus=shared/book.txt") == str(tmp_path / "shared/book.txt")


def test_a_sweep_over_corpora_begins_at_its_file(write, tmp_path: Path, monkeypatch):
    top = write(
        "mine/top.yaml",
        f"{MODEL}task: {{name: text, length: 8}}\n"
        "sweep: {task.corpus: [../shared/book.txt, ../shared/other.txt]}\n",
    )
    config = load_config(top, sweep=True)
    found = [str(tmp_path / f"shared/{name}.txt") for name in ("book", "other")]
    monkeypatch.chdir("/")
    assert [run.task.options["corpus"] for run in expand_sweep(config)] == found
    assert config.sweep["task.corpus"] == found


def test_what_a_run_stores_means_the_same_from_anywhere(write, tmp_path: Path, monkeypatch):
    top = write("mine/top.yaml", f"{MODEL}task: {{name: text, length: 8, corpus: ../shared}}\n")
    config = load_config(top, ["task.glob=b*.txt"])
    run = write("run/config.yaml", config.to_yaml())
    monkeypatch.chdir("/")
    assert read_config(tmp_path / run).task == config.task


def test_home_and_variables_are_replaced(write, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("DATA", str(tmp_path / "shared"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for written in ("$DATA/book.txt", "~/shared/book.txt", str(tmp_path / "shared/book.txt")):
        top = write("mine/top.yaml", f"{MODEL}task: {{name: text, length: 8, corpus: {written}}}\n")
        assert corpus_of(top) == str(tmp_path / "shared/book.txt")


def test_an_error_names_the_path_in_full_and_the_line(write, error, tmp_path: Path):
    top = write("mine/top.yaml", f"{MODEL}task:\n  name: text\n  corpus: ../shared/bok.txt\n")
    message = str(error(top))
    assert message.startswith("mine/top.yaml:4: task.corpus: ")
    assert str(tmp_path / "shared/bok.txt") in message
    top = write("mine/top.yaml", f"{MODEL}task:\n  name: text\n  corpus: $NO_SUCH_THING/x\n")
    assert str(error(top)).startswith("mine/top.yaml:4: task.corpus: ")
    top = write("mine/top.yaml", f"{MODEL}task:\n  name: text\n  corpus: ''\n")
    assert str(error(top)).startswith("mine/top.yaml:4: task.corpus: ")


def test_a_mapping_made_in_python_begins_at_the_working_folder(tmp_path: Path):
    task = {"name": "text", "length": 8, "corpus": "shared/book.txt"}
    model = {"dim": 16, "depth": 1, "heads": 2, "position": "none"}
    made = build_task({"model": model, "task": task})
    assert made.corpus == str(tmp_path / "shared/book.txt")
    with pytest.raises(ConfigError, match=str(tmp_path / "nowhere")):
        build_task({"model": model, "task": {**task, "corpus": "nowhere"}})


def test_beyond_a_link_two_dots_are_the_parent_of_what_it_leads_to(tmp_path: Path):
    (tmp_path / "far/inner").mkdir(parents=True)
    (tmp_path / "far/data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far/inner")
    assert os.path.samefile(located("../data", tmp_path / "link"), tmp_path / "far/data")
    assert located("a/../shared", tmp_path) == tmp_path / "shared"


@pytest.mark.parametrize("text", ["gpt2", "HuggingFaceTB/SmolLM2-135M", "my_pkg.tasks"])
def test_a_name_stays_a_name_unless_there_is_such_a_file(text: str, tmp_path: Path):
    kind = IsPath(or_name=True, suffixes=(".json", ".py"), names=("bytes",))
    assert kind.located(text, tmp_path) == text
    (tmp_path / text).mkdir(parents=True)
    assert kind.located(text, tmp_path) == str(tmp_path / text)


def test_what_looks_like_a_path_is_one(tmp_path: Path):
    kind = IsPath(or_name=True, suffixes=(".json",), names=("bytes",))
    (tmp_path / "bytes").touch()
    assert kind.located("bytes", tmp_path) == "bytes"
    for text in ("mine.json", "./gpt2", "../gpt2", "."):
        assert kind.located(text, tmp_path) == str((tmp_path / text).resolve())
    with pytest.raises(UnknownPathError, match="empty"):
        IsPath().located("", tmp_path)


def test_an_annotation_is_found_inside_others():
    kind = IsPath()
    for annotation in (
        Annotated[str, kind],
        Annotated[str, kind] | None,
        list[Annotated[str, kind]] | None,
        Annotated[str | list[str] | None, "other", kind],
    ):
        assert IsPath.of(annotation) is kind
    assert IsPath.of(str | None) is None
