"""The registry: tasks are found by their file, and wrong names get the nearest right one."""

import sys
from pathlib import Path

import pytest

from xcope.errors import FlagError
from xcope.registry import discover
from xcope.tasks import Task, register, registry, task, tasks

NEW_TASK = '''
from dataclasses import dataclass
from xcope.tasks.registry import register
from xcope.tasks.words import WordTask

@register
@dataclass(frozen=True, kw_only=True)
class Echo(WordTask):
    """Nothing but its options and vocabulary."""

    name = "echo"
    paper = "-"
    metric = "error"
    times: int = 2
    words = ("hey", "ho")
    splits = ("in_distribution",)

    def seq_len(self, split):
        return self.times

    def sample(self, split, batch_size, generator):
        raise NotImplementedError
'''


def test_the_tasks_are_listed():
    assert list(tasks()) == [
        "copy", "counting", "flip_flop", "indexing", "parity", "recall", "selective_copy", "text"
    ]  # fmt: skip
    for name, kind in tasks().items():
        assert issubclass(kind, Task)
        assert kind.name == name
        assert kind.metric in {"error", "sequence_error", "bits_per_byte"}
    with pytest.raises(TypeError):
        tasks()["mine"] = Task  # type: ignore[index]


def test_a_new_file_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "_TASKS", dict(tasks()))
    package = tmp_path / "more_tasks"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "echo.py").write_text(NEW_TASK)
    monkeypatch.syspath_prepend(tmp_path)
    discover("more_tasks", [str(package)])
    for module in ("more_tasks", "more_tasks.echo"):
        monkeypatch.delitem(sys.modules, module)
    one = task("echo", {"times": 3})
    assert "echo" in tasks()
    assert one.encode("ho hey") == [1, 0]
    assert one.max_seq_len == 3
    with pytest.raises(FlagError, match="times"):
        task("echo", {"times": "3"})
    with pytest.raises(ValueError, match="two tasks are called 'echo'"):
        register(type(one))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("flipflop", "flip_flop"), ("txt", "text"), ("selective", "selective_copy")],
)
def test_an_unknown_task_gets_the_nearest(name: str, nearest: str):
    with pytest.raises(FlagError, match=f"{name!r}.*did you mean {nearest!r}") as caught:
        task(name)
    assert caught.value.flag == "task"


def test_an_unknown_option_gets_the_nearest():
    with pytest.raises(FlagError, match=r"'instruction'.*did you mean 'instructions'") as caught:
        task("flip_flop", {"instruction": 3})
    assert caught.value.flag == "instruction"
    with pytest.raises(FlagError, match=r"'p_train'.*'p_dense' and 'p_sparse'"):
        task("flip_flop", {"seq_len": 3})
