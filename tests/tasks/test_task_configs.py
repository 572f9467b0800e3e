"""The files under configs/tasks/ build the tasks that they are named after."""

from pathlib import Path

import pytest
import yaml

from xcope.tasks import task, tasks

FOLDER = Path(__file__).parents[2] / "configs" / "tasks"


def test_each_task_has_a_file():
    assert set(tasks()) <= {file.stem for file in FOLDER.glob("*.yaml")}


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_file_builds_its_task(file: Path):
    options = yaml.safe_load(file.read_text())["task"]
    name = options.pop("name")
    assert file.stem.startswith(name)
    one = task(name, options)
    assert set(options) <= set(one.options())
    assert one.batch("train", 2, 0, 0).tokens.shape[1] == one.seq_len("train")
    assert one.max_seq_len <= 1024, "sized for a laptop"
