"""scripts/compare.py from the shell: what it leaves, stopped, gone on with, failing."""

import csv
import signal
import time
from io import StringIO
from pathlib import Path

from compare_runs import NAMES, REPO, files, start_compare
from rich.console import Console

from xcope.compare import compare
from xcope.config import expand_sweep, load_config
from xcope.training import train


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as opened:
        return list(csv.DictReader(opened))


def test_results_have_a_line_for_every_number(made):
    lines = rows(made.out / "results.csv")
    assert list(lines[0]) == [
        "run",
        "scheme",
        "seed",
        "status",
        "split",
        "metric",
        "value",
        "reason",
    ]
    splits, metrics = ("in_distribution", "dense", "sparse"), ("loss", "error", "sequence_error")
    told = [(line["run"], line["split"], line["metric"]) for line in lines]
    assert told == [(n, s, m) for n in NAMES for s in splits for m in metrics]
    assert {line["scheme"] for line in lines} == {"none", "cope(max_pos=8)"}
    assert all(float(line["value"]) >= 0 and line["status"] == "ok" for line in lines)


def test_timings_have_a_line_for_every_run(made):
    lines = rows(made.out / "timings.csv")
    assert [line["run"] for line in lines] == NAMES
    assert all(float(line["seconds"]) > 0 and line["steps"] == "6" for line in lines)


def test_the_configs_load_back(made, config):
    kept = load_config(made.out / "config.yaml", sweep=True)
    assert kept == config
    for name, expected in zip(NAMES, expand_sweep(config), strict=True):
        assert load_config(made.out / "runs" / name / "config.yaml") == expected


def test_a_table_is_printed_and_progress_told_line_by_line(made):
    for part in ("none", "cope(max_pos=8)", "in distribution", "error, %", "parameters", "±"):
        assert part in made.printed
    assert "runs/tiny/report.html" in made.printed
    for name in NAMES:
        assert f"{name}: done in" in made.progress


def test_a_stopped_comparison_goes_on_where_it_stopped(made, tmp_path):
    """Ctrl-C during the second run; going on ends at the numbers of a run never stopped."""
    tiny = (made.config, "train.steps=150", "sweep.train.seed=[0]")
    process = start_compare(*tiny, "--jobs", 1, "--out", "halfway", cwd=tmp_path)
    second = tmp_path / "halfway" / "runs" / NAMES[2] / "metrics.jsonl"
    limit = time.monotonic() + 60
    while not (second.exists() and second.read_text()):
        assert time.monotonic() < limit, "the second run did not begin"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "1 of 2 runs complete" in err
    assert "compare.py" in err.splitlines()[-1]
    assert "--out halfway" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not (tmp_path / "halfway" / "results.csv").exists()
    first = files(tmp_path / "halfway", f"runs/{NAMES[0]}/*.*")
    assert (second.parent / "checkpoint").is_dir()

    sweep = load_config(tiny[0], tiny[1:], sweep=True)
    shown = Console(file=StringIO())
    compare(sweep, tmp_path / "halfway", jobs=1, console=shown)
    assert files(tmp_path / "halfway", f"runs/{NAMES[0]}/*.*") == first
    assert "1 of 2 runs are complete already" in shown.file.getvalue()
    assert f"{NAMES[2]}: begins at step 0 " not in shown.file.getvalue()
    train(expand_sweep(sweep)[1], tmp_path / "straight")
    straight = (tmp_path / "straight" / "results.json").read_bytes()
    assert (second.parent / "results.json").read_bytes() == straight
    assert [row["run"] for row in rows(tmp_path / "halfway" / "timings.csv")] == NAMES[::2]


def test_a_failed_run_is_reported_and_the_others_are_not_lost(made, tmp_path, script):
    diverging = ("sweep.model.position=[none, rotary]", "sweep.train.lr=[0.01, 1.0e+30]")
    code, out, err = script(
        made.config, *diverging, "sweep.train.seed=[0]", "--jobs", 1, "--out", tmp_path / "x"
    )
    assert code == 1
    assert "2 of 4 runs failed" in err
    assert "Traceback" not in err
    assert "failed" in out
    lines = rows(tmp_path / "x" / "results.csv")
    failed = [line for line in lines if line["status"] == "failed"]
    assert [line["run"] for line in failed] == ["none-seed0-lr=1e+30", "rotary-seed0-lr=1e+30"]
    assert all("train.lr" in line["reason"] and line["value"] == "" for line in failed)
    assert {line["train.lr"] for line in lines} == {"0.01", "1e+30"}
    report = (tmp_path / "x" / "report.md").read_text()
    assert "| rotary, lr=1e+30 | failed | failed | failed |" in report
    assert failed[0]["reason"] in report


def test_mistakes_end_in_one_line_and_code_2(made, tmp_path, script):
    """Without a worker being started."""
    for arguments, part in [
        (["train.steps=3"], "--overwrite"),
        (["--jobs", 0], "--jobs 0"),
        (["sweep=null", "model.position=none"], "no sweep"),
        (["sweep.model.position=[rotery]"], "did you mean 'rotary'"),
        (["train.steps"], "lacks '='"),
    ]:
        code, out, err = script(made.config, *arguments, "--out", made.out)
        assert (code, out) == (2, "")
        assert part in err
        assert "Traceback" not in err


def test_help_shows_examples(script):
    code, out, _ = script("--help")
    assert code == 0
    assert f"python {REPO}/scripts/compare.py configs/quickstart.yaml" in out
