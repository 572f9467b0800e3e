"""scripts/gpu_check.py where there is no GPU: its quick run, its files, its exit codes."""

import csv
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from gpu.cope_cases import cope_cases
from gpu.model_cases import model_cases

from benchmarks.gpu.workloads import QUICK
from xcope.ops import cope

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as opened:
        return list(csv.DictReader(opened))


def test_a_quick_run_writes_everything(script, tmp_path):
    ended = script("gpu_check", "--quick", "--out", tmp_path)
    assert ended.code == 0, ended.err

    compared = rows(tmp_path / "correctness.csv")
    assert {row["part"] for row in compared} == {"cope", "flex", "models"}
    assert {row["dtype"] for row in compared} == {"bfloat16", "float16", "float32"}
    assert all(row["ok"] == "True" and float(row["error"]) <= float(row["bar"]) for row in compared)
    tensors = [row["tensor"] for row in compared if row["case"] == "gates from keys of their own"]
    assert tensors == ["out", "q", "k", "v", "gate_k", "pos_emb"]
    learned = {row["tensor"] for row in compared if row["part"] == "flex"}
    assert {"row", "key", "table", "slope", "offset", "warp", "shrink"} < learned

    measured = rows(tmp_path / "benchmark.csv")
    assert all(float(row["milliseconds"]) > 0 and row["error"] == "" for row in measured)
    bars = [row["limit"] for row in measured if row["limit"]]
    assert bars == ["≤ 1.5", "≤ 3", "≥ 30", "runs", "≤ 1.1", "≤ 1.1", "≤ 1.2"]
    assert [row["part"] for row in measured if row["part"] != "bars"] == ["biases"] * 4 + [
        "curve"
    ] * 4 * len(QUICK.lengths)

    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    readme = (tmp_path / "README.md").read_text()
    for part in (
        f"gpu_check.py --quick --out {tmp_path}",
        "quick run: whether it works, not what it costs",
        f"torch {torch.__version__}",
        "0 are not within the bar",
        "| packed documents | tiled | bfloat16 | ",
        "| decoder, alibi | auto | float32 | ",
        "| CoPE, train step | rotary | ",
        "(benchmark.png)",
    ):
        assert part in readme
    assert "CoPE, fwd+bwd, max_pos 64 over SDPA flash" in ended.out


def wrong(inputs):
    return 1.1 * cope.cope_attention_reference(inputs)


def refuses(*tensors, **options):
    raise NotImplementedError("not for these\nand more lines")


def needs_much(*tensors, **options):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("backend", "told"),
    [(wrong, ""), (refuses, "NotImplementedError: not for these"), (needs_much, "out of memory")],
)
def test_what_is_not_correct_ends_in_1_after_all_the_rest(
    script, tmp_path, monkeypatch, backend, told
):
    monkeypatch.setitem(cope.BACKENDS, "tiled", backend)
    ended = script("gpu_check", "--quick", "--only", "cope,bars", "--out", tmp_path)
    assert ended.code == 1
    assert "are not correct" in ended.err
    assert "Traceback" not in ended.err
    compared = rows(tmp_path / "correctness.csv")
    assert len({row["case"] for row in compared}) == len({c.name for c in cope_cases("cpu", "")})
    failed = [row for row in compared if row["backend"] == "tiled"]
    assert {row["ok"] for row in failed if row["tensor"] in ("", "out")} == {"False"}
    assert {row["failure"] for row in failed} == {told}
    assert (tmp_path / "benchmark.csv").is_file()  # the benchmark ran
    readme = (tmp_path / "README.md").read_text()
    assert f"**NOT MET** {told}".rstrip() in readme


def test_out_of_memory_in_a_contender_is_told(script, tmp_path, monkeypatch):
    calls = {"x": 0}

    def full(*args, **options):
        calls["x"] += 1
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("x_transformers.attend.Attend.forward", full)
    ended = script("gpu_check", "--quick", "--only", "curve", "--out", tmp_path)
    assert ended.code == 0
    assert calls["x"] == 1  # at longer rows it is left out
    measured = rows(tmp_path / "benchmark.csv")
    theirs = [row for row in measured if row["name"] == "CoPE, x-transformers"]
    assert [row["error"] for row in theirs] == ["CoPE, x-transformers: out of memory"]
    assert len(measured) == 3 * len(QUICK.lengths) + 1
    assert not (tmp_path / "correctness.csv").exists()


def test_it_stops_after_its_minutes_and_says_so(script, tmp_path):
    ended = script("gpu_check", "--quick", "--minutes", 0, "--only", "bars", "--out", tmp_path)
    assert ended.code == 0
    assert len(rows(tmp_path / "benchmark.csv")) == 1
    assert "Not all of it ran: stopped after 0 minutes" in (tmp_path / "README.md").read_text()


def test_it_stops_among_the_cases_too(script, tmp_path):
    ended = script("gpu_check", "--quick", "--minutes", 0, "--only", "cope", "--out", tmp_path)
    assert ended.code == 0, ended.err
    assert {row["case"] for row in rows(tmp_path / "correctness.csv")} == {"gates about 0.5"}
    assert "Not all of it ran: stopped after 0 minutes" in (tmp_path / "README.md").read_text()


def test_cases_in_processes_of_their_own(script, tmp_path):
    """The tests of one part, computed by two processes."""
    ended = script("gpu_check", "--quick", "--jobs", 2, "--only", "models", "--out", tmp_path)
    assert ended.code == 0, ended.err
    assert "Small decoders: 5 cases, 2 at a time" in ended.out
    compared = rows(tmp_path / "correctness.csv")
    assert {row["case"] for row in compared} == {case.name for case in model_cases("cpu")}
    assert {row["ok"] for row in compared} == {"True"}


def test_ctrl_c_among_the_cases_ends_it(script, tmp_path, monkeypatch):
    def stopped(*tensors, **options):
        raise KeyboardInterrupt

    monkeypatch.setitem(cope.BACKENDS, "tiled", stopped)
    ended = script("gpu_check", "--quick", "--only", "cope", "--out", tmp_path)
    assert ended.code == 130
    assert "stopped" in ended.err


def test_tests_that_cannot_be_run_are_no_success(script, tmp_path, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("a mistake in the tests")

    monkeypatch.setattr("gpu.model_cases.model_cases", broken)
    monkeypatch.setattr("gpu.cope_cases.cope_cases", broken)
    for module in ("test_on_a_gpu", "gpu.test_on_a_gpu"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    ended = script("gpu_check", "--quick", "--only", "models", "--out", tmp_path)
    assert ended.code == 1
    assert "pytest tests/gpu says why" in ended.err


def test_correctness_needs_pytest_and_says_so(script, tmp_path, user_error, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pytest" else found(name)
    )
    ended = script("gpu_check", "--quick", "--out", tmp_path / "none")
    user_error(ended, "pytest", "'.[dev]'", "--only benchmark")
    assert not (tmp_path / "none").exists()


def test_without_a_gpu_only_a_quick_run(script, tmp_path, user_error):
    ended = script("gpu_check", "--out", tmp_path / "none")
    user_error(ended, "no CUDA device", "--quick")
    assert not (tmp_path / "none").exists()


def test_an_unknown_part_is_refused(script):
    ended = script("gpu_check", "--quick", "--only", "speed")
    assert ended.code == 2
    assert "'speed'" in ended.err
