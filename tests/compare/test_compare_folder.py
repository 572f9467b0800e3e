"""The folder of a comparison: same again, grown, taken by another one, cleared."""

from io import StringIO
from shutil import copytree, rmtree

import pytest
from compare_runs import NAMES, files
from rich.console import Console

from xcope.compare import CompareError, compare, plan
from xcope.compare.run.folder import opened
from xcope.config import load_config


def quiet() -> Console:
    return Console(file=StringIO())


def test_what_is_missing_is_run_and_ends_at_the_same_bytes(made, config, tmp_path):
    """Also with another number of jobs."""
    out = copytree(made.out, tmp_path / "out")
    for name in (NAMES[0], NAMES[2]):
        rmtree(out / "runs" / name)
    (out / "results.csv").unlink()
    kept = files(out, "runs/*/*.*")
    compare(config, out, jobs=1, console=quiet())
    assert files(out, "runs/*/*.*").items() > kept.items()
    assert (out / "results.csv").read_bytes() == (made.out / "results.csv").read_bytes()


def test_a_complete_comparison_is_not_run_again(made, config, tmp_path):
    out = copytree(made.out, tmp_path / "out")
    before = files(out, "runs/*/*.*")
    shown = quiet()
    comparison = compare(config, out, console=shown)
    assert files(out, "runs/*/*.*") == before
    assert (out / "results.csv").read_bytes() == (made.out / "results.csv").read_bytes()
    assert "4 of 4 runs are complete already" in shown.file.getvalue()
    assert [outcome.run.name for outcome in comparison.outcomes] == NAMES


def test_a_sweep_may_grow_but_not_drop_runs(made):
    def opened_with(*overrides: str) -> list[bool]:
        runs = plan(load_config(made.config, overrides, sweep=True), made.out)
        with opened(made.out, runs, overwrite=False):
            return [run.complete for run in runs]

    assert opened_with("sweep.train.seed=[0, 1, 2]") == [True, True, False] * 2
    with pytest.raises(CompareError, match="cope-max_pos=8-seed0 is not in this sweep"):
        opened_with("sweep.model.position=[none, alibi, cope]")


@pytest.mark.parametrize("other", ["sweep.train.seed=[0]", "train.steps=3", "evaluate.seed=5"])
def test_another_comparison_is_not_overwritten_unless_told(made, other):
    before = files(made.out, "**/*.*")
    with pytest.raises(CompareError, match=r"another comparison.*--out.*--overwrite"):
        compare(load_config(made.config, [other], sweep=True), made.out, console=quiet())
    assert files(made.out, "**/*.*") == before


def test_overwrite_removes_what_a_comparison_writes_and_nothing_else(made, tmp_path):
    out = copytree(made.out, tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    other = plan(load_config(made.config, ["train.steps=3"], sweep=True), out)
    with opened(out, other, overwrite=True):
        left = sorted(file.name for file in out.iterdir())
        assert left == [".lock", ".writer.json", "notes.txt"], "the lock is this comparison's own"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_things_is_never_touched(config, tmp_path, overwrite):
    (tmp_path / "config.yaml").write_text("a run of train.py, say")
    with pytest.raises(CompareError, match="something else"):
        compare(config, tmp_path, overwrite=overwrite, console=quiet())
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]
    with pytest.raises(CompareError, match="is a file"):
        compare(config, tmp_path / "config.yaml", overwrite=overwrite, console=quiet())


def test_two_comparisons_do_not_share_a_folder(config, tmp_path):
    with opened(tmp_path, [], overwrite=False), pytest.raises(CompareError, match="is running"):
        compare(config, tmp_path, console=quiet())


@pytest.mark.parametrize("wrong", [{"jobs": 0}, {"threads": -1}])
def test_numbers_below_one_are_refused(config, tmp_path, wrong):
    with pytest.raises(CompareError, match="at least 1"):
        compare(config, tmp_path, **wrong)
