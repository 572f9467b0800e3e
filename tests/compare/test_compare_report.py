"""The report and the plots."""

import re

import numpy as np
import pytest
from compare_runs import outcomes
from matplotlib.image import imread

from xcope.compare import Outcome, plan, summarise
from xcope.compare.plots import colours, plot_curves, plot_splits
from xcope.compare.report import Circumstances, report
from xcope.config import load_config


def colourful(file) -> int:
    """How many different saturated colours the picture has in plenty."""
    pixels = (255 * imread(file)[..., :3]).round().astype(int).reshape(-1, 3)
    saturated = pixels[np.ptp(pixels, axis=1) > 60]
    _, counts = np.unique(saturated, axis=0, return_counts=True)
    return int((counts > 100).sum())


def test_the_report_says_what_was_asked_found_and_how_to_do_it_again(made):
    text = (made.out / "report.md").read_text()
    for part in (
        "`model.position`: none, cope(max_pos=8)", "`train.seed`: 0, 1", "dim 16, depth 1",
        "selective copy", "arXiv 2312.00752", "steps 6, batch_size 8", "mean ± std over 2 seeds",
        "| scheme | in distribution | dense | sparse | parameters | seconds per run |",
        "| none | ", "| cope(max_pos=8) | ", "compare.py tiny.yaml --jobs 2", "device cpu",
        "2 runs at a time", "Python 3", "torch 2", "x-transformers 2", "xcope",
    ):  # fmt: skip
        assert part in text, part
    assert "Failed" not in text


def test_what_is_swept_is_not_among_what_is_the_same(made):
    sweep = load_config(made.config, ["sweep.train.lr=[0.1, 0.2]"], sweep=True)
    runs = plan(sweep, made.out)
    summaries = summarise([Outcome(run, reason="not run") for run in runs])
    text = report(sweep, summaries, [[]], Circumstances("again", "cpu", 1, 1))
    assert "- `train.lr`: 0.1, 0.2" in text
    assert "- `train`: steps 6, batch_size 8\n" in text


def test_all_that_the_report_links_is_there(made):
    links = re.findall(r"\]\(([^)]+)\)", (made.out / "report.md").read_text())
    assert [link for link in links if link.endswith(".png")] == [
        "plots/error-selective_copy.png",
        "plots/loss-selective_copy.png",
    ]
    assert all((made.out / link).stat().st_size > 0 for link in links)


def test_plots_are_pictures_with_the_colours_of_the_schemes(made):
    for name in ("error", "loss"):
        picture = imread(made.out / "plots" / f"{name}-selective_copy.png")
        height, width = picture.shape[:2]
        assert height > 300
        assert width > 700
    orange = colours(["none", "cope"])["cope"]
    rgb = np.array([int(orange[i : i + 2], 16) for i in (1, 3, 5)])
    for name in ("error", "loss"):
        pixels = 255 * imread(made.out / "plots" / f"{name}-selective_copy.png")[..., :3]
        assert (np.abs(pixels - rgb).max(axis=-1) < 2).sum() > 30, name


def test_more_schemes_than_colours_and_splits_than_columns_can_be_drawn(tmp_path):
    schemes = {f"scheme{i}": [i / 20, None, i / 30] for i in range(11)}
    made = outcomes(schemes, metric="bits_per_byte")
    (summary,) = summarise(made)
    plot_splits(summary, tmp_path / "a.png")
    assert colourful(tmp_path / "a.png") >= 6
    assert len(set(colours(list("abcdefgh")).values())) == 8


@pytest.mark.parametrize("errors", [{"none": [None]}, {"none": [0.0]}, {"none": [float("nan")]}])
def test_plots_of_nothing_do_not_fail(tmp_path, errors):
    (summary,) = summarise(outcomes(errors))
    plot_splits(summary, tmp_path / "a.png")
    plot_curves(summary, tmp_path / "b.png")
    assert imread(tmp_path / "b.png").size
