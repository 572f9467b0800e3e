"""The README is true: its code runs, its tables list what there is."""

import pathlib
import re

import pytest
import yaml

import xcope
from xcope.modules import decoder_flags, wrapper_flags
from xcope.positions import registry
from xcope.tasks import tasks

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_code_runs_and_the_added_scheme_works(monkeypatch):
    monkeypatch.setattr(registry, "_SCHEMES", dict(registry._SCHEMES))
    scope = {"__name__": "readme"}
    for block in PYTHON:
        exec(compile(block, "README.md", "exec"), scope)
    torch = scope["torch"]
    assert scope["text"].shape == (1, 20)
    assert scope["out"].shape == (1, 8, 100, 64)
    model = xcope.TransformerWrapper(
        num_tokens=9,
        max_seq_len=8,
        attn_layers=xcope.Decoder(dim=16, depth=1, heads=2, position="recency", recency_size=4.0),
    )
    pos = torch.arange(5)
    bias = model.attn_layers.rel_pos.dense(pos[4:], pos)
    assert bias[:, 0].tolist() == [[-1.0, -0.75, -0.5, -0.25, 0.0]] * 2
    assert model(torch.randint(9, (1, 12))).shape == (1, 12, 9)


def rows(header):
    """Cells of the table whose first header cell is ``header``."""
    table = README.split(f"\n| {header} |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]


def test_every_kind_of_position_that_is_listed_works():
    for cells in rows("`position` | meaning"):
        for code in re.findall(r"`([^`]+)`", cells[0]):
            position = yaml.safe_load(code)
            xcope.Decoder(dim=32, depth=2, heads=2, attn_dim_head=16, position=position)


def test_the_flags_exist():
    known = decoder_flags() | wrapper_flags() | {"absolute_l2norm"}
    for ours, theirs, _ in rows("flag"):
        for flag in re.findall(r"`(\w+)`", ours + theirs):
            assert flag in known, flag


def test_every_option_of_cope_has_its_row():
    listed = {flag for row in rows("flag") for flag in re.findall(r"`(\w+)`", row[0])}
    assert {f"cope_{option}" for option in xcope.schemes()["cope"].options()} <= listed


def test_the_task_table_is_the_registry():
    assert {row[0].strip("`") for row in rows("task")} == set(tasks())


@pytest.mark.parametrize("path", sorted(set(re.findall(r"configs/[\w/]+\.yaml", README))))
def test_configs_that_are_named_load(path):
    assert xcope.load_config(ROOT / path, sweep=True).task.name in tasks()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(((?!http)[^)]+)\)", README))))
def test_linked_files_exist(path):
    assert (ROOT / path).exists()
