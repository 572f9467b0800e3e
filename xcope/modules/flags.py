"""Which schemes a decoder's keyword flags ask for, in our spelling and in x-transformers'."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xcope.errors import FlagError, did_you_mean, listing
from xcope.modules import seam
from xcope.positions import Position, Scheme, Slot, check_together, expand, parse, scheme, schemes


@dataclass(frozen=True)
class Request:
    """What the flags of a decoder ask for.

    Args:
        schemes: combinations replaced by their parts.
        attend_layers: for each self-attention layer, whether it has the scheme of the attend
            slot; None for all.
        named: whether any position was asked for, ``none`` included.
        upstream: the flags that are left for x-transformers.
    """

    schemes: tuple[Scheme, ...]
    attend_layers: tuple[bool, ...] | None
    named: bool
    upstream: dict[str, Any]

    def of(self, slot: Slot) -> Scheme | None:
        """The scheme of a slot."""
        return next((one for one in self.schemes if one.slot is slot), None)


def switch_flags() -> dict[str, str]:
    """Flag that turns a scheme on → the scheme's name."""
    return {kind.upstream_switch: name for name, kind in schemes().items() if kind.upstream_switch}


def option_flags() -> dict[str, tuple[str, str]]:
    """Flag → (scheme, option); ``cope_max_pos`` and x-transformers' ``attn_cope_max_pos``."""
    flags: dict[str, tuple[str, str]] = {}
    for name, kind in schemes().items():
        if kind.slot is not None:  # a combination takes the flags of its parts
            flags |= {f"{name}_{option}": (name, option) for option in kind.options()}
            flags |= {flag: (name, option) for flag, option in kind.upstream_options.items()}
    return flags


def decoder_flags() -> frozenset[str]:
    """Every keyword that `xcope.Decoder` takes."""
    return seam.upstream_decoder_flags() | {"position", *switch_flags(), *option_flags()}


def wrapper_flags() -> frozenset[str]:
    """Every keyword that `xcope.TransformerWrapper` takes."""
    return seam.upstream_wrapper_flags()


def resolve(position: Position | None, flags: Mapping[str, Any]) -> Request:
    """Turn ``position=`` and the other flags into schemes and x-transformers' own flags.

    Raises:
        FlagError: an unknown flag, two schemes at once, an option of a scheme that is not chosen,
            a value that a scheme does not allow.
    """
    known = decoder_flags()
    for flag in flags:
        if flag not in known:
            raise FlagError(flag, f"Decoder has no flag {flag!r}{did_you_mean(flag, known)}")
    rest = dict(flags)
    chosen = {one.name: one for one in expand(parse(position) if position is not None else ())}
    foreign = [flag for flag in seam.UPSTREAM_ONLY if _on(rest.get(flag))]
    switched, attend_layers = _switched(rest, foreign)
    if position is not None:
        _check_switches(position, chosen, [*switched, *foreign])
    for name in switched.values():
        chosen.setdefault(name, scheme(name))
    _take_options(rest, chosen, foreign)
    parts = tuple(chosen.values())
    check_together(parts)
    _check_foreign(parts, foreign)
    named = position is not None or bool(parts) or bool(foreign)
    return Request(parts, attend_layers, named, rest)


def _left_to_upstream(name: str, foreign: Sequence[str]) -> bool:
    """x-transformers builds xPos itself, and takes rotary's flags for it."""
    return name == "rotary" and "rotary_xpos" in foreign


def _on(value: Any) -> bool:
    return any(value) if isinstance(value, tuple) else bool(value)


def _switched(
    rest: dict[str, Any], foreign: Sequence[str]
) -> tuple[dict[str, str], tuple[bool, ...] | None]:
    """Take the switches out of ``rest``: flag → scheme, and the layers if one is per layer."""
    switched: dict[str, str] = {}
    layers = None
    for flag, name in switch_flags().items():
        if flag not in rest or _left_to_upstream(name, foreign):
            continue
        value = rest.pop(flag)
        if isinstance(value, tuple) and schemes()[name].slot is Slot.ATTEND:
            layers = tuple(map(bool, value))
        elif not isinstance(value, bool):
            raise FlagError(flag, f"{flag}={value!r} is not allowed: it is True or False")
        if _on(value):
            switched[flag] = name
    return switched, layers


def _check_switches(
    position: Position, chosen: Mapping[str, Scheme], switches: Sequence[str]
) -> None:
    names = switch_flags()
    for flag in switches:
        if names.get(flag) not in chosen:
            both = listing([*chosen, names[flag]]) if flag in names else None
            raise FlagError(
                flag,
                f"two schemes at once: position={position!r} and {flag}=True; drop one of them"
                + (f", or name all in position, a list of {both}" if both else ""),
            )


def _take_options(rest: dict[str, Any], chosen: dict[str, Scheme], foreign: Sequence[str]) -> None:
    """Take the schemes' options out of ``rest`` and into the schemes."""
    for flag, (name, option) in option_flags().items():
        if flag not in rest or _left_to_upstream(name, foreign):
            continue
        value = rest.pop(flag)
        if name not in chosen:
            on = listing(chosen) if chosen else "none"
            raise FlagError(
                flag,
                f"{flag}={value!r} is an option of position {name!r}, which is not chosen "
                f"(chosen: {on}): drop the flag, or choose {name!r}",
            )
        earlier = chosen[name].given().get(option, value)
        if earlier != value:
            raise FlagError(flag, f"{flag}={value!r} contradicts {name}_{option}={earlier!r}")
        chosen[name] = dataclasses.replace(chosen[name], **{option: value})
    for name, one in chosen.items():
        if one.upstream_kwargs in rest:
            options = one.given() | dict(rest.pop(one.upstream_kwargs))
            chosen[name] = scheme(name, options)


def _check_foreign(parts: Sequence[Scheme], foreign: Sequence[str]) -> None:
    """Refuse two schemes for one slot where x-transformers builds one of them."""
    taken = {part.slot: part.name for part in parts}
    for flag in foreign:
        slot = seam.UPSTREAM_ONLY[flag]
        if slot in taken:
            raise FlagError(
                flag,
                f"two schemes at once: {flag}=True and {taken[slot]!r} both fill the "
                f"{slot.value} slot: keep one of them",
            )
        taken[slot] = flag
