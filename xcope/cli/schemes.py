"""``xcope schemes``: the positional schemes and presets that there are, and all about one."""

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
xcope schemes gemma3
xcope schemes recency --import recency.py
"""


@cli.command(EXAMPLES)
@click.argument("name", required=False, type=_complete.RegisteredType("schemes", "presets"))
@_show.import_option
def command(name: str | None) -> None:
    """List the positional schemes by families, and the presets of released models; with NAME:
    formula, paper, options, what it goes with, or what a preset stands for."""
    known = _show.registered()
    schemes, presets = known["schemes"], known["presets"]
    if name is None:
        print(_show.grouped(("scheme", "what", "paper"), groups(known)))
        print(f"\nMore of one: {cli.as_started('xcope schemes cope')}")
        return
    if name in presets and name not in schemes:
        print(of_preset(name, presets[name]))
        return
    check_named({**presets, **schemes}, name, None, flag="position", noun="scheme", spelled=str)
    for paragraph in paragraphs(name, schemes[name]):
        print(f"{paragraph}\n")
    print(_show.options(schemes[name]["options"]) + "\n")
    for paragraph in [*start_of(schemes[name]), *beside(schemes[name])]:
        print(f"{paragraph}\n")
    print(
        "Try it:\n  "
        + cli.as_started(f"xcope train configs/quickstart.yaml sweep=null model.position={name}")
    )
    if name in presets:
        print(f"\nA preset is called so, too.\n\n{of_preset(name, presets[name])}")


def groups(known: Mapping[str, Any]) -> dict[str, list[tuple[str, str, str]]]:
    """Title → rows: the schemes of each family, then the presets."""
    found: dict[str, list[tuple[str, str, str]]] = {family: [] for family in known["families"]}
    for name, one in known["schemes"].items():
        found[one["family"]].append((name, one["title"], one["paper"]))
    presets = [
        (name, one["title"], one["source"].partition(",")[0])
        for name, one in known["presets"].items()
    ]
    told = {family: rows for family, rows in found.items() if rows}
    return told | {"presets of released models: {preset: NAME}": presets}


def of_preset(name: str, one: Mapping[str, Any]) -> str:
    """What a preset is, its options, and what it stands for."""
    facts = {
        "of": _show.with_links(one["source"]),
        "YAML": f"model: {{position: {{preset: {name}}}}}",
        "Python": f'Decoder(…, position={{"preset": "{name}"}})',
    }
    stands = "\n".join(_show.position_lines(one["position"]))
    blocks = [
        f"{name}: {one['title']}",
        _show.facts(facts),
        one["about"],
        _show.options(one["options"]),
        f"It stands for\n{textwrap.indent(stands, '  ')}",
    ]
    return "\n\n".join(blocks)


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


def start_of(one: Mapping[str, Any]) -> list[str]:
    """What ``start: authors`` sets."""
    if not one["authors"]:
        return []
    told = ", ".join(f"{option}: {_show.as_yaml(v)}" for option, v in one["authors"].items())
    return ["\n".join(textwrap.wrap(f"start: authors sets {told}.", _show.width()))]


def beside(one: Mapping[str, Any]) -> list[str]:
    """What may stand beside it."""
    if not one["parts"]:
        return ["Nothing can stand beside it at the same heads; other layers may have others."]
    told = [f"At the same heads it goes with {', '.join(one['beside']) or 'nothing'}."]
    told += [f"Not with {name}: {why}." for name, why in one["not_beside"].items()]
    return ["\n".join(line for one in told for line in textwrap.wrap(one, _show.width()))]
