"""What an index bias is made of: a few vectors from which any tile of it can be computed.

A bias b_ij, added to the logit of query i and key j, is never held whole. Each form below says
how b_ij follows from vectors of length O(n); schemes compute those vectors from their parameters
with plain autograd, and the operators give gradients to the vectors.

Shape notation: b batch, h query heads, i queries, j keys (queries are aligned to the end of the
keys), D distances. Vectors over keys may be shorter than the keys: the keys before them (learned
memories, say) have no place, and their bias is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from xcope.errors import FlagError
from xcope.ops.inputs import shape


@dataclass(frozen=True)
class Separable:
    """b_ij = row_i − key_j.

    Args:
        row: (h i) or (b h i), floating point.
        key: (h j) or (b h j), dtype of ``row``.
    """

    row: Tensor
    key: Tensor

    def of_heads(self, heads: Tensor) -> Separable:
        """The bias of these heads, int64 (h'), in this order."""
        return Separable(self.row[..., heads, :], self.key[..., heads, :])

    def of_tokens(self, tokens: slice) -> Separable:
        """The bias among these of i = j tokens: start and stop of a document."""
        keys = _keys_of(tokens, self.row, self.key)
        return Separable(self.row[..., tokens], self.key[..., keys])


@dataclass(frozen=True)
class ByDistance:
    """b_ij = table[h, δ_ij], δ_ij = q_pos_i − k_pos_j clamped to 0 … D − 1.

    Past the table the bias is constant.

    Args:
        table: (h D), floating point.
        q_pos: places of the queries, int64, (i) or (b i).
        k_pos: places of the keys, int64, (j) or (b j).
    """

    table: Tensor
    q_pos: Tensor
    k_pos: Tensor

    def of_heads(self, heads: Tensor) -> ByDistance:
        """The bias of these heads, int64 (h'), in this order."""
        return replace(self, table=self.table[heads])

    def of_tokens(self, tokens: slice) -> ByDistance:
        """The bias among these of i = j tokens: start and stop of a document."""
        keys = _keys_of(tokens, self.q_pos, self.k_pos)
        return replace(self, q_pos=self.q_pos[..., tokens], k_pos=self.k_pos[..., keys])


@dataclass(frozen=True)
class Piecewise:
    """b_ij = slope[h, s] t + offset[h, s], where t = warp[δ_ij] · shrink_i lies in segment s.

    A multilayer perceptron of one number with one hidden ReLU layer is such a function. δ_ij as
    in `ByDistance`. Segment s holds the t with exactly s knots below or at it; the bias is
    continuous across knots, so that knots themselves need no gradient.

    Args:
        slope: (h S), floating point.
        offset: (h S).
        knots: (S − 1), ascending.
        warp: (D).
        shrink: (i) or (b i).
        q_pos: places of the queries, int64, (i) or (b i).
        k_pos: places of the keys, int64, (j) or (b j).
    """

    slope: Tensor
    offset: Tensor
    knots: Tensor
    warp: Tensor
    shrink: Tensor
    q_pos: Tensor
    k_pos: Tensor

    def of_heads(self, heads: Tensor) -> Piecewise:
        """The bias of these heads, int64 (h'), in this order."""
        return replace(self, slope=self.slope[heads], offset=self.offset[heads])

    def of_tokens(self, tokens: slice) -> Piecewise:
        """The bias among these of i = j tokens: start and stop of a document."""
        keys = _keys_of(tokens, self.q_pos, self.k_pos)
        return replace(
            self,
            shrink=self.shrink[..., tokens],
            q_pos=self.q_pos[..., tokens],
            k_pos=self.k_pos[..., keys],
        )


Terms: TypeAlias = Separable | ByDistance | Piecewise


def _keys_of(tokens: slice, of_queries: Tensor, of_keys: Tensor) -> slice:
    """Where these tokens lie in a vector over keys, which lacks the keys before the first place."""
    free = of_queries.shape[-1] - of_keys.shape[-1]
    return slice(max(0, tokens.start - free), max(0, tokens.stop - free))


FORMS: dict[str, type[Terms]] = {f.__name__: f for f in (Separable, ByDistance, Piecewise)}

# Vectors with an entry for each query or key: name → dimensions; one more where each row of the
# batch has its own.
OF_QUERIES = {"row": 2, "shrink": 1, "q_pos": 1}
OF_KEYS = {"key": 2, "k_pos": 1}

WITHOUT_GRADIENT = ("knots", "q_pos", "k_pos")


def check_bias(bias: Terms, q: Tensor, k: Tensor) -> None:
    """Raise a `FlagError` unless the vectors of ``bias`` fit q (b h i d) and k (b hk j d)."""
    form = type(bias).__name__
    if form not in FORMS:
        raise FlagError("bias", f"bias is a {form}: it must be one of {', '.join(FORMS)}")
    (b, h, i, _), j = q.shape, k.shape[2]
    heads: tuple[int, ...] = (h,)
    wanted: dict[str, tuple[tuple[int, ...], int | None]] = {  # first dimensions; last: any if None
        "row": (heads, i),
        "key": (heads, None),
        "table": (heads, None),
        "slope": (heads, None),
        "offset": (heads, None),
        "knots": ((), None),
        "warp": ((), None),
        "shrink": ((), i),
        "q_pos": ((), i),
        "k_pos": ((), None),
    }
    vectors = bias.__dict__
    for name, t in vectors.items():
        first, last = wanted[name]
        by_row = name in OF_QUERIES or name in OF_KEYS
        # as many dimensions before one is compared: the batch of a traced call is any number
        ways = [first, (b, *first)][: 1 + by_row]
        fits = any(t.ndim == len(way) + 1 and t.shape[:-1] == way for way in ways)
        if not t.ndim or not fits or last not in (None, t.shape[-1]):
            allowed = [(*first, last or "n"), (b, *first, last or "n")][: 1 + by_row]
            said = " or ".join("(" + " ".join(map(str, one)) + ")" for one in allowed)
            raise FlagError("bias", f"{name} {shape(t)} of the bias {form} must be {said}")
        whole = name in ("q_pos", "k_pos")
        if t.dtype != torch.int64 if whole else not t.is_floating_point():
            kind = "int64" if whole else "floating point"
            raise FlagError("bias", f"{name} of the bias {form} must be {kind}, but is {t.dtype}")
        if name in ("table", "warp", "slope") and not t.shape[-1]:
            raise FlagError("bias", f"{name} {shape(t)} of the bias {form} is empty")
        if t.device != q.device:
            where = f"is on {t.device}, but q on {q.device}: they must agree"
            raise FlagError("bias", f"{name} of the bias {form} {where}")
        if name in OF_KEYS and t.shape[-1] > j:
            raise FlagError("bias", f"the bias {form} is for {t.shape[-1]} keys, but k has {j}")
    if "slope" in vectors:
        slope, offset, knots = vectors["slope"], vectors["offset"], vectors["knots"]
        if slope.shape != offset.shape or len(knots) != slope.shape[-1] - 1:
            raise FlagError(
                "bias",
                f"slope {shape(slope)}, offset {shape(offset)} and knots {shape(knots)} of the "
                f"bias {form} must be (h S), (h S) and (S − 1)",
            )


# -- terms as the tensors that an operator takes -------------------------------------------------


def named(terms: Terms) -> dict[str, Tensor]:
    """The vectors by name; torch 2.6 compiles no ``vars``."""
    return dict(terms.__dict__)


def flatten(terms: Terms | None) -> tuple[str, list[Tensor]]:
    """The form's name, empty for None, and its vectors."""
    return ("", []) if terms is None else (type(terms).__name__, list(terms.__dict__.values()))


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


# -- other terms of the same form ----------------------------------------------------------------


def replaced(terms: Terms, vectors: Mapping[str, Tensor]) -> Terms:
    """The same form with some of its vectors exchanged."""
    form: Any = type(terms)
    return cast(Terms, form(**(terms.__dict__ | dict(vectors))))


def cast_to(terms: Terms, like: Tensor) -> Terms:
    """Floating vectors in the dtype of ``like``."""
    floating = {n: t.to(like.dtype) for n, t in named(terms).items() if t.is_floating_point()}
    return replaced(terms, floating)


def placed(terms: Terms) -> int:
    """How many keys have a place: the last ones."""
    return (terms.key if isinstance(terms, Separable) else terms.k_pos).shape[-1]


def part(terms: Terms, batch: slice, queries: slice, keys: slice) -> Terms:
    """Terms of some rows of the batch, queries, and keys that have a place; views."""
    parts = {}
    for name, t in named(terms).items():
        for lengths, cut in ((OF_QUERIES, queries), (OF_KEYS, keys)):
            if name in lengths:
                parts[name] = (t if t.ndim == lengths[name] else t[batch])[..., cut]
    return replaced(terms, parts)


def without_keys(terms: Terms, first: int, past: int, among: int) -> Terms:
    """The terms without keys ``first`` … ``past`` − 1 of so many."""
    free = among - placed(terms)
    before, after = max(0, first - free), max(0, past - free)
    kept = {
        name: torch.cat((t[..., :before], t[..., after:]), dim=-1) if before else t[..., after:]
        for name, t in named(terms).items()
        if name in OF_KEYS
    }
    return replaced(terms, kept)


def first_part(
    form: str, tensors: Mapping[str, Tensor], queries: slice, keys: slice, among: int
) -> Terms | None:
    """The terms that have these tensors for vectors, of queries and the first of so many keys."""
    terms = unflatten(form, [tensors[name] for name in names(form)])
    if terms is None:
        return None
    free = among - placed(terms)
    return part(terms, slice(None), queries, slice(0, max(0, keys.stop - free)))
