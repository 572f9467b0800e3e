"""The page of a scheme, and the page that lists them."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gallery.examples import built, described, linked, named, needs_options
from gallery.sentence import by_hand, read
from gallery.together import together
from xcope.config.yaml_tree import write_text
from xcope.describe import (
    before_args,
    flag_of,
    meanings,
    reason,
    refusal,
    switch,
    theirs,
    where,
)
from xcope.markdown import code, code_block, listed, page, table
from xcope.positions import Family, Scheme, Slot, presets

WIDTH = 100
"""Of a line of code."""
UP = "../.."
"""From the folder of the pages to that of the repository."""
EQUALITY_TESTS = "tests/modules/test_same_as_x_transformers.py"
PRESET_TESTS = "tests/integrations/test_presets.py"
COSTS = Path("results/schemes-cpu/schemes.csv")
MEASURED = {
    "time_over_sdpa": "time over attention without positions (SDPA)",
    "memory_over_sdpa": "peak memory over it",
    "x_transformers_over_ours": "x-transformers' time over ours",
    "naive_over_ours": "time of a naive version, which holds all logits, over ours",
}
"""Columns of the measurements → what they say."""
NOTHING = "Causal attention of a query to all keys before it, if q·k is the same for all."
CAPTIONS = {
    Slot.INPUT: (
        "Inner products of the vectors that are added, against the distance of two places: the "
        "mean over all pairs, over its value at distance 0.",
        "Beside it the vectors themselves.",
    ),
    Slot.ROTATION: (
        "What is left at a distance of q·k between equal unit vectors q = k, the mean over random "
        "ones, with plain rotary beside it (where q and k become wider, over the value at distance "
        "0). Dips and peaks come from pairs of channels that turn by half and whole circles.",
        "To the right what the single channels have of it, over that at distance 0, where q and k "
        "keep their width.",
    ),
    Slot.BIAS: (
        "The bias of each of eight heads against the distance of query and key. Learned biases are "
        "drawn as they are before training.",
        "Beside it the share of attention that a query at place 4096 gives to the keys up to a "
        "distance, if q·k is the same for all.",
    ),
    Slot.MASK: ("Queries from top to bottom, keys from left to right; bright is seen.", ""),
    Slot.SINK: (
        "What the sink leaves to the keys of attention, for several of its logits: the more keys "
        "there are, or the larger their logits, the less it takes.",
        "",
    ),
    Slot.SCALE: (
        "The factor of a query against its place, of each kind; the thick line is the one of the "
        "YAML file.",
        "",
    ),
}
"""Of the first diagram, and of the others."""
LEFT = "What a token leaves for later queries is learned; by hand"
LETTERS = "Letters of a sentence: each row is a query, each column a key, of the first head."
LOGITS_BY_HAND = (
    "What a model selects is learned; here q·k is set by hand to 8 where the key is a space and to "
    "−8 elsewhere, so that gates are open at spaces only."
)
STEPS_BY_HAND = (
    "How far a token steps is learned; by hand spaces take a step of 1 and letters none, so that "
    "places count words. Beside it what is left of q·k between equal unit vectors so many steps "
    "apart, the mean over random ones."
)


def pages(root: Path, names: Sequence[str] = ()) -> dict[str, str]:
    """File name → Markdown.

    Args:
        root: of the repository, whose configs and measurements are read.
        names: of schemes; for none of them every page, and the README that lists them.

    Raises:
        FlagError: an unknown name; a scheme without a YAML file.
    """
    chosen, every = named(names, root / "configs"), named((), root / "configs")
    costs = measured(root / COSTS)
    pages = {f"{one.name}.md": scheme_page(one, every, costs.get(one.name, {})) for one in chosen}
    return pages if names else pages | {"README.md": index_page(every)}


def write_pages(out: Path, root: Path, names: Sequence[str] = ()) -> list[Path]:
    """Write `pages`; returns the files."""
    texts = pages(root, names)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    return [out / name for name in texts]


def measured(file: Path) -> dict[str, dict[str, str]]:
    """The rows of the measurements by scheme; nothing where the file is missing."""
    if not file.is_file():
        return {}
    with file.open(newline="", encoding="utf-8") as opened:
        return {row["scheme"]: row for row in csv.DictReader(opened)}


def scheme_page(one: Scheme, examples: Sequence[Scheme], costs: Mapping[str, str]) -> str:
    """The Markdown of ``<name>.md``.

    Args:
        examples: every scheme.
        costs: the scheme's row of the measurements; empty where there is none.
    """
    return page(
        [
            f"# {one.title}: `{one.name}`",
            described(type(one)),
            f"![{one.title}: what it does to attention]({one.name}.png)",
            *caption(one),
            f"Family: {one.family.value}. Where it enters: {where(one)}. In short: "
            f"`{one.formula}`. "
            f"Paper: {linked(one.paper)}.",
            *_switching(one),
            *_options(one),
            *_cost(costs),
            *_together(one, examples),
            *_held(one),
            "[All schemes](README.md) · [how they are related](../related.md) · "
            f"[source]({UP}/xcope/positions/{one.name}.py) · "
            f"[YAML]({UP}/configs/schemes/{one.name}.yaml)",
        ]
    )


def index_page(examples: Sequence[Scheme]) -> str:
    """The Markdown of ``README.md``."""
    return page(
        [
            "# Positional schemes",
            "Each is one file under [xcope/positions](../../xcope/positions) and one under "
            "[configs/schemes](../../configs/schemes). `python scripts/gallery.py` writes these "
            "pages and pictures. [Which of these are related](../related.md) tells how one becomes "
            "another.",
            *(block for family in Family for block in _family(family, examples)),
            "## Presets of released models",
            "The positional part of a model, said with the schemes above: `position: {preset: "
            "gemma3}`, and `{preset: gemma3, window: 64}` where a small model needs another size. "
            "`xcope config` and `xcope schemes gemma3` print what it stands for, layer by layer. "
            f"Each gives the logits of transformers' model with its weights, in [{PRESET_TESTS}]"
            f"({UP}/{PRESET_TESTS}).",
            table(("preset", "model", "what it is", "sizes", "source"), _presets()),
            "## What each does to attention",
            "Biases and rotations against the distance of query and key, vectors of the input by "
            "their likeness, attention itself on a sentence; heads from dark to light. The page of "
            "each scheme explains its picture.",
            "![contact sheet of all schemes](contact-sheet.png)",
            "## What goes together",
            *together(examples),
        ]
    )


def _family(family: Family, examples: Sequence[Scheme]) -> Iterator[str]:
    """The heading and the table of a family's schemes, if it has any."""
    rows = [
        (
            f"[`{one.name}`]({one.name}.md)",
            one.title,
            where(one),
            code(one.formula),
            linked(one.paper),
        )
        for one in examples
        if one.family is family
    ]
    if rows:
        yield f"## {family.value.capitalize()}"
        yield table(("name", "title", "where it enters", "formula", "paper"), rows)


def _presets() -> Iterator[tuple[str, ...]]:
    """A row for each preset."""
    for name, kind in presets().items():
        sizes = ", ".join(
            f"{option} {field.default:,.12g}"
            for option, field in kind.options().items()
            if isinstance(field.default, int | float)
        )
        what = before_args(kind).replace("``", "`")
        yield code(name), kind.title, what, sizes or "–", linked(kind.source)


def caption(one: Scheme) -> Iterator[str]:
    """Paragraphs that say what `gallery.pictures.panels` draws."""
    parts = [part for part in one.parts() if part.slot is not None]
    for part in parts:
        if part.slot is Slot.ATTEND:
            module = built(part)
            maps, _ = read(module)
            by_logits = LOGITS_BY_HAND if maps or not module.remembers else ""
            by_tokens = f"{LEFT} {by_hand(module).told}" if module.remembers else ""
            yield " ".join(filter(None, (LETTERS, by_logits, by_tokens)))
        elif part.slot is Slot.ROTATION and built(part).remembers:
            yield f"{LETTERS} {STEPS_BY_HAND}"
        elif part.slot is not None:
            first, others = CAPTIONS[part.slot]
            yield first if len(parts) > 1 else f"{first} {others}".rstrip()
    if len(parts) > 1 and {Slot.ROTATION, Slot.BIAS} & {part.slot for part in parts}:
        yield "The scheme of attention itself reads logits on which the other part has acted."
    if not parts:
        yield NOTHING


def _switching(one: Scheme) -> Iterator[str]:
    yield "## Switch it on"
    given = one.given() if needs_options(one) else {}
    flags = [f"{flag_of(one, option)}={value!r}" for option, value in given.items()]
    switches = [f'position="{one.name}"']
    by_switch = switch(type(one))
    if by_switch is not None:
        switches.append(by_switch)
    lines = [_decoder([way, *flags]) for way in switches]
    yield code_block("\n".join(["from xcope import Decoder", "", *lines]), "python")
    options = "".join(f", {option}: {value}" for option, value in given.items())
    position = f"{{name: {one.name}{options}}}" if given else one.name
    yield code_block(f"model:\n  position: {position}", "yaml")
    yield _upstream(one)
    if one.authors and len(one.parts()) == 1:
        options = write_text(dict(one.authors)).strip()
        yield f"`{{name: {one.name}, start: authors}}` starts it as its authors do: `{options}`."


def _decoder(flags: Sequence[str]) -> str:
    """A call of Decoder, in lines of its own where one is too long."""
    arguments = ["dim=128", "depth=2", "heads=4", *flags]
    line = f"Decoder({', '.join(arguments)})"
    if len(line) <= WIDTH:
        return line
    return "\n".join(["Decoder(", *(f"    {argument}," for argument in arguments), ")"])


def _upstream(one: Scheme) -> str:
    same = one.counterpart()
    if same is None:
        return "x-transformers has no switch of its own for it."
    decoder, wrapper = ([f"{flag}={value}" for flag, value in flags.items()] for flags in same)
    layers = f"attn_layers=Decoder({', '.join(['…', *decoder])})"
    call = f"TransformerWrapper({', '.join(['…', *wrapper, layers])})"
    text = f"The same in x-transformers: `{call}`."
    if one.upstream_kwargs:
        text += f" Its `{one.upstream_kwargs}={{…}}` takes the options, too."
    return text


def _options(one: Scheme) -> Iterator[str]:
    if not one.options():
        return
    yield "## Options"
    told = meanings(type(one))
    rows = []
    for option in dict.fromkeys([*told, *one.options()]):
        flag = flag_of(one, option)
        spelled = listed(map(code, theirs(one, flag)))
        default = code(repr(one.options()[option].default))
        rows.append((code(option), default, code(flag), spelled, told.get(option, "")))
    yield table(("option", "default", "keyword flag", "x-transformers", "meaning"), rows)


def _cost(costs: Mapping[str, str]) -> Iterator[str]:
    yield "## Cost"
    cells = [(says, costs[column]) for column, says in MEASURED.items() if costs.get(column)]
    if not cells:
        yield "Not measured."
        return
    yield table(("measured", "ratio"), cells)
    yield f"How: [results/schemes-cpu]({UP}/{COSTS.parent.as_posix()})."


def _together(one: Scheme, examples: Sequence[Scheme]) -> Iterator[str]:
    yield "## What it goes together with"
    parts = one.parts()
    if not parts:
        yield (
            f"Nothing can stand beside `{one.name}` at the same heads; in a list of layers or "
            f"heads it means those without positions: `{{layers: [rotary, {one.name}]}}`."
        )
        return
    if len(parts) > 1:
        names = ", ".join(part.name for part in parts)
        yield f"It is `position: [{names}]` under one name."
    others = [other for other in examples if len(other.parts()) == 1 and other != one]
    refused = {other.name: why for other in others if (why := refusal(one, other))}
    yield f"At the same heads: {listed(code(o.name) for o in others if o.name not in refused)}."
    filled = {part.slot for part in parts}
    reasons: dict[str, list[str]] = {}
    for other in others:
        if other.name in refused and other.slot not in filled:
            reasons.setdefault(reason(refused[other.name]), []).append(code(other.name))
    yield "\n".join(f"- Not {', '.join(names)}: {why}." for why, names in reasons.items())
    if Slot.INPUT in filled:
        yield "It stands before all layers and heads, whatever these have."
    else:
        anchor = "[what goes together](README.md#what-goes-together)"
        yield f"Other layers or heads may have others: {anchor}."


def _held(one: Scheme) -> Iterator[str]:
    yield "## What its tests hold it to"
    if one.oracle == "x-transformers":
        yield (
            f"x-transformers: the same weights give the same outputs, in "
            f"[{EQUALITY_TESTS}]({UP}/{EQUALITY_TESTS})."
        )
        return
    file = f"tests/positions/oracles/test_{one.name}.py"
    held = (
        "The paper's formula in plain loops"
        if one.oracle == "formula"
        else f"The package `{one.oracle}`"
    )
    yield f"{held}, in [{file}]({UP}/{file})."
