"""``xcope tasks``: the tasks that there are, and what is to know of one."""

from __future__ import annotations

import click

from xcope import cli
from xcope.cli import _complete, _show
from xcope.registry import check_named

EXAMPLES = """
xcope tasks
xcope tasks counting
"""


@cli.command(EXAMPLES)
@click.argument("name", required=False, type=_complete.RegisteredType("tasks"))
@_show.import_option
def command(name: str | None) -> None:
    """List the tasks; with NAME: what it asks for, paper, metric, test splits, options."""
    known = _show.registered()["tasks"]
    if name is None:
        rows = [(task, one["paper"], one["title"]) for task, one in known.items()]
        print(_show.table(("task", "paper", "what"), rows))
        print(f"\nMore of one: {cli.as_started('xcope tasks counting')}")
        return
    check_named(known, name, None, flag="task", noun="task", spelled=str)
    one = known[name]
    facts = {
        "paper": _show.with_links(one["paper"]),
        "headline metric": one["metric"],
        "test splits": ", ".join(one["splits"]),
        "YAML": f"task: {name}, or task: {{name: {name}, …}}",
    }
    print(f"{name}\n\n{_show.facts(facts)}\n\n{one['about']}\n")
    print(_show.options(one["options"]))
