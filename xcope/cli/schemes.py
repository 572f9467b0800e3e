"""``xcope schemes``: the positional schemes that there are, and what is to know of one."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import click

from xcope import cli
from xcope.cli import _complete, _show
from xcope.registry import check_named

EXAMPLES = """
xcope schemes
xcope schemes cope
xcope schemes recency --import recency.py
"""


@cli.command(EXAMPLES)
@click.argument("name", required=False, type=_complete.RegisteredType("schemes"))
@_show.import_option
def command(name: str | None) -> None:
    """List the positional schemes; with NAME: formula, paper, options, what it goes with."""
    known = _show.registered()["schemes"]
    if name is None:
        rows = [(scheme, one["paper"], one["title"]) for scheme, one in known.items()]
        print(_show.table(("scheme", "paper", "what"), rows))
        print(f"\nMore of one: {cli.as_started('xcope schemes cope')}")
        return
    check_named(known, name, None, flag="position", noun="scheme", spelled=str)
    for paragraph in paragraphs(name, known[name]):
        print(f"{paragraph}\n")
    print(_show.options(known[name]["options"]) + "\n")
    for paragraph in beside(known[name]):
        print(f"{paragraph}\n")
    print(
        "Try it:\n  "
        + cli.as_started(f"xcope train configs/quickstart.yaml sweep=null model.position={name}")
    )


def paragraphs(name: str, one: Mapping[str, Any]) -> list[str]:
    """What it is, and how it is switched on."""
    switch = f" or Decoder(…, {one['switch']})" if one["switch"] else ""
    option = next(iter(one["options"].items()), None)
    with_option = (
        f", or {{name: {name}, {option[0]}: {_show.as_yaml(option[1]['default'])}}}"
        if option
        else ""
    )
    return [
        f"{name}: {one['title']}",
        _show.facts(
            {
                "formula": one["formula"],
                "paper": _show.with_links(one["paper"]),
                "enters": one["where"],
                "consists of": " and ".join(one["parts"]) if len(one["parts"]) > 1 else "",
                "YAML": f"model: {{position: {name}}}{with_option}",
                "Python": f'Decoder(…, position="{name}"){switch}',
            }
        ),
        one["about"],
    ]


def beside(one: Mapping[str, Any]) -> list[str]:
    """What may stand beside it."""
    if not one["parts"]:
        return ["Nothing can stand beside it at the same heads; other layers may have others."]
    told = [f"At the same heads it goes with {', '.join(one['beside']) or 'nothing'}."]
    told += [f"Not with {name}: {why}." for name, why in one["not_beside"].items()]
    return ["\n".join(line for one in told for line in textwrap.wrap(one, _show.width()))]
