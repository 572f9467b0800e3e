"""Which schemes a decoder's keyword flags ask for, in our spelling and in x-transformers'."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from xcope.errors import FlagError, did_you_mean, listing
from xcope.modules import seam
from xcope.positions import (
    Plan,
    Position,
    Scheme,
    Slot,
    combined,
    parse,
    scheme,
    schemes,
    single,
    started,
)


@dataclass(frozen=True)
class Request:
    """What the flags of a decoder ask for.

    Args:
        plan: who has which scheme.
        named: whether any position was asked for, ``none`` included.
        upstream: the flags that are left for x-transformers.
    """

    plan: Plan
    named: bool
    upstream: dict[str, Any]


def switch_flags() -> dict[str, str]:
    """Flag that turns a scheme on → the scheme's name."""
    return {kind.upstream_switch: name for name, kind in schemes().items() if kind.upstream_switch}


def option_flags() -> dict[str, list[tuple[str, str]]]:
    """Flag → its (scheme, option); ``cope_max_pos`` and x-transformers' ``attn_cope_max_pos``.

    Schemes of one family share x-transformers' spellings.
    """
    flags: dict[str, list[tuple[str, str]]] = {}
    for name, kind in schemes().items():
        if kind.slot is None:  # a combination takes the flags of its parts
            continue
        spelled = {f"{name}_{option}": option for option in kind.options()} | dict(
            kind.upstream_options
        )
        for flag, option in spelled.items():
            flags.setdefault(flag, []).append((name, option))
    return flags


def decoder_flags() -> frozenset[str]:
    """Every keyword that `xcope.Decoder` takes."""
    return seam.upstream_decoder_flags() | {"position", *switch_flags(), *option_flags()}


def wrapper_flags() -> frozenset[str]:
    """Every keyword that `xcope.TransformerWrapper` takes."""
    return seam.upstream_wrapper_flags()


NOT_FLAGS = {
    "causal": "a Decoder is causal. x_transformers.Encoder reads both ways; of a Decoder, a call "
    "does with causal=False, and cope_attention(…, causal=False) is CoPE without a model",
    "prefix_attn_len": "it is of x_transformers.PrefixDecoder. Here a call with causal=False sees "
    "all that attn_mask shows: give both",
}
"""What people look for and a Decoder has not → what to do instead."""


def unknown(owner: str, flag: str, known: Iterable[str]) -> FlagError:
    """The error for a keyword that ``owner``, a class or a function, does not take."""
    if flag in NOT_FLAGS:
        return FlagError(flag, f"{owner} has no flag {flag!r}: {NOT_FLAGS[flag]}")
    return FlagError(flag, f"{owner} has no flag {flag!r}{did_you_mean(flag, known)}")


FOR_OURS = frozenset({"tokens_before"})
"""What our wrapper tells our decoder; not for people."""


def arguments(
    function: str, args: Sequence[Any], kwargs: Mapping[str, Any], beneath: Sequence[str] = ()
) -> dict[str, Any]:
    """Arguments of a call by their names, all of them known.

    Args:
        function: one of `seam.CALLS`.
        args: after the first.
        kwargs: the others.
        beneath: the functions that get what is not its own.

    Raises:
        FlagError: an unknown one, with the nearest that is known; one given twice; one that the
            function says itself, or that leads to nothing but errors in it.
    """
    order, functions = seam.CALLS[function], (function, *beneath)
    if len(args) > len(order):
        raise FlagError(function, f"{function} takes {len(order) + 1} arguments, not more")
    named = dict(zip(order, args, strict=False))
    known = {"cu_seqlens"}.union(*(seam.CALLS[one] for one in functions))
    for flag in kwargs:
        if flag in named:
            raise FlagError(flag, f"{flag} is given twice to {function}: by its place and its name")
        setter = next((one for one in functions if flag in seam.SETS_ITSELF[one]), None)
        if setter is not None and flag not in order:
            raise FlagError(flag, f"{flag} is not for you to give: {setter} sets it itself")
        if flag not in known and flag not in FOR_OURS:
            raise unknown(function, flag, known)
    named |= kwargs
    for flag, reason in seam.REFUSED_HERE[function].items():
        if named.get(flag) is not None and named[flag] is not False:
            raise FlagError(flag, f"{function} does not take {flag}: {reason}")
    return named


def resolve(position: Position | None, flags: Mapping[str, Any]) -> Request:
    """Turn ``position=`` and the other flags into a plan and x-transformers' own flags.

    Raises:
        FlagError: an unknown flag, two schemes at once, an option of a scheme that is not chosen,
            a value that a scheme does not allow.
    """
    known = decoder_flags()
    for flag in flags:
        if flag not in known:
            raise unknown("Decoder", flag, known)
    rest = dict(flags)
    plan = single() if position is None else parse(with_starts(position, flags))
    foreign = _foreign(rest)
    switched = _switched(rest)
    if position is not None:
        _check_switches(position, plan, [*switched, *foreign])
    for flag, asked in switched.items():
        plan = _with_scheme(plan, flag, asked)
    plan = _with_options(rest, plan)
    _check_foreign(plan, foreign)
    told = any(one.slot is None or not one.slot.beside for one in plan.schemes)
    return Request(plan, position is not None or told or bool(foreign), rest)


def with_starts(position: Any, flags: Iterable[str]) -> Any:
    """``position`` with the options that ``start: authors`` stands for, but for those that a flag
    beside it says.

    Raises:
        FlagError: see `xcope.positions.started`.
    """
    takers = option_flags()
    said = {f"{name}_{option}" for flag in flags for name, option in takers.get(flag, ())}
    return started(position, said)


def _foreign(rest: Mapping[str, Any]) -> list[str]:
    """The switches that are on and left to x-transformers."""
    return [flag for flag in seam.UPSTREAM_ONLY if _on(rest.get(flag))]


def _on(value: Any) -> bool:
    return any(value) if isinstance(value, tuple) else bool(value)


Switched = dict[str, Scheme | tuple[Scheme | None, ...]]


def _switched(rest: dict[str, Any]) -> Switched:
    """Take the switches out of ``rest``: flag → the scheme of all layers, or of each."""
    _vary(rest)
    switched: Switched = {}
    for flag, name in switch_flags().items():
        if flag not in rest:
            continue
        kind = schemes()[name]
        beside = kind.slot is not None and kind.slot.beside
        if beside and _on(rest.get("only_cross")):
            continue  # there is no other attention that has it
        value = rest.pop(flag)
        if isinstance(value, tuple) and (beside or kind.slot is Slot.ATTEND):
            of_layers = tuple(kind.switched(one if beside else bool(one)) for one in value)
            if any(of_layers):
                switched[flag] = of_layers
            continue
        asked = kind.switched(value)
        if asked is not None:
            switched[flag] = asked
            if beside and _on(rest.get("cross_attend")):  # where x-transformers has it, too
                rest.setdefault(f"cross_{flag}", value)
    for flag in [*switched]:
        for implied in schemes()[switch_flags()[flag]].upstream_implies:
            switched.pop(implied, None)
    return switched


def _vary(rest: dict[str, Any]) -> None:
    """Let a switch that varies another's scheme have that one's value, or none."""
    for kind in schemes().values():
        flag, other = kind.upstream_switch, kind.upstream_varies
        if flag in rest and other is not None:
            varies, value = rest.pop(flag), rest.get(other)
            if not isinstance(varies, bool):
                raise FlagError(flag, f"{flag}={varies!r} is not allowed: it is True or False")
            if varies and _on(value):
                rest[flag] = rest.pop(other)


def _check_switches(position: Position, plan: Plan, switches: Sequence[str]) -> None:
    names, chosen = switch_flags(), {one.name for one in plan.schemes}
    for flag in switches:
        slot = schemes()[names[flag]].slot if flag in names else None
        if names.get(flag) not in chosen and not (slot is not None and slot.beside):
            both = listing([*sorted(chosen), names[flag]]) if flag in names and chosen else None
            raise FlagError(
                flag,
                f"two schemes at once: position={position!r} and {flag}=True; drop one of them"
                + (f", or name all in position, a list of {both}" if both else ""),
            )


def _with_scheme(plan: Plan, flag: str, asked: Scheme | tuple[Scheme | None, ...]) -> Plan:
    """The plan with a scheme that a switch turned on, in all layers or in some.

    Raises:
        FlagError: the plan has it with other options.
    """
    name = switch_flags()[flag]
    chosen = next((one for one in plan.schemes if one.name == name), None)
    of_layers = asked if isinstance(asked, tuple) else (asked,)
    for one in of_layers:
        if one is not None and chosen is not None and one.given() and one != chosen:
            raise FlagError(
                flag,
                f"{flag} asks for {one.label()}, but position for {chosen.label()}: drop one",
            )
    if chosen is not None and not isinstance(asked, tuple):
        return plan
    layers = [single() if one is None else single(chosen or one) for one in of_layers]
    added = Plan(tuple(one.layers[0] for one in layers), exact=isinstance(asked, tuple))
    return combined([plan.without(name), added])


def _with_options(rest: dict[str, Any], plan: Plan) -> Plan:
    """Take the schemes' options out of ``rest`` and into the plan."""
    chosen = {one.name for one in plan.schemes}
    for flag, takers in option_flags().items():
        if flag not in rest:
            continue
        value = rest.pop(flag)
        takers_here = [(name, option) for name, option in takers if name in chosen]
        if not takers_here:
            raise FlagError(
                flag,
                f"{flag}={value!r} is an option of position {takers[0][0]!r}, which is not chosen "
                f"(chosen: {listing(sorted(chosen)) if chosen else 'none'}): drop the flag, or "
                f"choose {takers[0][0]!r}",
            )
        for name, option in takers_here:
            plan = plan.map(partial(_set, name=name, option=option, flag=flag, value=value))
    for kwargs in {one.upstream_kwargs for one in plan.schemes}:
        if kwargs is not None and kwargs in rest:
            plan = plan.map(partial(_set_all, kwargs=kwargs, options=dict(rest.pop(kwargs))))
    _check_kwargs(rest)
    return plan


def _check_kwargs(rest: Mapping[str, Any]) -> None:
    """Refuse options, in x-transformers' mappings, of schemes that are not chosen."""
    for name, kind in schemes().items():
        flag = kind.upstream_kwargs
        if flag is not None and rest.get(flag):
            raise FlagError(
                flag,
                f"{flag}={rest[flag]!r} has options of position {name!r} or its like, which is not "
                "chosen: drop the flag",
            )


def _set_all(one: Scheme, kwargs: str, options: dict[str, Any]) -> Scheme:
    return scheme(one.name, one.given() | options) if one.upstream_kwargs == kwargs else one


def _set(one: Scheme, name: str, option: str, flag: str, value: Any) -> Scheme:
    if one.name != name:
        return one
    earlier = one.given().get(option, value)
    if earlier != value:
        raise FlagError(flag, f"{flag}={value!r} contradicts {name}_{option}={earlier!r}")
    return dataclasses.replace(one, **{option: value})


def _check_foreign(plan: Plan, foreign: Sequence[str]) -> None:
    """Refuse two schemes for one slot where x-transformers builds one of them."""
    taken = {one.slot: one.name for one in plan.schemes}
    for flag in foreign:
        for slot in seam.UPSTREAM_ONLY[flag]:
            if slot in taken:
                raise FlagError(
                    flag,
                    f"two schemes at once: {flag}=True and {taken[slot]!r} both fill the "
                    f"{slot.value} slot: keep one of them",
                )
        taken |= dict.fromkeys(seam.UPSTREAM_ONLY[flag], flag)
