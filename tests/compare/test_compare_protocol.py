"""What makes a comparison fair, checked; what schemes cost; what tells runs apart."""

from dataclasses import replace

import pytest
from compare_runs import outcome, outcomes

from xcope.compare import plan, summarise
from xcope.compare.report.columns import COLUMNS
from xcope.compare.report.findings import protocol
from xcope.compare.report.page import changes
from xcope.compare.run import results
from xcope.compare.stats.summary import bare_params
from xcope.config import ModelConfig, build_model, expand_sweep, load_config
from xcope.training import read_metrics


def departures(config, outcomes) -> str:
    statements = protocol(config, summarise(outcomes), [])
    return " ".join(one.text for one in statements if not one.holds)


def test_a_comparison_that_is_fair_departs_from_nothing_but_tuning(config):
    made = outcomes({"none": [0.1] * 3, "rotary": [0.2] * 3})
    assert departures(config, made) == (
        "Learning rate: 0.01 for all, not picked for each scheme (tune does): a scheme that "
        "another rate suits is worse off."
    )


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"steps": 20}, "Steps: they differ between runs: 10 steps"),
        ({"timing": {"device": "cuda"}}, "Device: not the same in all runs (cpu, cuda)"),
        ({"timing": {"threads": 4}}, "Threads: not the same in all runs (1, 4)"),
    ],
)
def test_runs_that_are_not_alike_are_told(config, change, part):
    alike = {"timing": {"device": "cpu", "threads": 1}}
    made = outcomes({"none": [0.1] * 3, "rotary": [0.2] * 3}, **alike)
    made[-1] = replace(made[-1], **change)
    assert part in departures(config, made)


def test_few_seeds_are_told(config):
    assert "2 of each scheme; fewer than 3" in departures(config, outcomes({"none": [0.1, 0.2]}))


def test_models_of_several_sizes_are_told(config):
    made = outcomes({"none": [0.1] * 3})
    wide = made[0].run.config.model.model_copy(update={"dim": 32})
    run = replace(made[0].run, config=made[0].run.config.model_copy(update={"model": wide}))
    made[0] = replace(made[0], run=run)
    assert "differ in size" in departures(config, made)


def test_a_schemes_own_parameters_are_those_that_none_does_not_have(made):
    cope = load_config(made.out / "runs" / "cope-max_pos=8-seed0" / "config.yaml")
    none = load_config(made.out / "runs" / "none-seed0" / "config.yaml")
    size = sum(p.numel() for p in build_model(none).parameters())
    assert bare_params(cope) == bare_params(none) == size
    table = 8 * 8  # positions × width of a head
    assert sum(p.numel() for p in build_model(cope).parameters()) - size == table
    assert f"(+{table})" in (made.out / "report.md").read_text()


def test_flags_that_make_the_scheme_leave_its_own_parameters_unknown():
    config = outcome("none").run.config
    for change in ({"position": None}, {"cope_max_pos": 8}):
        flagged = ModelConfig(**config.model.model_dump() | {"position": "cope"} | change)
        assert bare_params(config.model_copy(update={"model": flagged})) is None


def test_time_and_memory_are_compared_over_the_seeds_that_both_have():
    def made(scheme, seed, pace, peak, error=0.1):
        rest = {"pace": pace, "timing": {"peak_bytes": peak}}
        return outcome(scheme, seed, error=error, **rest)

    (summary,) = summarise(
        [
            made("none", 0, 1.0, 100), made("none", 1, 3.0, None), made("none", 2, 9.0, 900),
            made("rotary", 0, 3.0, 150), made("rotary", 1, 3.0, 10), outcome("rotary", 2),
        ]
    )  # fmt: skip
    params, seconds, peak = (COLUMNS[name] for name in ("params", "seconds", "peak_bytes"))
    none, rotary = summary.rows
    assert (seconds.beside(summary, rotary), peak.beside(summary, rotary)) == ("×1.50", "×1.50")
    assert [rotary.mean(one.of) for one in (params, seconds, peak)] == [1000, 2.0, 80]
    assert (seconds.beside(summary, none), peak.beside(summary, none)) == ("×1.00", "×1.00")
    assert none.mean(peak.of) == 500


def test_the_pace_of_a_run_leaves_out_its_first_step(made):
    run = plan(load_config(made.config, sweep=True), made.out)[0]
    points = read_metrics(run.folder / "metrics.jsonl")
    expected = (points[-1]["seconds"] - points[0]["seconds"]) / 5
    assert results.outcome(run, None).pace == pytest.approx(expected)


def test_changes_name_the_keys_and_both_values(config):
    first, second, third, _ = expand_sweep(config)
    assert changes(first, second) == [("train.seed", "0", "1")]
    assert changes(second, third) == [
        ("model.position", "none", "cope(max_pos=8)"),
        ("train.seed", "1", "0"),
    ]
    assert changes(first, first) == []
    with_flag = first.model.model_copy(update={"ff_glu": True})
    assert changes(first, first.model_copy(update={"model": with_flag})) == [
        ("model.ff_glu", "(none)", "true")
    ]
