"""The report and the plots."""

import re

import numpy as np
import pytest
from compare_runs import outcomes
from matplotlib.image import imread

from xcope.compare import Outcome, plan, summarise
from xcope.compare.report.charts import save_plots
from xcope.compare.report.findings import Findings
from xcope.compare.report.markdown import report
from xcope.compare.run.pool import Circumstances
from xcope.config import load_config
from xcope.plotting import looks


def colourful(file) -> int:
    """How many different saturated colours the picture has in plenty."""
    pixels = (255 * imread(file)[..., :3]).round().astype(int).reshape(-1, 3)
    saturated = pixels[np.ptp(pixels, axis=1) > 60]
    _, counts = np.unique(saturated, axis=0, return_counts=True)
    return int((counts > 100).sum())


def in_distribution(errors):
    """Each error as that of a split that the task has."""
    return {
        scheme: [None if value is None else {"in_distribution": value} for value in values]
        for scheme, values in errors.items()
    }


def found(config, outcomes) -> Findings:
    summaries = summarise(outcomes, config.baseline)
    return Findings(config, outcomes, summaries, [], Circumstances("again", "cpu", 1, 1))


def test_the_report_says_what_was_asked_found_and_how_to_do_it_again(made):
    text = (made.out / "report.md").read_text()
    for part in (
        "`model.position`: none, cope(max_pos=8)", "`train.seed`: 0, 1", "dim 16, depth 1",
        "selective copy", "arXiv 2312.00752", "steps 6, batch_size 8", "mean ± std over 2 seeds",
        "| scheme | in distribution | dense | sparse | parameters (own) | seconds | memory, MB |",
        "| none | ", "| cope(max_pos=8) | ", "compare.py tiny.yaml --jobs 2", "device cpu",
        "2 runs at a time", "Python 3", "torch 2", "x-transformers 2", "xcope", "### Against none",
    ):  # fmt: skip
        assert part in text, part
    assert "Failed" not in text


def test_what_is_swept_is_not_among_what_is_the_same(made):
    sweep = load_config(made.config, ["sweep.train.lr=[0.1, 0.2]"], sweep=True)
    runs = plan(sweep, made.out)
    text = report(found(sweep, [Outcome(run, reason="not run") for run in runs]), [[]])
    assert "- `train.lr`: 0.1, 0.2" in text
    assert "- `train`: steps 6, batch_size 8\n" in text


@pytest.mark.parametrize(
    ("seeds", "parts"),
    [
        (1, ["with one seed there is no interval and no test"]),
        (2, ["cannot give less than 0.50, and nothing is said to be better or worse: 3 are"]),
        (3, ["in 3 of 4 cases", "cannot give less than 0.25: by itself it shows nothing"]),
        (6, ["too narrow", "sign-flip test"]),
    ],
)
def test_what_the_intervals_and_the_test_mean_is_said(config, seeds, parts):
    errors = {"none": [0.4 + i / 100 for i in range(seeds)], "rotary": [0.1] * seeds}
    text = report(found(config, outcomes(in_distribution(errors))), [[]])
    for part in parts:
        assert part in text, part
    assert ("cannot give less" in text) == (1 < seeds < 6)
    assert ("### Against none" in text) == (seeds > 1)


def test_what_memory_means_is_said(config):
    none = report(found(config, outcomes(in_distribution({"none": [0.1, 0.2]}))), [[]])
    assert "Memory" not in none.split("## Results")[1]
    for device, part in [("cpu", "resident, without mapped files"), ("cuda:0", "on the GPU")]:
        timing = {"peak_bytes": 10**7, "device": device}
        made = outcomes(in_distribution({"none": [0.1, 0.2]}), timing=timing)
        assert part in report(found(config, made), [[]])


def test_bits_per_byte_are_no_shares_of_sequences(config):
    errors = in_distribution({"none": [2.5, 2.6], "rotary": [2.1, 2.2]})
    text = report(found(config, outcomes(errors, metric="bits_per_byte")), [[]])
    assert "more than the last digit. All else" in text
    assert "−0.400 [−0.400, −0.400]" in text


def test_differences_have_an_interval_a_p_and_a_verdict(config):
    errors = {
        "none": [0.40, 0.41, 0.42],
        "rotary": [0.10, 0.12, 0.11],
        "alibi": [0.30, 0.42, 0.48],
        "cope": [0.10, None, None],
    }
    text = report(found(config, outcomes(in_distribution(errors))), [[]])
    rows = [line for line in text.split("### Against none")[1].splitlines() if "|" in line][2:]
    rotary, alibi, cope = [line.strip("| ").split(" | ")[1] for line in rows]
    assert rotary == "−30.0 [−32.5, −27.5], p 0.00037, sign flips 0.25<br>better"
    assert alibi.endswith("sign flips 1.00<br>not distinguishable")
    assert cope == "-"


def test_all_that_the_report_links_is_there(made):
    links = re.findall(r"\]\(([^)]+)\)", (made.out / "report.md").read_text())
    assert [link for link in links if link.endswith(".png")] == [
        "plots/error-selective_copy.png",
        "plots/position-selective_copy.png",
        "plots/loss-selective_copy.png",
    ]
    assert all((made.out / link).stat().st_size > 0 for link in links)


def test_plots_are_pictures_with_the_colours_of_the_schemes(made):
    for name in ("error", "loss"):
        picture = imread(made.out / "plots" / f"{name}-selective_copy.png")
        height, width = picture.shape[:2]
        assert height > 300
        assert width > 700
    orange = looks(["none", "cope"])["cope"].colour
    rgb = np.array([int(orange[i : i + 2], 16) for i in (1, 3, 5)])
    for name in ("error", "loss"):
        pixels = 255 * imread(made.out / "plots" / f"{name}-selective_copy.png")[..., :3]
        assert (np.abs(pixels - rgb).max(axis=-1) < 2).sum() > 30, name


def test_more_schemes_than_colours_and_splits_than_columns_can_be_drawn(tmp_path):
    schemes = {f"scheme{i}": [i / 20, None, i / 30] for i in range(11)}
    made = outcomes(schemes, metric="bits_per_byte")
    (summary,) = summarise(made)
    (picture, _) = save_plots(summary, tmp_path, "a")
    assert colourful(tmp_path / picture) >= 6
    assert len(set(looks([*"abcdefgh"]).values())) == 8
    assert len(set(looks([*"abcdefghijklmnop"]).values())) == 16


@pytest.mark.parametrize("errors", [{"none": [None]}, {"none": [0.0]}, {"none": [float("nan")]}])
def test_plots_of_nothing_do_not_fail(tmp_path, errors):
    (summary,) = summarise(outcomes(errors))
    assert save_plots(summary, tmp_path, "a") == ["plots/error-a.png", "plots/loss-a.png"]
    assert imread(tmp_path / "plots/error-a.png").size
    assert imread(tmp_path / "plots/loss-a.png").size


def test_lengths_and_positions_are_drawn_in_the_colours_of_the_schemes(tmp_path):
    lengths = {"in_distribution": 0.1, "longer_2x": 0.2, "longer_4x": 0.4}
    errors = {"none": [lengths] * 2, "rotary": [lengths | {"longer_4x": 0.9}] * 2}
    curve = {"metric": "error", "edges": [0, 4, 8], "values": [0.1, 0.3]}
    rest = {"by_position": {"in_distribution": curve}}
    options = {"instructions": 8, "stretch": 4}
    (summary,) = summarise(outcomes(errors, task="flip_flop", options=options, **rest))
    save_plots(summary, tmp_path, "a")
    for name in ("length-a.png", "position-a.png"):
        assert colourful(tmp_path / "plots" / name) >= 1, name
