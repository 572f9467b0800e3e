"""scripts/benchmark.py from the shell, on short inputs: the files it writes."""

import csv
import re
from pathlib import Path

import pytest
import torch

import xcope
from benchmarks.cope.workloads import QUICK
from benchmarks.small.workloads import QUICK as QUICK_SMALL

pytestmark = pytest.mark.long


@pytest.fixture
def quick(start_script, tmp_path):
    """``quick("cope")``: the folder of a quick run, and what it printed."""

    def run(*what: str) -> tuple[Path, str]:
        out = tmp_path / "out"
        process = start_script("benchmark", *what, "--quick", "--threads", 1, "--out", out)
        printed, err = process.communicate()
        assert process.returncode == 0, err
        return out, printed

    return run


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as opened:
        return list(csv.DictReader(opened))


def test_a_quick_run_of_cope_writes_everything(quick):
    out, printed = quick("cope")
    bars = rows(out / "bars.csv")
    assert len(bars) == 13
    assert all(float(row["ratio"]) > 0 for row in bars)
    kinds = ["SDPA"] * 3 + ["ours", "SDPA"] + ["SDPA"] * 2 + ["256"] + ["rotary"] * 3
    kinds += ["interpolation"] * 2
    assert [row["bar"].split()[-1] for row in bars] == kinds  # in the order of the table
    assert all(row["bar"] in printed for row in bars)

    points = rows(out / "benchmark.csv")
    measured = [(row["attention"], int(row["n"])) for row in points]
    both = [(name, n) for n in QUICK.lengths for name in ("SDPA", "CoPE, ours")]
    assert measured == [*both[:2], ("CoPE, x-transformers", 128), *both[2:]]
    assert all(float(row["seconds"]) > 0 and float(row["mebibytes"]) > 0 for row in points)

    saturation = rows(out / "saturation.csv")
    assert [int(row["max_pos"]) for row in saturation] == list(QUICK.max_positions)
    shares = [float(row["saturated_share"]) for row in saturation]
    assert 1 > shares[0] > shares[1] >= 0
    assert {row["over"] for row in rows(out / "variants.csv")} == {"plain CoPE", "SDPA"}
    assert len(rows(out / "variants.csv")) == 7
    assert len(rows(out / "breakdown.csv")) == 12
    for picture in ("benchmark.png", "saturation.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")

    readme = (out / "README.md").read_text()
    assert f"cope --quick --threads 1 --out {out}" in readme
    for part in ("threads: 1", "torch 2.", "float32, b=1 h=8 d=64", "benchmark.png", "quick run"):
        assert part in readme
    for row in bars:
        assert f"| {row['bar']} | " in readme
        missed = row["met"] == "False" or row["goal_met"] == "False"
        assert (f"- {row['bar']}: " in readme) == missed


def test_a_quick_run_of_the_schemes_writes_everything(quick):
    chosen = ["absolute", "fire", "forgetting", "path", "rotary", "t5"]
    out, printed = quick("schemes", "--only", ",".join(chosen))
    found = rows(out / "schemes.csv")
    columns = "scheme,time_over_sdpa,time_limit,memory_over_sdpa,memory_limit"
    rivals = "x_transformers_over_ours,x_transformers,naive_over_ours,naive"
    assert list(found[0]) == f"{columns},{rivals}".split(",")
    assert [row["scheme"] for row in found] == chosen
    readme = (out / "README.md").read_text()
    for row in found:
        assert float(row["time_over_sdpa"]) > 0
        assert float(row["memory_over_sdpa"]) > 0
        assert float(row["memory_limit"]) == (2.0 if row["scheme"] == "path" else 1.5)
        assert bool(row["x_transformers_over_ours"]) == bool(row["x_transformers"])
        assert bool(row["naive_over_ours"]) == bool(row["naive"]) == (row["scheme"] == "path")
        assert f"\n{row['scheme']} " in printed
        told = re.search(rf"^\| {row['scheme']} \| ([\d.]+) \|", readme, re.MULTILINE)[1]
        assert float(told) == pytest.approx(float(row["time_over_sdpa"]), abs=0.006)  # rounded
    assert [row["time_limit"] for row in found] == ["", "3.0", "", "3.0", "1.15", "1.5"]
    assert [row["x_transformers"] for row in found] == ["flash", "", "flash", "", "flash", "n×n"]

    assert (out / "schemes.png").read_bytes().startswith(b"\x89PNG")
    for part in (
        f"{','.join(chosen)} --quick --threads 1",
        "threads: 1",
        "float32, b=1 h=8 d=64",
        "quick run",
    ):
        assert part in readme


def test_a_quick_run_of_small_models_writes_everything(script, tmp_path):
    out, threads = tmp_path / "out", torch.get_num_threads()
    try:
        ended = script("benchmark", "small", "--quick", "--threads", 1, "--out", out)
    finally:
        torch.set_num_threads(threads)
    assert ended.code == 0, ended.err
    bars = rows(out / "bars.csv")
    steps = [row for row in bars if row["bar"].startswith("train step")]
    rivals = sum(one.counterpart() is not None for one in xcope.schemes().values())
    assert len(steps) == 3 * (2 + rivals - 1)  # sizes; over rotary and plain; all but CoPE
    assert len(bars) == len(steps) + 9 + 2 * 4 + 2  # attention, variants of it, commands
    assert {row["threads"] for row in bars} == {"1", ""}
    assert all(float(row["ratio"]) > 0 and row["bar"] in ended.out for row in bars)
    models = rows(out / "steps.csv")
    assert len(models) == 3 * (1 + len(xcope.schemes()) + rivals)
    assert all(float(row["seconds"]) > 0 for row in models)
    assert (out / "small.png").read_bytes().startswith(b"\x89PNG")

    readme = (out / "README.md").read_text()
    assert f"small --quick --threads 1 --out {out}" in readme
    for part in ("threads: 1", "torch 2.", "float32", "small.png", "quick run"):
        assert part in readme
    missed = [row["bar"] for row in bars if row["met"] == "False" and row["threads"]]
    for name in missed:
        assert f"- {name}, 1 thread: " in readme
    profiled = {row["case"] for row in rows(out / "breakdown.csv")}
    assert profiled == {f"{name}, 1 thread" for name in missed[: QUICK_SMALL.profiles]}
    for row in bars[-19:]:
        assert f"| {row['bar']} | " in readme


@pytest.mark.parametrize(
    "options",
    [
        ("cope", "--threads", 0),
        ("schemes", "--threads", -1),
        ("schemes", "--only", "rotary,rotery"),
        ("--only", "rotary", "--threads", 1, "cope"),
        ("--only", "rotary", "--threads", 1, "small"),
        ("rope",),
    ],
)
def test_mistakes_end_in_one_line(script, user_error, options):
    user_error(script("benchmark", *options), str(options[-1]).split(",")[-1])
