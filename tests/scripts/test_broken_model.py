"""What scripts say of a run whose weights are not finite."""

import pytest
import torch
import yaml

from xcope.training import checkpoint


@pytest.fixture
def run(script, tmp_path, tiny_yaml):
    """A trained run, one of whose weights was then lost."""
    folder = tmp_path / "run"
    assert script("train", tiny_yaml, "--out", folder).code == 0
    groups, state = checkpoint.load(folder / "checkpoint", ["model", "optimizer"])
    groups["model"]["attn_layers.layers.0.1.to_q.weight"][0, 0] = torch.nan
    checkpoint.save(folder / "checkpoint", groups, state)
    return folder


@pytest.mark.parametrize("name", ["evaluate", "sample", "gates"])
def test_the_weight_is_named(script, run, name):
    ended = script(name, run)
    assert ended.code == 1
    assert "the model is broken" in ended.err
    assert "attn_layers.layers.0.1.to_q.weight holds NaN or infinity" in ended.err
    assert ended.err.count("\n") == 1


def test_a_comparison_reports_the_run_as_failed(script, run, tmp_path, tiny_yaml):
    config = yaml.safe_load(tiny_yaml.read_text()) | {"sweep": {"train.seed": [0, 1]}}
    sweep, out = tmp_path / "sweep.yaml", tmp_path / "out"
    sweep.write_text(yaml.safe_dump(config))
    assert script("compare", sweep, "--out", out, "--jobs", 1).code == 0
    # the first run is measured once more, and its weight is lost meanwhile
    first = next(path for path in (out / "runs").iterdir() if "seed0" in path.name)
    groups, state = checkpoint.load(first / "checkpoint", ["model", "optimizer"])
    groups["model"]["attn_layers.layers.0.1.to_q.weight"][0, 0] = torch.nan
    checkpoint.save(first / "checkpoint", groups, state)
    (first / "results.json").unlink()
    ended = script("compare", sweep, "--out", out, "--jobs", 1)
    assert ended.code != 0
    assert "1 of 2 runs failed" in ended.err
    assert "the model is broken: its loss on split" in ended.err
