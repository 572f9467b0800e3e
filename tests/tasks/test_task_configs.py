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
    # data sets of the hub are read in tests/data, from copies
    of_hub = isinstance(options.get("corpus"), dict)
    assert file.stem.startswith(name) or of_hub
    one = task(name, options, data=not of_hub)
    assert set(options) <= set(one.options())
    assert of_hub or one.batch("train", 2, 0, 0).tokens.shape[1] == one.seq_len("train")
    assert one.max_seq_len <= 1024, "sized for a laptop"
