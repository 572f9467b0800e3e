"""``xcope evaluate``: a trained model on test data, those of its run or others."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xcope import cli
from xcope.errors import FlagError, listing
from xcope.files import expanded

if TYPE_CHECKING:
    from xcope.config import Config
    from xcope.tasks import Task
    from xcope.training.metrics import Metric, Tally

EXAMPLES = """
xcope evaluate runs/x
xcope evaluate runs/x sparse task.sparse_blanks=64
xcope evaluate runs/x evaluate.batches=32 evaluate.seed=5 --json results.json
xcope evaluate runs/x --plot by-position.svg
"""


@cli.command(EXAMPLES)
@click.argument("run", type=cli.RUN)
@click.argument("what", nargs=-1, metavar="[split | key=value]...")
@click.option(
    "--json", "file", metavar="FILE", help="write the results, also by position; - for stdout"
)
@click.option(
    "--plot",
    type=cli.PATH,
    metavar="FILE",
    is_flag=False,
    flag_value="",
    help="draw the headline metric by position and by length, as PNG or SVG (default: "
    "RUN/evaluate.png)",
)
@cli.device_option
@cli.trust_option
def command(
    run: Path,
    what: tuple[str, ...],
    file: str | None,
    plot: Path | None,
    device: str,
) -> None:
    """Measure a trained model on the test splits of its task, also with other options of the task.

    RUN is the folder of a run. Without names of test splits all are measured;
    task.<option>=value and evaluate.<option>=value change the test data.
    """
    from rich.console import Console

    from xcope.plotting import PICTURES
    from xcope.training import device_for, load_run, reporter, results_table, tally

    if plot is not None:
        plot = plot if plot.name else run / "evaluate.png"
        if plot.suffix.lower() not in PICTURES:
            raise FlagError(
                "plot",
                f"--plot {plot}: a picture's name ends in {listing(PICTURES)}; to draw {run} under "
                "the usual name let --plot stand last",
            )
    splits = [word for word in what if "=" not in word]
    trained, model = load_run(run)
    config = with_test_data(run, [word for word in what if "=" in word])
    task = task_for(config, model.num_tokens)
    tallies = tally(
        model,
        task,
        batches=config.evaluate.batches,
        batch_size=config.evaluate.batch_size,
        seed=config.evaluate.seed,
        device=device_for(device),
        splits=splits or None,
        measured=reporter().measured,
    )
    results = {split: one.metrics(task) for split, one in tallies.items()}
    if plot is not None:
        draw(tallies, task, f"{run}: {trained.label()}", plot)
        print(f"Written: {plot}", file=sys.stderr)
    if file is not None:
        by_position = {split: one.by_position(task) for split, one in tallies.items()}
        text = json.dumps({"splits": results, "by_position": by_position}, indent=2) + "\n"
        if file == "-":
            print(text, end="")
            return
        expanded(file).write_text(text, encoding="utf-8")
    Console().print(results_table(results, task, f"{run}: {trained.label()}"))


def draw(tallies: Mapping[str, Tally], task: Task, title: str, path: Path) -> None:
    """Draw the metric by position within the sequences, and over their length.

    Bars stand for splits of which only one place is scored, if there is nothing else to draw.
    """
    from matplotlib.figure import Figure

    from xcope.plotting import INK, looks, plain, save
    from xcope.training.metrics import METRICS

    measured = {split: one.by_position(task) for split, one in tallies.items()}
    curves = {split: line for split, one in measured.items() if len(line := points(one)) > 1}
    headline = METRICS[task.metric]
    values = {split: one.metrics(task)[task.metric] for split, one in tallies.items()}
    lengths = {
        task.seq_len(split): values[split] for split in task.length_splits if split in values
    }
    style, panels = looks(list(values)), list[str]()
    if curves:
        panels.append("position")
    if len(lengths) > 1:
        panels.append("length")
    panels = panels or ["split"]
    figure = Figure(figsize=(5.2 * len(panels), 3.6), layout="constrained")
    figure.suptitle(title, color=INK, fontsize=10, x=0.01, ha="left")
    for axes, kind in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        plain(axes, grid="x" if kind == "split" else "both")
        if kind == "position":
            metric = METRICS[next(iter(measured.values()))["metric"]]
            for split, line in curves.items():
                shown = [shown_value(metric, value) for _, value in line]
                axes.plot([place for place, _ in line], shown, label=split, **style[split].line())
            axes.set(xlabel="position in the sequence", ylabel=metric.heading)
            axes.legend(frameon=False, fontsize=8)
        elif kind == "length":
            shown = [shown_value(headline, value) for value in lengths.values()]
            axes.plot([*lengths], shown, color=INK, marker="o")
            axes.set_xscale("log", base=2)
            axes.set_xticks([*lengths], [str(n) for n in lengths])
            axes.minorticks_off()
            axes.set(xlabel="tokens in the sequence", ylabel=headline.heading)
        else:
            shown = [shown_value(headline, value) for value in values.values()]
            axes.barh([*values], shown, color=[style[split].colour for split in values])
            axes.invert_yaxis()
            axes.set(xlabel=headline.heading)
        if kind != "split" and headline.share:
            axes.set_ylim(bottom=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path)


def points(measured: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Middle of a bin and value, of a curve over positions; bins without a scored token are left
    out."""
    edges = measured["edges"]
    bins = zip(edges[:-1], edges[1:], measured["values"], strict=True)
    return [((low + high - 1) / 2, value) for low, high, value in bins if value is not None]


def shown_value(metric: Metric, value: float) -> float:
    """A value in the unit of the metric's heading."""
    return 100 * value if metric.share else value


def with_test_data(run: Path, overrides: Sequence[str]) -> Config:
    """The run's config with other test data; lengths are checked against the model later."""
    from xcope.config import load_config
    from xcope.training import RunError, RunFolder

    for override in overrides:
        if not override.startswith(("task.", "evaluate.")):
            raise RunError(
                f"{override}: a trained model cannot be changed; keys that may be given begin "
                "with task. or evaluate."
            )
    return load_config(RunFolder(run).config, ["model.max_seq_len=null", *overrides])


def task_for(config: Config, num_tokens: int) -> Task:
    """The task of ``config``, if a model with that many tokens can read it."""
    from xcope.config import build_task

    task = build_task(config)
    if task.num_tokens != num_tokens:
        raise FlagError(
            "task",
            f"the model was trained with {num_tokens} tokens, and this task has "
            f"{task.num_tokens}: only options that keep the vocabulary can be changed",
        )
    return task
