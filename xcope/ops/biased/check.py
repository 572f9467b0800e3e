"""Whether a bias fits the queries and keys that it is for."""

from __future__ import annotations

import torch
from torch import Tensor

from xcope.errors import FlagError
from xcope.ops.biased.forms import FORMS, named, placed
from xcope.ops.biased.terms import Terms
from xcope.ops.inputs import shape

Allowed = tuple[int | None, ...]  # a shape; None: any length


def check_bias(bias: Terms, q: Tensor, k: Tensor) -> None:
    """Raise a `FlagError` unless the vectors of ``bias`` fit q (b h i d) and k (b hk j d)."""
    form = type(bias).__name__
    if form not in FORMS:
        raise FlagError("bias", f"bias is a {form}: it must be one of {', '.join(FORMS)}")
    (b, h, i, _), j = q.shape, k.shape[2]
    allowed: dict[str, list[Allowed]] = {
        "row": [(h, i), (b, h, i)],
        "key": [(h, None), (b, h, None)],
        "table": [(h, None)],
        "slope": [(h, None)],
        "offset": [(h, None)],
        "knots": [(None,)],
        "warp": [(None,)],
        "shrink": [(i,), (b, i)],
        "q_pos": [(i,), (b, i)],
        "k_pos": [(None,), (b, None)],
    }
    vectors = named(bias)
    for name, t in vectors.items():
        _check_vector(name, t, form, allowed[name])
        if t.device != q.device:
            where = f"is on {t.device}, but q on {q.device}: they must agree"
            raise FlagError("bias", f"{name} of the bias {form} {where}")
    if placed(bias) > j:
        raise FlagError("bias", f"the bias {form} is for {placed(bias)} keys, but k has {j}")
    if "slope" in vectors:
        slope, offset, knots = vectors["slope"], vectors["offset"], vectors["knots"]
        if slope.shape != offset.shape or len(knots) != slope.shape[-1] - 1:
            raise FlagError(
                "bias",
                f"slope {shape(slope)}, offset {shape(offset)} and knots {shape(knots)} of the "
                f"bias {form} must be (h S), (h S) and (S − 1)",
            )


def _check_vector(name: str, t: Tensor, form: str, allowed: list[Allowed]) -> None:
    if not any(_fits(t, one) for one in allowed):
        said = " or ".join("(" + " ".join(str(n or "n") for n in one) + ")" for one in allowed)
        raise FlagError("bias", f"{name} {shape(t)} of the bias {form} must be {said}")
    whole = name in ("q_pos", "k_pos")
    if t.dtype != torch.int64 if whole else not t.is_floating_point():
        wanted = "int64" if whole else "floating point"
        raise FlagError("bias", f"{name} of the bias {form} must be {wanted}, but is {t.dtype}")
    if name in ("table", "warp", "slope") and not t.shape[-1]:
        raise FlagError("bias", f"{name} {shape(t)} of the bias {form} is empty")


def _fits(t: Tensor, allowed: Allowed) -> bool:
    return t.ndim == len(allowed) and all(
        n is None or n == m for n, m in zip(allowed, t.shape, strict=True)
    )
