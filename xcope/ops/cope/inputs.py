"""What CoPE attention and its kin are given: one record, from the public functions to the kernels.

Keys are walked from the query backwards, and one number is carried for each row: what differs is
the *recurrence*, how keys change that number and it changes logits.

    "count"     CoPE: gates are counted, and the table is read at the count
    "distance"  the same with gates of 1: the table is read at i − j + 1
    "decay"     log gates are summed up and added to the logits
    "stick"     each key breaks its share off what the keys after it have left: no softmax

A new option is a field of `CopeInputs`: the schema of the PyTorch operators follows from the
fields, and nothing between the public function and what computes with the option names it. A
backend that does not compute with it has to refuse it, as `xcope.ops.cope.gpu.refusal` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from xcope.errors import FlagError
from xcope.ops import windows
from xcope.ops.documents import check_documents
from xcope.ops.inputs import autocast, check_attention, number, require_device, shape
from xcope.ops.sinks import check_sink
from xcope.ops.terms import Terms, cast_to, check_bias, flatten, replaced, unflatten

# The soft one-hot of the tiles and kernels weighs the two nearest integers only, which is right to
# float32's precision, e^(−1/τ), up to this temperature.
MAX_TEMPERATURE = 0.0625


@dataclass(frozen=True, kw_only=True)
class CopeInputs:
    """Tensors and options of one run, see `xcope.cope_attention` and, beside it, its kin.

    Args:
        q: (b h i d).
        k: (b hk j d).
        v: (b hk j dv).
        pos_emb: the table e, (p d) or (h p d); None where positions are not read.
        gate_k: (b hk j d), or None.
        r: (b h i c), reads the table and meets ``gate_k``, unscaled, in place of q, or None. Then
            these have c in place of d.
        head_mix: (h h), or None.
        mask: bool, broadcasts to (b h i j), 4 dimensions, or None.
        cu_seqlens: int32 or int64 (m + 1), or None.
        window: int32 (1 2 i) or (b 2 i), or None, see `xcope.ops.windows`.
        sink: (h), or None, see `xcope.ops.sinks`.
        bias: of the logits, or None.
        scale: of the logits.
        causal: query i sees keys up to its own place.
        soft_onehot: weigh integer positions instead of interpolating.
        soft_onehot_temp: temperature of these weights.
        recurrence: see above.
        rate: of decays, multiplies the log gates.
        own: of decays: the query's own gate counts, and the key's does not; of sticks: the query's
            own key breaks its share off, too.
        remainder: what is left of a stick goes to the query's own value.
        bare: of decays: how many keys come before the first that has a gate. They decay by nothing.
        hidden_gates: of decays: keys that are masked have gates, too.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    pos_emb: Tensor | None = None
    gate_k: Tensor | None = None
    r: Tensor | None = None
    head_mix: Tensor | None = None
    mask: Tensor | None = None
    cu_seqlens: Tensor | None = None
    window: Tensor | None = None
    sink: Tensor | None = None
    bias: Terms | None = None
    scale: float
    causal: bool = True
    soft_onehot: bool = False
    soft_onehot_temp: float = 0.05
    recurrence: str = "count"
    rate: float = 1.0
    own: bool = False
    remainder: bool = False
    bare: int = 0
    hidden_gates: bool = False

    @classmethod
    def checked(
        cls, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None, gate_k: Tensor | None,
        mask: Tensor | None, window: Tensor | int | None = None, **others: Any,
    ) -> CopeInputs:  # fmt: skip
        """Of a user's call, in autocast's dtype where that is on.

        Args:
            scale: None: ``d ** -0.5``.
            mask: (b j), or 4 dimensions.
            window: a whole number: the last keys that a query sees.
            others: the other fields.

        Raises:
            FlagError: shapes, dtypes or options that do not fit.
        """
        r = others.pop("r", None)
        q, k, v, gate_k, r = autocast(q, k, v, gate_k, r)
        check_attention(q, k, v, mask)
        inputs = cls(
            q=q,
            k=k,
            v=v,
            scale=q.shape[-1] ** -0.5 if scale is None else scale,
            gate_k=gate_k,
            r=r,
            mask=mask[:, None, None, :] if mask is not None and mask.ndim == 2 else mask,
            window=windows.checked(window, q, k),
            **others,
        )
        e, head_mix, h = inputs.pos_emb, inputs.head_mix, q.shape[1]
        inputs._check_reader()
        if e is not None:
            inputs._check_table(e)
        more = (("pos_emb", e), ("gate_k", gate_k), ("r", r), ("head_mix", head_mix))
        for name, t in more:
            if t is not None and not t.is_floating_point():
                raise FlagError(name, f"{name} must be floating point, but is {t.dtype}")
            if t is not None and t.device != q.device:
                require_device(name, t, q)
        if not inputs.soft_onehot_temp > 0:
            wrong = f"soft_onehot_temp={number(inputs.soft_onehot_temp)} must be above 0"
            raise FlagError("soft_onehot_temp", wrong)
        if head_mix is not None and head_mix.shape != (h, h):
            wrong = f"head_mix {shape(head_mix)} must be ({number(h)} {number(h)})"
            raise FlagError("head_mix", wrong)
        if inputs.bias is not None:
            check_bias(inputs.bias, q, k)
        if inputs.cu_seqlens is not None:
            check_documents(inputs.cu_seqlens, q, k)
        if inputs.sink is not None:
            check_sink(inputs.sink, q)
        return inputs

    def _check_reader(self) -> None:
        """Raise a `FlagError` unless ``r`` fits q, and ``gate_k`` fits what meets it."""
        q, k, r, gate_k = self.q, self.k, self.r, self.gate_k
        if r is None:
            if gate_k is not None and gate_k.shape != k.shape:
                wrong = f"gate_k {shape(gate_k)} must have the shape of k {shape(k)}"
                raise FlagError("gate_k", wrong)
            return
        if r.ndim != 4 or r.shape[:3] != q.shape[:3]:
            wrong = f"r {shape(r)} must be (b h i c), with b, h and i of q {shape(q)}"
            raise FlagError("r", wrong)
        if gate_k is not None:
            each, grouped = (k.shape[0], q.shape[1], k.shape[2]), k.shape[:3]
            if gate_k.shape not in ((*each, r.shape[-1]), (*grouped, r.shape[-1])):
                wrong = f"gate_k {shape(gate_k)} must be (b h j c) or (b hk j c), as r {shape(r)}"
                raise FlagError("gate_k", f"{wrong} and k {shape(k)}")

    def _check_table(self, e: Tensor) -> None:
        """Raise a `FlagError` unless what reads the table can."""
        reader, name, h = self.q, "q", self.q.shape[1]
        if self.r is not None:
            reader, name = self.r, "r"
        if e.ndim not in (2, 3) or e.shape[-1] != reader.shape[-1]:
            where = f"d = {number(reader.shape[-1])} as in {name} {shape(reader)}"
            raise FlagError("pos_emb", f"pos_emb {shape(e)} must be (p d) or (h p d) with {where}")
        if e.ndim == 3 and len(e) != h:
            wrong = f"{number(len(e))} tables, but q {shape(self.q)} has {number(h)} heads"
            raise FlagError("pos_emb", f"pos_emb {shape(e)} has {wrong}")
        if e.shape[-2] < 1:
            wrong = f"max_pos {number(e.shape[-2])}; it must be at least 1"
            raise FlagError("pos_emb", f"pos_emb {shape(e)} has {wrong}")

    @property
    def table(self) -> Tensor:
        """``pos_emb``, where positions are read."""
        if self.pos_emb is None:
            raise ValueError(f"{self.recurrence!r} reads no positions")
        return self.pos_emb

    @property
    def gate_scale(self) -> float:
        """What makes the gates' logits of products with ``gate_k``; of decays what is lost is
        softplus of it, so it is turned round."""
        scale = self.scale if self.r is None else 1.0
        return -scale if self.recurrence == "decay" else scale

    @property
    def sharpness(self) -> float:
        """Of the soft one-hot, 1 / temperature; 0: positions are interpolated."""
        return 1 / self.soft_onehot_temp if self.soft_onehot else 0.0

    def require_sharp(self) -> None:
        """Raise a `FlagError` where a soft one-hot weighs more than the two nearest integers."""
        if self.soft_onehot_temp > MAX_TEMPERATURE:
            raise FlagError(
                "soft_onehot_temp",
                f"soft_onehot_temp={self.soft_onehot_temp} is above {MAX_TEMPERATURE}, where "
                "positions further than the nearest two begin to matter: use backend='reference'",
            )

    def widened(self) -> CopeInputs:
        """In float32, or float64 where q is: low precision is computed so, and rounded once."""
        wide = torch.promote_types(self.q.dtype, torch.float32)
        cast: dict[str, Any] = {}
        for name in DIFFERENTIABLE:
            t = getattr(self, name)
            if t is not None and t.dtype != wide:
                cast[name] = t.to(wide)
        if self.bias is not None:
            cast["bias"] = cast_to(self.bias, cast.get("q", self.q))
        return replace(self, **cast) if cast else self

    def with_all_heads(self) -> CopeInputs:
        """With a key head for each query head."""
        h, every = self.q.shape[1], {}
        if self.k.shape[1] == h:
            return self
        for name in ("k", "v", "gate_k"):
            t = getattr(self, name)
            if t is not None and t.shape[1] < h:
                every[name] = t.repeat_interleave(h // t.shape[1], dim=1)
        return replace(self, **every)

    # -- tensors that may have gradients, by name --------------------------------------------------

    def named(self) -> dict[str, Tensor]:
        """Those that there are; the vectors of the bias under their own names."""
        found = {}
        for name in DIFFERENTIABLE:
            t = getattr(self, name)
            if t is not None:
                found[name] = t
        if self.bias is not None:
            found |= self.bias.__dict__
        return found

    def with_named(self, tensors: Mapping[str, Tensor]) -> CopeInputs:
        """The inverse of `named`: the same with these tensors."""
        cut: dict[str, Any] = {name: tensors[name] for name in DIFFERENTIABLE if name in tensors}
        if self.bias is not None:
            cut["bias"] = replaced(self.bias, {name: tensors[name] for name in self.bias.__dict__})
        return replace(self, **cut)

    # -- flat, as the PyTorch operators take them --------------------------------------------------

    def flat(self) -> list[Any]:
        """The tensors, the vectors and the form of the bias, the options: see `SCHEMA`."""
        form, vectors = ("", []) if self.bias is None else flatten(self.bias)
        return [*attrgetter(*TENSORS)(self), vectors, form, *attrgetter(*OPTIONS)(self)]

    @classmethod
    def of(cls, flat: Sequence[Any]) -> CopeInputs:
        """The inverse of `flat`; what comes after it is ignored."""
        given = dict(zip((*TENSORS, "vectors", "form", *OPTIONS), flat, strict=False))
        vectors, form = given.pop("vectors"), given.pop("form")
        return cls(**given, bias=unflatten(form, vectors) if form else None)


TENSORS = [f.name for f in fields(CopeInputs) if str(f.type).startswith("Tensor")]
DIFFERENTIABLE = [name for name in TENSORS if name not in ("mask", "cu_seqlens", "window")]
OPTIONS = [f.name for f in fields(CopeInputs) if f.name not in (*TENSORS, "bias")]
_TYPES = {f.name: str(f.type).replace("Tensor | None", "Tensor?") for f in fields(CopeInputs)}
SCHEMA = ", ".join(
    [f"{_TYPES[name]} {name}" for name in TENSORS]
    + ["Tensor[] vectors", "str form"]
    + [f"{_TYPES[name]} {name}" for name in OPTIONS]
)
