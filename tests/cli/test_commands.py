"""xcope config, schemes, tasks, trace, completion and --version, as they are typed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import yaml

import xcope
from xcope import cli
from xcope.cli import _complete
from xcope.config import build_task, load_config
from xcope.config.compose import LIBRARY
from xcope.inspect import trace
from xcope.tasks import tasks
from xcope.training import load_run, train

REPO = Path(__file__).parents[2]
TINY = {
    "model": {
        "dim": 16, "depth": 2, "heads": 2,
        "position": {"heads": [{"name": "cope", "max_pos": 4}, "rotary"]},
    },
    "task": {"name": "selective_copy", "tokens": 3, "blanks": 9},
    "train": {"steps": 1, "batch_size": 4, "device": "cpu"},
    "evaluate": {"batches": 1, "batch_size": 4},
}  # fmt: skip


@pytest.fixture
def typed(capfd, monkeypatch, tmp_path):
    """``typed("config", "x.yaml")``: code, stdout and stderr of ``xcope config x.yaml``."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        capfd.readouterr()
        code = cli.run(cli.xcope, [*map(str, arguments)], prog="xcope")
        return (code, *capfd.readouterr())

    return call


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a tiny run with two schemes."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    train(load_config(folder / "tiny.yaml"), folder / "run")
    return folder / "run"


# -- packaged configs and xcope config ---------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("configs/quickstart.yaml", []),
        ("configs/quickstart.yaml", ["sweep=null", "model.position={name: cope, max_pos: 8}"]),
        ("configs/quickstart.yaml", ["sweep.model.position=[none]", "tune.train.lr=[0.1, 0.2]"]),
        ("configs/experiments/text.yaml", ["train.lr=3e-4", "task.length=64", "out='a #1'"]),
    ],
)
def test_a_resolved_config_loads_back_to_the_same(typed, tmp_path, name, overrides):
    code, out, err = typed("config", name, *overrides)
    assert code == 0
    told = f"xcope: there is no {name} here; the one that comes with xcope is used: "
    assert err == f"{told}{LIBRARY.parent / name}\n"
    (tmp_path / "again.yaml").write_text(out)
    before = load_config(LIBRARY.parent / name, overrides, sweep=True, data=False)
    assert load_config(tmp_path / "again.yaml", sweep=True, data=False) == before


def test_every_value_says_where_it_comes_from(typed, tmp_path):
    (tmp_path / "own.yaml").write_text(
        "extends: configs/models/tiny.yaml\nmodel:\n  position: cope\ntask: copy\n"
    )
    code, out, err = typed("config", "own.yaml", "train.lr=0.5", "model.heads=2")
    assert (code, err) == (0, "")
    lines = [line.strip() for line in out.splitlines()]
    said = dict(line.split("  # ") for line in lines if "  # " in line)
    source = (LIBRARY / "models" / "tiny.yaml").read_text().splitlines()
    dim = next(number for number, line in enumerate(source, 1) if "dim:" in line)
    assert said["dim: 64"] == f"{LIBRARY}/models/tiny.yaml:{dim}"
    assert said["position: cope"] == "own.yaml:3"
    assert said["name: copy"] == "own.yaml:4"
    assert said["lr: 0.5"] == said["heads: 2"] == "command line"
    assert said["seed: 0"] == "default"
    assert said["dim_head: 32"] == "dim / heads"
    assert "# length: 16  (the task's default)" in out


def test_a_file_at_hand_is_taken_before_the_packaged_one(typed, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.yaml").write_text(yaml.safe_dump(TINY))
    code, out, err = typed("config", "configs/quickstart.yaml")
    assert (code, err) == (0, "")
    assert "dim: 16  # configs/quickstart.yaml:" in out


# -- schemes and tasks -------------------------------------------------------------------------


@pytest.mark.parametrize("name", xcope.schemes())
def test_a_scheme_tells_its_formula_paper_options_and_what_it_goes_with(typed, name):
    code, out, err = typed("schemes", name)
    kind = xcope.schemes()[name]
    assert (code, err) == (0, "")
    assert kind.formula in out
    assert kind.title in out
    for option, field in kind.options().items():
        default = json.dumps(field.default) if isinstance(field.default, bool | None) else None
        line = next(line for line in out.splitlines() if line.startswith(f"{option} "))
        assert (default or str(field.default).strip("()").split(",")[0]) in line
    assert "At the same heads it goes with" in out or name == "none"
    assert f"xcope train configs/quickstart.yaml sweep=null model.position={name}" in out


def test_what_a_scheme_is_said_to_go_with_it_goes_with(typed):
    for line in typed("schemes", "cope")[1].split("At the same heads it goes with ")[1].split("."):
        for other in line.replace("\n", " ").split(", "):
            if other in xcope.schemes():
                xcope.positions.parse([other, "cope"])
        break
    assert "Not with pope: CoPE's table is as wide as a head" in typed("schemes", "cope")[1]


@pytest.mark.parametrize("name", tasks())
def test_a_task_tells_its_options_and_splits(typed, name):
    code, out, err = typed("tasks", name)
    assert (code, err) == (0, "")
    assert f"headline metric  {tasks()[name].metric}" in out
    for option in tasks()[name].options():
        assert any(line.startswith(f"{option} ") for line in out.splitlines())


# -- trace -------------------------------------------------------------------------------------


def test_a_trace_prints_what_each_query_attends_to(typed, run):
    code, out, _ = typed("trace", run, "--text", ". 3 . | 3", "--layer", 1)
    assert code == 0
    model = load_run(run)[1]
    task = build_task(load_run(run)[0])
    layer = trace(model, numpy.array(task.encode(". 3 . | 3"))).layers[1]
    assert "layer 1, head 0: cope(max_pos=4)" in out
    assert "layer 1, head 1: rotary" in out
    assert "layer 0" not in out
    cope, rotary = out.split("layer 1, head 1")
    assert "gates (widest open)" in cope
    assert "gates" not in rotary
    last = cope.strip().splitlines()[-1]
    share, key = layer.attention[0, 0, -1].max(0)
    assert last.startswith("4 3 ")
    assert f" {layer.positions[0, 0, -1].max():.1f} " in last
    assert f"{key.item()} " in last
    assert f"{share.item():.2f}".removeprefix("0") in last


def test_a_trace_is_written_for_numpy_and_as_json(typed, run, tmp_path):
    assert typed("trace", run, "--sample", "sparse", "--out", "deep/t.npz")[0] == 0
    assert typed("trace", run, "--sample", "sparse", "--head", 0, "--out", "t.json")[0] == 0
    arrays = numpy.load(tmp_path / "deep/t.npz", allow_pickle=False)
    told = json.loads((tmp_path / "t.json").read_text())
    assert list(arrays["labels"]) == told["labels"]
    assert arrays["ids"].tolist() == told["ids"]
    assert [(one["layer"], one["head"]) for one in told["heads"]] == [(0, 0), (1, 0)]
    for one in told["heads"]:
        for name in ("attention", "gates", "positions", "logits"):
            matrix = arrays[f"layer{one['layer']}.head0.{name}"]
            assert numpy.allclose(matrix, one[name], atol=1e-5)
    assert "layer0.head1.gates" not in arrays
    attention = arrays["layer0.head1.attention"]
    assert numpy.allclose(attention.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layer", 2], "--layer 2: the model has 0 to 1"),
        (["--head", -1], "--head -1: the model has 0 to 1"),
        (["--out", "t.csv"], "--out t.csv: a name that ends in .json or .npz is needed"),
        (["--text", ".", "--sample", "sparse"], "not allowed with"),
    ],
)
def test_what_cannot_be_traced_is_one_line(typed, run, arguments, words):
    code, out, err = typed("trace", run, *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


# -- version -----------------------------------------------------------------------------------


def test_the_version_tells_a_bug_report_what_it_needs(typed):
    assert typed("--version") == (0, f"xcope {xcope.__version__}\n", "")
    code, out, _ = typed("--version", "--verbose")
    assert code == 0
    for words in (
        "Python",
        "torch 2",
        "x-transformers 2",
        "numba",
        "triton",
        "cores",
        "GiB",
        "cpu",
    ):
        assert words in out
    assert "transformers" in out.split("\nhf ")[1]
    assert str(Path(xcope.__file__).parent) in out
    assert typed("--verbose", "schemes")[0] == 2


# -- completion --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["tra"], ["train", "trace"]),
        (["train", "--over"], ["--overwrite"]),
        (["train", "configs/quick"], ["configs/quickstart.yaml"]),
        (["train", "x.yaml", "model.posi"], ["model.position="]),
        (["train", "x.yaml", "train.ste"], ["train.steps="]),
        (["train", "x.yaml", "task.spars"], ["task.sparse_blanks="]),
        (["train", "x.yaml", "model.position=cope_r"], ["model.position=cope_rotary"]),
        (["train", "x.yaml", "task=par"], ["task=parity"]),
        (["train", "x.yaml", "train.precision=b"], ["train.precision=bf16"]),
        (["schemes", "rotary_y"], ["rotary_yarn"]),
        (["tasks", "coun"], ["counting"]),
        (["gates", "runs/x", "--device", "cu"], ["cuda"]),
    ],
)  # fmt: skip
def test_a_shell_completes(words, completed, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMP_WORDS", "\n".join(["xcope", *words]))
    monkeypatch.setenv("COMP_CWORD", words[-1])
    assert _complete.complete("fish_complete") == 0
    lines = capsys.readouterr().out.splitlines()
    found = [
        line.split("\t")[0].removeprefix("plain,") for line in lines if line.startswith("plain")
    ]
    assert sorted(found) == sorted(completed)


def test_bash_completes_values_after_an_equals_sign(tmp_path):
    program = tmp_path / "xcope"
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m xcope \"$@\"\n")
    program.chmod(0o755)
    script = """
eval "$(xcope completion bash)"
compopt() { printf "%s " compopt "$@"; }
COMP_WORDS=(xcope train x.yaml model.position = cope_r); COMP_CWORD=5
_xcope_completion xcope; echo "${COMPREPLY[@]}"
COMPREPLY=(); COMP_WORDS=(xcope train x.yaml model.posi); COMP_CWORD=3
_xcope_completion xcope; echo "${COMPREPLY[@]}"
"""
    ended = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPO), "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.splitlines() == ["cope_rotary", "compopt -o nospace model.position="]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_code_for_a_shell_is_printed(typed, shell):
    code, out, _ = typed("completion", shell)
    assert code == 0
    assert f"_XCOPE_COMPLETE={shell}_complete" in out
