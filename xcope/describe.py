"""What is registered, as plain data: for ``xcope schemes`` and ``xcope tasks``, and for
`xcope.catalogue`, which keeps it in a file."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from typing import Any

from xcope.compare.report.columns import COLUMNS
from xcope.errors import FlagError
from xcope.modules import decoder_flags, wrapper_flags
from xcope.positions import Family, Preset, Scheme, Slot, clash, presets, schemes
from xcope.registry import Named
from xcope.tasks import Task, tasks
from xcope.training.metrics import METRICS

WHERE = {
    Slot.INPUT: "added to the token embedding",
    Slot.ROTATION: "turns queries and keys",
    Slot.BIAS: "added to the attention logits",
    Slot.ATTEND: "the attention operation itself",
    Slot.MASK: "says which keys a query sees",
    Slot.SINK: "takes a share of attention",
    Slot.SCALE: "multiplies queries",
}


def described() -> dict[str, Any]:
    """``schemes``, ``presets`` and ``tasks`` by name (`of_scheme`, …), the ``families`` of schemes
    in their order, ``flags`` of models, and what a comparison may have ``shown``: metrics and
    columns.
    """
    return {
        "schemes": {name: of_scheme(kind) for name, kind in schemes().items()},
        "presets": {name: of_preset(kind) for name, kind in presets().items()},
        "tasks": {name: of_task(kind) for name, kind in tasks().items()},
        "families": [family.value for family in Family],
        "flags": sorted(decoder_flags() | wrapper_flags()),
        "shown": [*METRICS, *COLUMNS],
    }


def of_scheme(kind: type[Scheme]) -> dict[str, Any]:
    """What people ask of a scheme: what it is, its options, what it stands beside."""
    own = {name: option | {"flag": flag_of(kind(), name)} for name, option in options(kind).items()}
    for option in own.values():
        option["theirs"] = theirs(kind(), option["flag"])
    others = [one for name, one in schemes().items() if name != kind.name and one.slot is not None]
    refused = {other.name: refusal(kind(), other()) for other in others}
    return {
        "title": kind.title,
        "family": kind.family.value,
        "where": where(kind()),
        "formula": kind.formula,
        "paper": kind.paper,
        "about": about(kind),
        "options": own,
        "authors": authors(kind),
        "switch": switch(kind),
        "parts": [part.name for part in kind().parts()],
        "beside": [name for name, why in refused.items() if why is None] if kind().parts() else [],
        "not_beside": {
            name: reason(why)
            for name, why in refused.items()
            if why and schemes()[name].slot not in {part.slot for part in kind().parts()}
        },
    }


def switch(kind: type[Scheme]) -> str | None:
    """x-transformers' flag that turns a scheme on, and its value: ``attn_use_cope=True``."""
    same = kind.counterpart()
    if kind.upstream_switch is None or kind.upstream_varies or same is None:
        return None
    return f"{kind.upstream_switch}={same[0].get(kind.upstream_switch, True)}"


def of_preset(kind: type[Preset]) -> dict[str, Any]:
    """What people ask of a preset: whose it is, its options, and what it stands for."""
    return {
        "title": kind.title,
        "source": kind.source,
        "about": before_args(kind),
        "options": options(kind),
        "position": kind().position(),
    }


def of_task(kind: type[Task]) -> dict[str, Any]:
    """What people ask of a task: what it is, its options, on what it is tested."""
    try:
        splits = list(kind().splits)
    except FlagError:  # there are none before it has data
        splits = []
    return {
        "title": about(kind).partition("\n")[0].rstrip("."),
        "paper": kind.paper,
        "metric": kind.metric,
        "splits": splits,
        "about": f"{about(kind)}\n\n{before_args(kind)}".rstrip(),
        "options": options(kind),
        "paths": {option: dataclasses.asdict(path) for option, path in kind.paths().items()},
    }


def options(kind: type[Named]) -> dict[str, dict[str, Any]]:
    """Option → ``default`` and ``type``, as Python writes them, and ``meaning``."""
    told = meanings(kind)
    return {
        option: {
            "default": repr(field.default),
            "type": _type(field.type),
            "meaning": told.get(option, ""),
        }
        for option, field in kind.options().items()
    }


def authors(kind: type[Scheme]) -> dict[str, str]:
    """Option, of a combination its parts' with their names → what ``start: authors`` makes of it,
    as Python writes it; empty where that is not known."""
    parts = kind().parts()
    if not all(part.authors for part in parts):
        return {}
    return {
        option if len(parts) == 1 else part.flag(option): repr(value)
        for part in parts
        for option, value in part.authors.items()
    }


def _type(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return re.sub(r"Annotated\[(.+?), .*\]", r"\1", text)


def flag_of(one: Scheme, option: str) -> str:
    """The keyword flag of an option; combinations take the flags of their parts."""
    for part in one.parts():
        for own in part.options():
            if option in (own, f"{part.name}_{own}"):
                return f"{part.name}_{own}"
    return f"{one.name}_{option}"


def theirs(one: Scheme, flag: str) -> list[str]:
    """What x-transformers calls a flag of the scheme."""
    spelled = {
        spelling: flag_of(kind, option)
        for kind in (one, *one.parts())
        for spelling, option in kind.upstream_options.items()
    }
    return [spelling for spelling, ours in spelled.items() if ours == flag]


def where(one: Scheme) -> str:
    """Where a scheme enters, for a table."""
    if one.slot is not None:
        return WHERE[one.slot]
    return ", ".join(where(part) for part in one.parts()) or "nowhere"


def refusal(one: Scheme, other: Scheme) -> str | None:
    """Why two schemes, combinations among them, cannot stand at the same heads."""
    pairs = ((mine, theirs) for mine in one.parts() for theirs in other.parts())
    return next((why for pair in pairs if (why := clash(*pair))), None)


def reason(why: str) -> str:
    """Of two schemes that do not go together, without their names and without what to do."""
    return why.partition(": ")[2].rpartition(";")[0]


def about(kind: type[Named]) -> str:
    """The docstring of the file."""
    return inspect.cleandoc(sys.modules[kind.__module__].__doc__ or "")


def before_args(kind: type[Named]) -> str:
    """The class's own docstring without what stands under ``Args``."""
    return inspect.cleandoc(vars(kind).get("__doc__") or "").partition("Args:\n")[0].strip()


def meanings(kind: type[Named]) -> dict[str, str]:
    """Option → its line under ``Args``; the class's own options, then the inherited ones."""
    found: dict[str, str] = {}
    for cls in kind.__mro__:
        if issubclass(cls, Named):
            found = found | {k: v for k, v in arguments(cls).items() if k not in found}
    return {option: text for option, text in found.items() if option in kind.options()}


def arguments(cls: type) -> dict[str, str]:
    """The names under ``Args:`` of a class's own docstring → what stands beside them."""
    _, _, args = inspect.cleandoc(vars(cls).get("__doc__") or "").partition("Args:\n")
    args = re.split(r"\n(?=\S)", args)[0]
    entries = re.split(r"^    (?=\w+: )", args, flags=re.MULTILINE)[1:]
    pairs = (entry.split(": ", 1) for entry in entries)
    return {name: " ".join(text.split()).replace("``", "`") for name, text in pairs}
