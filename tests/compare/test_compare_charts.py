"""The layout of charts: all of them can be read."""

import itertools

import pytest
from compare_runs import outcomes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from xcope.compare import summarise
from xcope.compare.report.charts import MOST_LETTERS, WIDTH, charts, run_charts, save_plots
from xcope.training.metrics import metric_called

ERRORS = {"in_distribution": 0.1234, "longer_2x": 0.9999, "longer_4x": 1.0}
OPTIONS = {"instructions": 8, "stretch": 4}
LONG = "cope(max_pos=32, soft_onehot=True), position_lr_scale=10.0"


def drawn(**more):
    """Kind → figure, as on the page, of schemes with long names; one seed of each failed."""
    errors = {
        scheme: [ERRORS, ERRORS | {"in_distribution": 0.9}, None] for scheme in ("none", "t5")
    }
    made = outcomes(errors, task="flip_flop", options=OPTIONS, swept={"train.lr": LONG}, **more)
    (summary,) = summarise(made)
    assert all(len(row.label) > MOST_LETTERS for row in summary.rows)
    for chart in (*charts(summary), *run_charts(summary)):
        figure = Figure(figsize=(WIDTH, chart.height), layout="constrained")
        chart.draw(figure.subplots())
        figure.draw_without_rendering()
        yield chart.kind, figure


@pytest.mark.parametrize("metric", ["error", "bits_per_byte"])
def test_no_text_lies_over_another_or_over_a_bar_or_leaves_the_chart(metric):
    kinds = set()
    for kind, figure in drawn(metric=metric):
        kinds.add(kind)
        texts = [
            one for one in figure.findobj(Text) if one.get_visible() and one.get_text().strip()
        ]
        assert len(texts) > (8 if kind == "split" else 4)
        places = [text.get_window_extent() for text in texts]
        for (one, here), (other, there) in itertools.combinations(
            zip(texts, places, strict=True), 2
        ):
            assert not here.overlaps(there), (kind, one, other)
        for text, place in zip(texts, places, strict=True):
            assert place.x0 >= 0, (kind, text)
            assert place.x1 <= figure.bbox.x1, (kind, text)
            assert place.y0 >= 0, (kind, text)
            assert place.y1 <= figure.bbox.y1, (kind, text)
        for bar in figure.axes[0].findobj(Rectangle) if kind == "split" else []:
            if bar is not figure.axes[0].patch:
                extent = bar.get_window_extent()
                assert not any(extent.overlaps(place) for place in places), (kind, bar)
    assert kinds == {"split", "length", "learning"}


def test_the_scale_of_a_metric_is_the_same_in_all_its_charts():
    limits = {figure.axes[0].get_xlim() for kind, figure in drawn() if kind == "split"}
    assert len(limits) == 1


def test_further_metrics_are_drawn_and_what_runs_recorded_beside_them_only_once(tmp_path):
    made = outcomes({"t5": [ERRORS]}, task="flip_flop", options=OPTIONS, metric="sequence_error")
    (summary,) = summarise(made, metrics=[metric_called("sequence_accuracy")])
    assert save_plots(summary, tmp_path, "a") == [
        "plots/sequence_error-a.png",
        "plots/length-a.png",
        "plots/loss-a.png",
        "plots/sequence_accuracy-split-a.png",
        "plots/sequence_accuracy-length-a.png",
    ]
    assert len(list((tmp_path / "plots").iterdir())) == 5
    (further,) = summary.further
    first, *_, over_length = charts(further)
    assert "sequence accuracy, % (higher is better)" in first.svg
    assert "t5: 87.7" in first.svg
    assert "t5: 0.01% at 32" in over_length.svg
