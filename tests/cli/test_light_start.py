"""What needs no torch is answered without it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
DRIVER = """
import contextlib, io, json, sys
for name in ("torch", "numpy", "x_transformers", "accelerate", "matplotlib", "numba"):
    sys.modules[name] = None  # importing it fails
from xcope import cli
ended = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run(cli.xcope, arguments, prog="xcope")
    ended.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(ended))
"""
ANSWERED = [
    (["--help"], "Commands:"),
    (["--version"], "xcope 0"),
    (["train", "--help"], "--resume"),
    (["compare", "--help"], "sequence_error"),
    (["schemes"], "Contextual positions (CoPE)"),
    (["schemes", "cope"], "cope_max_pos"),
    (["tasks"], "selective_copy"),
    (["tasks", "counting"], "max_value"),
    (["completion", "bash"], "_XCOPE_COMPLETE"),
]
SWEEP = ["sweep.train.seed=[0, 1]"]
REFUSED = [
    (["schemes", "cop"], "did you mean 'cope'"),
    (["tasks", "copi"], "did you mean 'copy'"),
    (["train", "gone.yaml"], "gone.yaml: there is no such file"),
    (["train", "configs/quikstart.yaml"], "did you mean 'configs/quickstart.yaml'"),
    (["train", "broken.yaml"], "broken.yaml:2: not YAML"),
    (["train", "tiny.yaml", "trian.steps=1"], "did you mean 'train'"),
    (["train", "tiny.yaml", "train.stepz=1"], "did you mean 'steps'"),
    (["train", "tiny.yaml", "train.steps=x"], "expected a whole number of at least 1, got 'x'"),
    (["train", "tiny.yaml", "evaluate.batches=0"], "evaluate.batches"),
    (["train", "tiny.yaml", "model.position=rotery"], "did you mean 'rotary'"),
    (["train", "tiny.yaml", "model.position={name: cope, max_poss: 3}"], "did you mean 'max_pos'"),
    (["train", "tiny.yaml", "model.cope_max_poss=3"], "did you mean 'cope_max_pos'"),
    (["train", "tiny.yaml", "model.attn_flesh=true"], "did you mean 'attn_flash'"),
    (["train", "tiny.yaml", "task=copi"], "did you mean 'copy'"),
    (["train", "tiny.yaml", "task.lenght=3"], "did you mean 'length'"),
    (["compare", "tiny.yaml", "sweep.model.position=[cope, rotery]"], "did you mean 'rotary'"),
    (["compare", "tiny.yaml", "sweep.train.lrr=[1, 2]"], "did you mean 'lr'"),
    (["compare", "gone.yaml"], "gone.yaml"),
    (["compare", "tiny.yaml", *SWEEP, "--jobs", "0"], "--jobs 0: it takes at least 1"),
    (["compare", "tiny.yaml", *SWEEP, "--show", "eror"], "did you mean 'error'"),
    (["compare", "tiny.yaml", *SWEEP, "--job"], "no such option"),
    (["config", "tiny.yaml", "model.position=cop"], "did you mean 'cope'"),
    (["evaluate", "gone"], "gone is not a run folder"),
    (["sample", "gone"], "gone is not a run folder"),
    (["gates", "gone"], "gone is not a run folder"),
    (["trace", "gone"], "gone is not a run folder"),
    (["train", "--resume", "gone"], "gone is not a run folder"),
    (["train"], "name a config"),
]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The arguments → code, stdout, stderr, all of one process that cannot import torch."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "broken.yaml").write_text("model:\n  {dim: [}\n")
    (folder / "tiny.yaml").write_text(
        "extends: models/tiny.yaml\nmodel: {position: none}\ntask: copy\n"
    )
    calls = [arguments for arguments, _ in ANSWERED + REFUSED]
    process = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(calls)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    return {" ".join(call): one for call, one in zip(calls, found, strict=True)}


@pytest.mark.parametrize(("arguments", "words"), ANSWERED)
def test_what_is_known_is_printed_without_torch(ended, arguments, words):
    code, out, err = ended[" ".join(arguments)]
    assert (code, err) == (0, "")
    assert words in out


@pytest.mark.parametrize(("arguments", "words"), REFUSED)
def test_what_is_wrong_is_told_without_torch(ended, arguments, words):
    code, out, err = ended[" ".join(arguments)]
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_what_builds_models_imports_nothing_that_torch_and_x_transformers_do_not():
    code = """
import sys
import torch, x_transformers
before = {name.partition(".")[0] for name in sys.modules}
import xcope
for name in {*xcope.__all__} - {"load_run", "results"}:
    getattr(xcope, name)
new = {name.partition(".")[0] for name in sys.modules} - before
foreign = {n for n in new if n not in sys.stdlib_module_names and not n.startswith("_cython")}
print(*sorted(foreign))
"""
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(process.stdout.split()) <= {"xcope", "yaml", "_yaml", "safetensors"}
