"""What the gallery knows of a scheme: the options in its YAML file, its module, its docstrings."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from xcope.config.yaml_tree import read_file
from xcope.describe import about
from xcope.errors import FlagError
from xcope.positions import Geometry, Scheme, scheme, schemes

GEOMETRY = Geometry(dim=512, heads=8, dim_head=64, max_seq_len=512)
TRAINED_LEN = GEOMETRY.max_seq_len
"""Stands where a scheme needs the training length, which only its user knows."""
ARXIV = re.compile(r"\b(\d{4}\.\d{4,5})\b")


def named(names: Sequence[str], configs: Path) -> list[Scheme]:
    """The examples of these schemes; of all, family by family, for no names.

    Raises:
        FlagError: an unknown name, with the nearest one.
    """
    every = [name for family in schemes().families().values() for name in family]
    return [example(name, configs) for name in names or every]


def example(name: str, configs: Path) -> Scheme:
    """The scheme with the options in ``schemes/<name>.yaml``.

    Args:
        name: of the scheme.
        configs: the folder of the YAML files.

    Raises:
        FlagError: an unknown name, with the nearest one; a scheme without a YAML file.
    """
    scheme(name)
    file = configs / "schemes" / f"{name}.yaml"
    if not file.is_file():
        raise FlagError("position", f"position {name!r} has no {file}: write it, with its options")
    node = read_file(file).get("model", "position")
    if node is None:
        raise FlagError("position", f"{file} says nothing of model.position: write it")
    position = node.plain()
    if isinstance(position, str):
        return scheme(position)
    options = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in position.items()
        if key != "name"
    }
    if "trained_len" in options and options["trained_len"] is None:
        options["trained_len"] = TRAINED_LEN
    return scheme(position["name"], options)


def needs_options(one: Scheme) -> bool:
    """Whether the scheme cannot be built with its defaults."""
    try:
        for part in type(one)().parts():
            part.build(GEOMETRY)
    except FlagError:
        return True
    return False


def built(one: Scheme, seed: int = 0) -> Any:
    """The scheme's module, fresh, in evaluation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = one.build(GEOMETRY)
    return None if module is None else module.eval()


def beginning(one: Scheme) -> str:
    """What is to be said of a module that learns and did not yet; else nothing."""
    first, second = built(one), built(one, seed=1)
    if first is None or not list(first.parameters()):
        return ""
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    same = all(torch.equal(a, b) for a, b in pairs)
    return "before training" if same else "before training: random"


def numbers(one: Scheme) -> str:
    """The options that are numbers: ``base 10000, factor 2``."""
    values = {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
    return ", ".join(
        f"{option} {value:g}"
        for option, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    )


def linked(text: str) -> str:
    """The text with its arXiv numbers as links."""
    return ARXIV.sub(r"[\1](https://arxiv.org/abs/\1)", text)


def described(kind: type[Scheme]) -> str:
    """The docstring of the scheme's file as Markdown: paragraphs, and formulas as code."""
    return "\n\n".join(map(_block, _blocks(about(kind))))


def _blocks(doc: str) -> list[str]:
    """Paragraphs and indented blocks; blocks that only empty lines part are one."""
    blocks: list[str] = []
    for block in re.split(r"\n\s*\n", doc):
        if blocks and block.startswith("    ") and blocks[-1].startswith("    "):
            blocks[-1] += "\n\n" + block
        else:
            blocks.append(block)
    return blocks


def _block(block: str) -> str:
    if block.startswith("    "):
        return f"```text\n{textwrap.dedent(block)}\n```"
    return linked(block.replace("``", "`"))
