"""What the README said and the docs say is true: the added scheme works, tables list what there is.

That every block of code works is tried in ``tests/docs``.
"""

import pathlib
import re

import pytest
import torch
import yaml

import xcope
from xcope.modules import decoder_flags, wrapper_flags
from xcope.positions import registry
from xcope.tasks import registry as task_registry
from xcope.tasks import tasks

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXTEND = (ROOT / "docs/extend.md").read_text()
DECODERS = (ROOT / "docs/decoders.md").read_text()
TRAIN = (ROOT / "docs/train.md").read_text()


def test_the_added_scheme_and_the_added_task_work(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "_SCHEMES", dict(registry._SCHEMES))
    monkeypatch.setattr(task_registry, "_TASKS", dict(task_registry._TASKS))
    python = re.findall(r"```python\n(.*?)```", EXTEND, flags=re.DOTALL)
    for number, block in enumerate(python[:2]):
        assert block.startswith(("# recency.py", "# repeat.py")[number])
        exec(compile(block, f"extend.md, block {number}", "exec"), {"__name__": f"block{number}"})
    model = xcope.TransformerWrapper(
        num_tokens=9,
        max_seq_len=8,
        attn_layers=xcope.Decoder(dim=16, depth=1, heads=2, position="recency", recency_size=4.0),
    )
    pos = torch.arange(5)
    bias = model.attn_layers.rel_pos.dense(pos[4:], pos)
    assert bias[:, 0].tolist() == [[-1.0, -0.75, -0.5, -0.25, 0.0]] * 2
    assert model(torch.randint(9, (1, 12))).shape == (1, 12, 9)
    repeat = tasks()["repeat"](length=3)
    batch = repeat.batch("longer", 2, seed=0, index=0)
    word, again = batch.tokens.split(6, dim=1)
    assert torch.equal(word, again)
    scored = batch.targets >= 0
    assert scored.sum(1).tolist() == [6, 6]
    assert torch.equal(batch.targets[scored].view(2, 6), word)


def rows(page, header):
    """Cells of the table whose first header cell is ``header``."""
    table = page.split(f"\n| {header} |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]


def test_every_kind_of_position_that_is_listed_works():
    for cells in rows(DECODERS, "`position` | meaning"):
        for code in re.findall(r"`([^`]+)`", cells[0]):
            position = yaml.safe_load(code)
            xcope.Decoder(dim=32, depth=2, heads=2, attn_dim_head=16, position=position)


def test_the_flags_exist():
    known = decoder_flags() | wrapper_flags() | {"absolute_l2norm"}
    for ours, theirs, _ in rows(DECODERS, "flag"):
        for flag in re.findall(r"`(\w+)`", ours + theirs):
            assert flag in known, flag


def test_every_option_of_cope_has_its_row():
    listed = {flag for row in rows(DECODERS, "flag") for flag in re.findall(r"`(\w+)`", row[0])}
    assert {f"cope_{option}" for option in xcope.schemes()["cope"].options()} <= listed


def test_the_task_table_is_the_registry():
    assert {row[0].strip("`") for row in rows(TRAIN, "task")} == set(tasks())


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(((?!http)[^)]+)\)", README))))
def test_linked_files_exist(path):
    assert (ROOT / path).exists()


def test_the_readme_is_short_and_names_the_commands():
    assert len(README.splitlines()) <= 120
    for said in ("./scripts/quickstart", "./scripts/test", "2602.05258", "not on PyPI"):
        assert said in README
    assert README.count("![") == 1
