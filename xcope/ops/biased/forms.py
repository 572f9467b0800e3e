"""Terms as operators take them, and the part of them that a tile needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

from torch import Tensor

from xcope.ops.biased.terms import ByDistance, Piecewise, Separable, Terms

FORMS: dict[str, type[Terms]] = {f.__name__: f for f in (Separable, ByDistance, Piecewise)}

# Vectors with an entry for each query or key: name → dimensions, where there is none for the batch.
OF_QUERIES = {"row": 2, "shrink": 1, "q_pos": 1}
OF_KEYS = {"key": 2, "k_pos": 1}

WITHOUT_GRADIENT = ("knots", "q_pos", "k_pos")


def named(terms: Terms) -> dict[str, Tensor]:
    """The vectors by name."""
    return {f.name: getattr(terms, f.name) for f in fields(terms)}


def flatten(terms: Terms | None) -> tuple[str, list[Tensor]]:
    """The form's name, empty for None, and its vectors."""
    return ("", []) if terms is None else (type(terms).__name__, list(named(terms).values()))


def unflatten(form: str, vectors: Sequence[Tensor]) -> Terms | None:
    """The inverse of `flatten`."""
    return FORMS[form](*vectors) if form else None


def names(form: str) -> list[str]:
    """Of the vectors of a form; none for no form."""
    return [f.name for f in fields(FORMS[form])] if form else []


def with_gradient(form: str, needed: Sequence[bool]) -> list[bool]:
    """Which of the vectors get a gradient, of those that need one."""
    return [
        need and name not in WITHOUT_GRADIENT
        for name, need in zip(names(form), needed, strict=True)
    ]


def like_gradients(form: str, vectors: Sequence[Tensor], given: bool) -> list[Tensor | None]:
    """The vectors, None for those without a gradient, or for all if none are ``given``."""
    wanted = with_gradient(form, [given] * len(vectors))
    return [t if want else None for t, want in zip(vectors, wanted, strict=True)]


def placed(terms: Terms) -> int:
    """How many keys have a place: the last ones."""
    return (terms.key if isinstance(terms, Separable) else terms.k_pos).shape[-1]


def replaced(terms: Terms, vectors: Mapping[str, Tensor]) -> Terms:
    """The same form with some of its vectors exchanged."""
    form: Any = type(terms)
    return cast(Terms, form(**(named(terms) | dict(vectors))))


def part(terms: Terms, batch: slice, queries: slice, keys: slice) -> Terms:
    """Terms of some rows of the batch, queries and keys that have a place; views."""
    parts = {}
    for name, t in named(terms).items():
        for lengths, cut in ((OF_QUERIES, queries), (OF_KEYS, keys)):
            if name in lengths:
                parts[name] = (t if t.ndim == lengths[name] else t[batch])[..., cut]
    return replaced(terms, parts)


def first_part(
    form: str, tensors: Mapping[str, Tensor], queries: slice, keys: slice, among: int
) -> Terms | None:
    """Terms, of whose vectors these tensors are, of queries and the first of so many keys."""
    terms = unflatten(form, [tensors[name] for name in names(form)])
    if terms is None:
        return None
    free = among - placed(terms)
    return part(terms, slice(None), queries, slice(0, max(0, keys.stop - free)))


def cast_to(terms: Terms, like: Tensor) -> Terms:
    """Floating vectors in the dtype of ``like``."""
    floating = {n: t.to(like.dtype) for n, t in named(terms).items() if t.is_floating_point()}
    return replaced(terms, floating)
