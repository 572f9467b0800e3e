"""What ``position`` may say, and the plan it becomes: which layer and which head has which scheme.

rotary                                   a scheme
{name: rotary, dim: 16}                  with options
[absolute, cope]                         several at once
{name: t5, start: authors}               with the options with which its authors start it
{layers: [rotary, none]}                 layer by layer, repeated over the depth
[rotary, none]                           the same: ``none`` beside another can mean nothing else
{heads: [cope, rotary]}                  head by head: equal groups of each layer's heads
[absolute, {layers: [cope, {heads: [rotary, alibi]}]}]
{preset: gemma3, window: 64}             what a released model has (`xcope.positions.released`)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from xcope.errors import FlagError, did_you_mean, listing
from xcope.positions.base import Scheme, Slot
from xcope.positions.registry import scheme, schemes
from xcope.positions.released import Preset, preset
from xcope.positions.tables import BLOCK, TableScheme

Position: TypeAlias = str | Mapping[str, Any] | Scheme | Sequence[Any]
"""What ``position`` may be."""

Group: TypeAlias = tuple[Scheme, ...]
"""The schemes that a group of heads has, combinations replaced by their parts."""

Layer: TypeAlias = tuple[Group, ...]
"""The groups of a layer's heads, equally large."""

SPLITS = ("layers", "heads")
START, AUTHORS = "start", "authors"


@dataclass(frozen=True)
class Plan:
    """Who has which scheme.

    Args:
        layers: of attention; repeated over the depth.
        exact: the layers are as many as the decoder's, nothing is repeated.
        preset: that this is, if it is one and nothing else.
    """

    layers: tuple[Layer, ...]
    exact: bool = False
    preset: Preset | None = field(default=None, compare=False)

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """Every scheme once, in the order of their first appearance."""
        return tuple(
            dict.fromkeys(one for layer in self.layers for group in layer for one in group)
        )

    @property
    def uniform(self) -> bool:
        """Whether all layers and all heads have the same."""
        return len(self.layers) == 1 and len(self.layers[0]) == 1

    def of(self, slot: Slot) -> tuple[Scheme, ...]:
        """The schemes of a slot."""
        return tuple(one for one in self.schemes if one.slot is slot)

    def map(self, change: Callable[[Scheme], Scheme]) -> Plan:
        """The plan with every scheme changed."""
        return self._with(
            tuple(
                tuple(tuple(change(one) for one in group) for group in layer)
                for layer in self.layers
            )
        )

    def without(self, name: str) -> Plan:
        """The plan without a scheme."""
        layers = tuple(
            tuple(tuple(one for one in group if one.name != name) for group in layer)
            for layer in self.layers
        )
        return self._with(layers)

    def _with(self, layers: tuple[Layer, ...]) -> Plan:
        """The plan with other layers; a preset only if they are the same."""
        preset = self.preset if layers == self.layers else None
        return dataclasses.replace(self, layers=layers, preset=preset)

    def label(self) -> str:
        """``cope(max_pos=64)+rotary``, ``layers(rotary, none)``, ``heads(cope, rotary)``; of a
        preset ``gemma3``."""
        if self.preset is not None:
            return self.preset.label()
        layers = [_listed("heads", [_label(group) for group in layer]) for layer in self.layers]
        return _listed("layers", layers)

    def explained(self, error: FlagError) -> FlagError:
        """An error of one of the schemes, told by the preset's option that stands for it."""
        options = () if self.preset is None else self.preset.options()
        ends = [option for option in options if error.flag.endswith(f"_{option}")]
        option = max(ends, key=len, default=None)
        if self.preset is None or option is None:
            return error
        name = self.preset.name
        hint = f"; set it beside the preset, {{preset: {name}, {option}: …}} (xcope schemes {name})"
        return FlagError(self.preset.flag(option), f"preset {name!r}: {error}{hint}")

    def to_shorten(self, layers: int) -> str:
        """What to do where there are fewer layers than these: of an error."""
        if self.preset is None:
            return "shorten it"
        return f"write {{preset: {self.preset.name}, every: {layers}}}"


def _label(group: Group) -> str:
    return "+".join(one.label() for one in group) or "none"


def _listed(word: str, labels: Sequence[str]) -> str:
    return labels[0] if len(labels) == 1 else f"{word}({', '.join(labels)})"


def parse(position: Position) -> Plan:
    """The plan that ``position`` asks for.

    Raises:
        FlagError: an unknown name or option, with the nearest valid one; schemes that do not go
            together; a mapping that is neither a scheme nor a split.
    """
    if isinstance(position, Scheme):
        return single(position)
    if isinstance(position, str):
        return single(scheme(position))
    if isinstance(position, Mapping):
        return _parse_mapping(position)
    if isinstance(position, list | tuple):
        return _parse_list(position)
    raise FlagError(
        "position",
        f"position={position!r} is neither a scheme's name nor a mapping with name and options: "
        f"choose among {listing(schemes())}",
    )


def single(*chosen: Scheme) -> Plan:
    """The same schemes for all layers and heads."""
    group = tuple(part for one in chosen for part in one.parts())
    check_together(group)
    return Plan(((group,),))


def _parse_mapping(position: Mapping[str, Any]) -> Plan:
    for split, arrange in (("layers", _in_layers), ("heads", _in_heads)):
        if split in position:
            entries = position[split]
            if len(position) > 1 or not isinstance(entries, list | tuple) or not entries:
                raise FlagError(
                    "position",
                    f"position={position!r} is not allowed: write {{{split}: [rotary, none]}}, "
                    "a list with an entry for each, and nothing beside it",
                )
            return arrange([_part_of(split, entry) for entry in entries], position)
    options = dict(position)
    if "preset" in position:
        return _released(preset(options.pop("preset"), options, schemes()))
    name = options.pop("name", None)
    if isinstance(name, str) and START in options:
        return parse(started(position))
    if isinstance(name, str):
        return single(scheme(name, options))
    keys = ("preset", *SPLITS)
    near = next((did_you_mean(key, keys) for key in position if isinstance(key, str)), "")
    raise FlagError(
        "position",
        f"position={position!r} lacks 'name': write for instance {{name: cope, max_pos: 64}}{near}",
    )


def started(position: Any, given: Collection[str] = ()) -> Any:
    """``position`` with the options that each ``start: authors`` in it stands for, however deep.

    A combination becomes a list of its parts.

    Args:
        position: as for `parse`.
        given: keyword flags beside it, ``<scheme>_<option>``, whose options stay as they are.

    Raises:
        FlagError: another start, one of a scheme whose authors' is not known, or one that all
            options beside it contradict.
    """
    if isinstance(position, list | tuple):
        return [started(entry, given) for entry in position]
    if not isinstance(position, Mapping):
        return position
    inner = {
        split: started(position[split], given)
        for split in SPLITS
        if isinstance(position.get(split), list | tuple)
    }
    options = {**position, **inner}
    if START not in options or not isinstance(options.get("name"), str):
        return options
    name, start = options.pop("name"), options.pop(START)
    if start is None:
        return {"name": name, **options}
    flag, made = f"{name}_{START}", scheme(name, options)
    if start != AUTHORS:
        near = did_you_mean(start, [AUTHORS]) if isinstance(start, str) else ""
        raise FlagError(
            flag, f"{flag}={start!r} is not allowed: write start: {AUTHORS}, or leave it out{near}"
        )
    unknown = [part.name for part in made.parts() if not part.authors] or (
        [] if made.parts() else [name]
    )
    if unknown:
        known = [one for one, kind in schemes().items() if kind.slot is not None and kind.authors]
        raise FlagError(
            flag,
            f"{flag}={start!r} is not allowed: how its authors start {listing(unknown)} is not "
            f"known here; drop it. It is known of {listing(known)}",
        )
    parts = []
    for part in made.parts():
        own = _own(made, part, options)
        authors = {o: v for o, v in part.authors.items() if part.flag(o) not in given}
        parts.append({"name": part.name, **authors, **own})
    set_here = [
        option
        for part, entry in zip(made.parts(), parts, strict=True)
        for option, value in part.authors.items()
        if entry.get(option, START) == value
    ]
    if not set_here:
        told = [part.flag(option) for part in made.parts() for option in part.authors]
        raise FlagError(
            flag,
            f"{flag}={start!r} sets nothing but {listing(told)}, and the position says otherwise: "
            "drop one of them",
        )
    return parts[0] if len(parts) == 1 else parts


def _own(whole: Scheme, part: Scheme, written: Mapping[str, Any]) -> dict[str, Any]:
    """What was written of a part of ``whole``, or of itself: ``rotary_dim`` of ``cope_rotary``."""
    spelled = {o: p if (p := part.flag(o)) in whole.options() else o for o in part.options()}
    return {option: written[key] for option, key in spelled.items() if key in written}


def _released(chosen: Preset) -> Plan:
    """The plan of a preset."""
    try:
        plan = parse(chosen.position())
    except FlagError as error:
        raise FlagError(error.flag, f"preset {chosen.label()!r}: {error}") from error
    return dataclasses.replace(plan, preset=chosen)


def _part_of(split: str, entry: Position) -> Plan:
    """The plan of an entry of a split; it may hold nothing that stands before all layers."""
    plan = parse(entry)
    for one in plan.of(Slot.INPUT):
        raise FlagError(
            "position",
            f"position {one.name!r} is added to the token embedding, before all layers and heads: "
            f"take it out of {split!r} and write [{one.name}, {{{split}: […]}}]",
        )
    return plan


def _in_layers(plans: Sequence[Plan], position: object) -> Plan:
    for plan in plans:
        if len(plan.layers) > 1:
            what = "'layers'" if plan.preset is None else f"preset {plan.preset.name!r}, of layers,"
            raise FlagError("position", f"position={position!r}: {what} within 'layers'")
    return Plan(tuple(plan.layers[0] for plan in plans))


def _in_heads(plans: Sequence[Plan], position: object) -> Plan:
    for plan in plans:
        if not plan.uniform:
            raise FlagError(
                "position",
                f"position={position!r}: a split within 'heads'; put 'heads' into 'layers' instead",
            )
    return Plan((tuple(plan.layers[0][0] for plan in plans),))


def _parse_list(position: Sequence[Any]) -> Plan:
    if not position:
        raise FlagError("position", "position=[] names no scheme: write position='none' for none")
    plans = [parse(entry) for entry in position]
    if len(plans) > 1 and any(map(_is_none, plans)):
        return _in_layers([_part_of("layers", entry) for entry in position], position)
    return combined(plans)


def _is_none(plan: Plan) -> bool:
    return plan.uniform and not plan.schemes


def combined(plans: Iterable[Plan]) -> Plan:
    """Everything that the plans say, at once.

    Raises:
        FlagError: schemes that do not go together.
    """
    first, *others = plans
    for other in others:
        first = _both(first, other)
    return first


def _both(a: Plan, b: Plan) -> Plan:
    period = math.lcm(len(a.layers), len(b.layers))
    layers = []
    for index in range(period):
        mine, theirs = a.layers[index % len(a.layers)], b.layers[index % len(b.layers)]
        groups = math.lcm(len(mine), len(theirs))
        layer = tuple(
            (*mine[g * len(mine) // groups], *theirs[g * len(theirs) // groups])
            for g in range(groups)
        )
        for group in layer:
            check_together(group)
        layers.append(layer)
    return Plan(tuple(layers), a.exact or b.exact)


def check_together(group: Sequence[Scheme]) -> None:
    """Refuse two schemes for one slot, and pairs that make no sense.

    Raises:
        FlagError: names both schemes and what to change.
    """
    for index, one in enumerate(group):
        for other in group[index + 1 :]:
            reason = clash(one, other)
            if reason:
                raise FlagError("position", reason)


def clash(one: Scheme, other: Scheme) -> str | None:
    """Why two schemes cannot stand at the same heads, and what to change; None if they can."""
    if one.slot is other.slot:
        return (
            f"two schemes at once: {one.name!r} and {other.name!r} both fill the "
            f"{one.slot.value if one.slot else 'same'} slot: keep one of them"
        )
    for mine, theirs in ((one, other), (other, one)):
        for excluded, why in mine.excludes.items():
            if excluded in (theirs.slot, theirs.name):
                return (
                    f"{mine.name!r} and {theirs.name!r} do not go together: {why}; keep one of them"
                )
    return None


def table_size(name: str, block: int) -> int | str:
    """What ``max_pos: block`` of a scheme means for so many tokens of a row in training."""
    one = scheme(name, {"max_pos": BLOCK})
    return one.fitted(block).max_pos if isinstance(one, TableScheme) else BLOCK


def fitted(position: Position, block: int) -> Position:
    """``position`` with sizes in place of ``max_pos: block``, for so many tokens in training."""
    if isinstance(position, TableScheme):
        return position.fitted(block)
    if isinstance(position, Mapping):
        if position.get("max_pos") == BLOCK:
            return dict(position) | {"max_pos": table_size(position["name"], block)}
        return {key: fitted(value, block) for key, value in position.items()}
    if isinstance(position, list | tuple):
        return [fitted(entry, block) for entry in position]
    return position


def entries(position: object) -> Iterator[Mapping[str, Any]]:
    """Every mapping with a scheme's or a preset's name in ``position``, however deep."""
    if isinstance(position, Mapping):
        for split in SPLITS:
            yield from entries(position.get(split, []))
        if "name" in position or "preset" in position:
            yield position
    elif isinstance(position, list | tuple):
        for entry in position:
            yield from entries(entry)
