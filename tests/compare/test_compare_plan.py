"""The runs of a sweep: their names, folders and labels."""

import pytest
from compare_runs import TINY
from hypothesis import example, given
from hypothesis import strategies as st

from xcope.compare import CompareError, plan
from xcope.compare.run.plan import as_text, folder_names
from xcope.config import Config, load_config
from xcope.positions import schemes


def sweep(tmp_path, **keys) -> Config:
    file = tmp_path / "sweep.yaml"
    file.write_text(repr({**TINY, "sweep": keys}))  # flow-style YAML
    return load_config(file, sweep=True)


def test_names_tell_scheme_seed_and_what_else_is_swept(tmp_path):
    keys = {
        "model.position": ["rotary", ["absolute", "cope"]],
        "train.seed": [0, 3],
        "model.dim": [16, 32],
    }
    runs = plan(sweep(tmp_path, **keys), tmp_path / "out")
    assert [run.name for run in runs] == [
        f"{scheme}-seed{seed}-dim={dim}"
        for scheme in ("rotary", "absolute+cope")
        for seed in (0, 3)
        for dim in (16, 32)
    ]
    assert runs[0].folder == tmp_path / "out" / "runs" / "rotary-seed0-dim=16"
    assert runs[1].variant == "rotary, dim=32"
    assert runs[1].task == "selective_copy"
    assert (runs[1].scheme, runs[1].seed, runs[1].swept) == ("rotary", 0, {"model.dim": "32"})


def test_options_of_a_scheme_are_told_by_its_label_alone(tmp_path):
    runs = plan(
        sweep(tmp_path, **{"model.position.max_pos": [4, 8]} | {"model.position": ["cope"]}),
        tmp_path,
    )
    assert [run.variant for run in runs] == ["cope(max_pos=4)", "cope(max_pos=8)"]


def test_a_swept_task_is_a_part_of_the_task(tmp_path):
    keys = {"task.tokens": [2, 3], "model.position": ["none"]}
    runs = plan(sweep(tmp_path, **keys), tmp_path)
    assert [run.task for run in runs] == ["selective_copy(tokens=2)", "selective_copy(tokens=3)"]
    assert {run.variant for run in runs} == {"none"}


def test_a_config_without_a_sweep_is_refused(tmp_path):
    file = tmp_path / "one.yaml"
    file.write_text(repr({**TINY, "model": {**TINY["model"], "position": "none"}, "sweep": {}}))
    with pytest.raises(CompareError, match=r"no sweep.*xcope train"):
        plan(load_config(file, sweep=True), tmp_path)


def test_the_same_run_twice_is_refused(tmp_path):
    default = schemes()["cope"].options()["max_pos"].default
    config = sweep(tmp_path, **{"model.position": ["cope", {"name": "cope", "max_pos": default}]})
    with pytest.raises(CompareError, match="the same run twice: cope-seed0"):
        plan(config, tmp_path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            {"name": "cope", "max_pos": 32, "soft_onehot": True},
            "cope(max_pos=32, soft_onehot=true)",
        ),
        ({"name": "none"}, "none"),
        (["absolute", {"name": "cope", "max_pos": 8}], "absolute+cope(max_pos=8)"),
        (True, "true"),
        (None, "none"),
        (0.001, "0.001"),
    ],
)
def test_values_as_text(value, text):
    assert as_text(value) == text


@given(st.lists(st.text(min_size=1, max_size=300), unique=True, max_size=5))
@example(["a b", "a-b", "a(b)", "A-b"])
@example([f"{'long/' * 60}{end}" for end in "ab"])
def test_folder_names_are_different_plain_and_short(labels):
    names = folder_names(labels)
    assert len({name.lower() for name in names}) == len(labels)
    assert not any(set(name) & set("/\\\0 ()") for name in names)
    assert all(0 < len(name) < 140 for name in names)
