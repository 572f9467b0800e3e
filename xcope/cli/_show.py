"""What is registered, for a terminal."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from xcope import catalogue


def _run_plugins(ctx: click.Context, param: click.Parameter, names: Sequence[str]) -> None:
    if names:
        from xcope import plugins

        plugins.load(map(plugins.named, names))


import_option: Callable[..., Any] = click.option(
    "--import",
    multiple=True,
    metavar="FILE | MODULE",
    expose_value=False,
    callback=_run_plugins,
    help="with what this file or module registers, as import: of a config",
)


def registered() -> catalogue.Described:
    """Every scheme and task: from the catalogue, or from themselves."""
    known = catalogue.read()
    if known is None:
        from xcope.describe import described

        known = described()
    return known


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns under a head, as wide as the terminal; the last one is wrapped."""
    return grouped(head, {"": rows})


def grouped(head: Sequence[str], groups: Mapping[str, Iterable[Sequence[str]]]) -> str:
    """A `table` of several groups of rows under their titles, with columns of the same widths."""
    found = {title: [*map(tuple, rows)] for title, rows in groups.items()}
    every = [tuple(head), *(row for rows in found.values() for row in rows)]
    widths = [max(len(row[column]) for row in every) for column in range(len(head) - 1)]
    left = sum(widths) + 2 * len(widths)

    def lines(row: Sequence[str]) -> list[str]:
        cells = "".join(f"{cell:<{size}}  " for cell, size in zip(row, widths, strict=False))
        parts = textwrap.wrap(row[-1], max(24, width() - left)) or [""]
        return [(cells + parts[0]).rstrip(), *(" " * left + part for part in parts[1:])]

    told = lines(head)
    for title, rows in found.items():
        told += ["", title] if title else []
        told += [line for row in rows for line in lines(row)]
    return "\n".join(told)


def options(known: Mapping[str, Any]) -> str:
    """The table of options: defaults, meanings, and how else they are spelled."""
    if not known:
        return "It has no options."
    rows = []
    for name, one in known.items():
        spelled = [one["flag"], *one["theirs"]] if "flag" in one else []
        flags = f" (flag {', '.join(spelled)})" if spelled else ""
        rows.append((name, as_yaml(one["default"]), (one["meaning"] + flags).strip()))
    return table(("option", "default", "meaning"), rows)


def facts(told: Mapping[str, str]) -> str:
    """A line for each that is there."""
    there = {key: text for key, text in told.items() if text and text != "-"}
    size = max(map(len, there))
    return "\n".join(f"{key:<{size}}  {text}" for key, text in there.items())


def position_lines(position: Any) -> Iterator[str]:
    """A position as YAML, a line for each layer."""
    from xcope.config.yaml_tree import write_text

    layers = position["layers"] if isinstance(position, Mapping) and "layers" in position else None
    if layers is not None:
        yield "layers:"
    for one in [position] if layers is None else layers:
        text = one if isinstance(one, str) else write_text(one, block=False).rstrip()
        yield text if layers is None else f"- {text}"


def as_yaml(value: str) -> str:
    """A Python literal as YAML has it; the middle of a long one is left out."""
    words = {"None": "null", "True": "true", "False": "false"}
    value = value if len(value) <= 40 else f"{value[:20]}…{value[-9:]}"
    return words.get(value, value.replace("(", "[").replace(",)", "]").replace(")", "]"))


def with_links(paper: str) -> str:
    """arXiv numbers as addresses that a terminal opens."""
    return re.sub(r"(?:arXiv )?\b(\d{4}\.\d{4,5})\b", r"https://arxiv.org/abs/\1", paper)


def width() -> int:
    """Of the terminal, 100 columns at most."""
    return min(100, shutil.get_terminal_size((100, 24)).columns)
