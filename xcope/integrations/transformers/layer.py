"""What an attention module of transformers does with our schemes, and what transformers calls.

transformers' attention function ``"xcope"`` gets q, k, v and a mask. What else a scheme needs, a
forward pre-hook of the attention module sees and notes: places, the layer's input, the cache. There
the module's rotary positions are exchanged, too, where they shall not act.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache
from transformers.utils.import_utils import is_tracing

from xcope.errors import FlagError
from xcope.integrations.transformers.masks import (
    DOCUMENTS,
    NOT_CAUSAL,
    WINDOW,
    understood,
    xcope_mask,
)
from xcope.modules.attention import (
    Gates,
    LayerCall,
    Part,
    added_by_modules,
    attend,
    attend_groups,
    bias_of,
    gate_keys_of,
    keys_of_each_head,
    mask_of,
    own_sinks,
    read_by,
    sink_of_heads,
    turned,
    weights_of,
    with_heads,
)
from xcope.modules.decoder import Builder
from xcope.modules.places import Places, packed_places
from xcope.ops.documents import within_documents
from xcope.ops.inputs import visible
from xcope.positions import AttendInputs, Geometry, Scheme, scheme
from xcope.positions.cope import CoPE

log = logging.getLogger(__name__)

NAME = "xcope"
"""Of the attention implementation, of the modules in a model, and of what its config keeps."""

REFUSED = {
    "softcap": "caps its logits (attn_logit_softcapping)",
    "s_aux": "has attention sinks",
    "sinks": "has attention sinks",
    "position_bias": "adds a bias of its own to the logits",
    "attention_bias": "adds a bias of its own to the logits",
    "indices": "attends to keys that an indexer picks",
    "block_indices": "attends to blocks of keys that an indexer picks",
    "head_mask": "masks heads",
}
"""What a class may hand to attention that ours does not compute → what that means."""

NOT_RESTORED = (
    "the config of this model tells of positions of xcope, which the model does not have: load a "
    "saved one with xcope.integrations.transformers.from_pretrained"
)


SLOTS = ("rotation", "bias", "attend", "mask", "sink", "scale")
"""Of a `Part`; each is called as the slot that fills it."""

watching: ContextVar[list[dict[str, Any]] | None] = ContextVar("watching", default=None)
"""While a model is looked at (`anatomy`): what its attention modules call with."""


@dataclass
class Given:
    """What an attention module was given that it does not hand on.

    Args:
        remembered: for each module that `read_by` names, of the tokens of this call.
        last: the place of each row's last token, (b 1), or of all, if the cache left the first.
        maps: whether the attention weights are wanted.
        cached: the places that the caller gave, beside a cache, (b i).
    """

    remembered: list[Tensor | None] = field(default_factory=list)
    last: Tensor | int | None = None
    maps: bool = False
    cached: Tensor | None = None


class LayerPosition(nn.Module):
    """What the heads of one attention module of transformers have.

    Args:
        entry: of the layer, as the config keeps it.
    """

    def __init__(self, entry: dict[str, Any]) -> None:
        super().__init__()
        self.dim_value = entry["dim_value"]
        geometry = Geometry(dim=entry["dim"], heads=entry["heads"], dim_head=entry["dim_head"])
        groups = tuple(tuple(map(_scheme, group)) for group in entry["position"] or [[]])
        self._groups: list[tuple[Part, dict[str, str]]] = []
        parts = Builder(geometry).parts(groups)
        for index, part in enumerate(parts):
            names: dict[str, str] = {}
            for slot in SLOTS:
                module = getattr(part, slot)
                if module is not None:
                    kind = next(
                        one.name
                        for group in groups
                        for one in group
                        if one.slot is not None and one.slot.value == slot
                    )
                    names[slot] = kind if len(parts) == 1 else f"{kind}_{index}"
                    self.add_module(names[slot], module)
            if part.rotation is not None and part.rotation.length_dependent:
                raise FlagError(
                    "position",
                    f"position {part.rotation_name!r} turns earlier tokens otherwise as more "
                    "follow, which the cache of transformers does not allow: choose "
                    "'rotary_yarn' or 'rotary_ntk'",
                )
            nothing: dict[str, Any] = dict.fromkeys(SLOTS)
            self._groups.append((replace(part, **nothing), names))
        rotations = [part.rotation for part in parts if part.rotation is not None]
        self.needs_places = any(not rotation.remembers for rotation in rotations)
        self.needs_places |= any(part.bias or part.mask or part.scale for part in parts)
        self.remembers = any(module is not None for module in read_by(parts))
        self.looked_at = False

    def _look_at_tables(self) -> None:
        """Warn if training leaves CoPE as it is born, which does nothing."""
        self.looked_at = True
        tables = [m.pos_emb for m in self.children() if isinstance(m, CoPE)]
        frozen = torch.is_grad_enabled() and not any(table.requires_grad for table in tables)
        if tables and frozen and not any(bool(table.any()) for table in tables):
            _tell(FROZEN)

    def parts(self) -> list[Part]:
        """The groups of heads with the modules that are registered now."""
        return [
            replace(part, **{slot: getattr(self, name) for slot, name in names.items()})
            for part, names in self._groups
        ]

    def remember(self, x: Tensor) -> list[Tensor | None]:
        """What the tokens x (b n dim) leave behind, for each module that `read_by` names."""
        modules = read_by(self.parts())
        return [None if module is None else module.remember(x) for module in modules]

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float,
        given: Given,
        documents: Tensor | None = None,
        dropout: float = 0.0,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of all heads.

        Args:
            q: (b h i d).
            k: (b hk j d).
            v: (b hk j dv), wider where the cache holds what tokens left behind.
            mask: a form of `masks`.
            scale: of the logits.
            given: what the layer did not hand on.
            documents: cu_seqlens of packed rows.
            dropout: share of the attention weights that is dropped.

        Returns:
            (b h i dv); (b h i j) weights or None.
        """
        if self.training and not self.looked_at and not torch.compiler.is_compiling():
            self._look_at_tables()
        remembered = given.remembered or [None] * (2 * len(self._groups))
        if v.shape[-1] > self.dim_value:
            v, remembered = _unloaded(v, self.dim_value, remembered)
        written = given.maps or dropout > 0 or documents is not None
        with nullcontext() if torch.compiler.is_compiling() else _weights_at_hand(self):
            if mask is not None and mask.dtype == WINDOW:
                width, *_ = mask.view(torch.int64)[0, 0, 0, :1].tolist()
                there = mask.view(torch.int64)[..., 1:].bool()
                if not written:
                    there = there[:, 0, 0].expand(q.shape[0], q.shape[2])
                    return self._in_windows(q, k, v, width, there, scale, remembered), None
                mask = there & _window(q.shape[2], q.shape[2], width, q.device)
            elif mask is not None and mask.dtype == DOCUMENTS:
                documents, mask = mask.view(torch.int32)[0, 0, 0], None
            return self._attend(q, k, v, mask, scale, given, remembered, documents, dropout)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float,
        given: Given,
        remembered: list[Tensor | None],
        documents: Tensor | None,
        dropout: float,
    ) -> tuple[Tensor, Tensor | None]:
        parts, (b, h, i) = self.parts(), q.shape[:3]
        if documents is not None and b > 1:
            q, k, v = (t.transpose(0, 1).flatten(1, 2)[None] for t in (q, k, v))
            remembered = [None if t is None else _in_a_row(t) for t in remembered]
        if mask is None and documents is None and given.cached is not None and i == k.shape[2] > 1:
            _check_one_document(given.cached)
        if mask is not None and mask.shape[2] == 1 and mask.shape[3] < k.shape[2]:
            k, v = k[:, :, : mask.shape[3]], v[:, :, : mask.shape[3]]
            remembered = [None if t is None else t[:, :, : mask.shape[3]] for t in remembered]
        j = k.shape[2]
        aligned = mask is None or mask.shape[2] == 1
        call = self._call(mask, i, j, given.last, documents, k.device)
        if self.remembers:
            hidden = None if mask is None else ~mask.flatten(1, 2).any(1)[:, None]
            remembered = [
                t if t is None or hidden is None
                else t.masked_fill(hidden if t.ndim == 3 else hidden[..., None], 0.0)
                for t in remembered
            ]  # fmt: skip
            call = _with_left(call, remembered)
        causal = aligned or q.shape[2] == j
        settings: dict[str, Any] = {"scale": scale, "mask": mask, "causal": causal}
        weights = None
        if given.maps or dropout > 0:
            out, weights = _written_out(parts, call, q, k, v, dropout, **settings)
        else:
            out = _fused(parts, call, q, k, v, **settings)
        if documents is not None and b > 1:
            out = out[0].view(h, b, i, -1).transpose(0, 1)
            if weights is not None:
                within = weights[0].view(h, b, i, b, i).diagonal(dim1=1, dim2=3)
                weights = within.movedim(-1, 0)
        return out, weights if given.maps else None

    def _in_windows(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        window: int,
        there: Tensor,
        scale: float,
        remembered: Sequence[Tensor | None],
    ) -> Tensor:
        """Attention in a window of the last keys: blocks of queries, each beside the block before.

        Args:
            q: (b h n d).
            k: (b hk n d).
            v: (b hk n dv).
            window: w, how many keys a query sees at most, itself included.
            there: bool (b n), which tokens are no padding.
            scale: of the logits.
            remembered: for each module that `read_by` names, of all tokens.

        Returns:
            (b h n dv), in O(n w) memory.
        """
        parts, (b, h, n) = self.parts(), q.shape[:3]
        rest = -n % window

        def blocks(t: Tensor) -> Tensor:  # (b h n c) → (b·n/w h w c)
            t = F.pad(t, (0, 0, 0, -t.shape[2] % window))
            return t.view(b, t.shape[1], -1, window, t.shape[3]).transpose(1, 2).flatten(0, 1)

        def pairs(t: Tensor) -> Tensor:  # (b h n c) → (b·n/w h 2w c), each after the one before it
            t = F.pad(t, (0, 0, window, rest))
            return torch.cat((blocks(t[:, :, :-window]), blocks(t[:, :, window:])), dim=2)

        seen = pairs(there[:, None, :, None])[..., 0][:, :, None]
        mask = seen & _window(window, 2 * window, window, q.device)
        places = pairs((there.long().cumsum(-1) - 1)[:, None, :, None])[:, 0, :, 0]
        left: list[Tensor | None] = []
        for t in remembered:
            if t is None:
                left.append(None)
                continue
            hidden = ~there[:, None, :, None]
            whole = pairs((t if t.ndim == 4 else t[..., None]).masked_fill(hidden, 0.0))
            left.append(whole if t.ndim == 4 else whole[..., 0])
        call = _with_left(LayerCall(Places(places.clamp(min=0))), left)
        q, k, v = blocks(q), pairs(k), pairs(v)
        out = _fused(parts, call, q, k, v, scale=scale, mask=mask, causal=True)
        out = out.view(b, -1, h, window, out.shape[3]).transpose(1, 2).flatten(2, 3)
        return out[:, :, :n]

    def _call(
        self,
        mask: Tensor | None,
        i: int,
        j: int,
        last: Tensor | int | None,
        documents: Tensor | None,
        device: torch.device,
    ) -> LayerCall:
        """Where the tokens stand: a row that is padded stands where it would stand alone."""
        if documents is not None:
            return LayerCall(Places(packed_places(documents, j), documents=documents))
        if not self.needs_places:
            return LayerCall(Places(torch.arange(0, device=device)))
        there = torch.ones(1, j, dtype=torch.bool, device=device)
        if mask is not None:
            there = mask.flatten(1, 2).any(1)  # (b j)
        keys = there.long().cumsum(-1) - 1
        if mask is not None and mask.shape[2] == j:  # a document begins where none is seen before
            begins = there[:, 1:] & there[:, :-1] & ~mask[:, 0].diagonal(-1, -2, -1)
            keys = keys - F.pad(torch.where(begins, keys[:, 1:], 0), (1, 0)).cummax(-1).values
        if last is not None:
            keys = keys - keys[:, -1:] + last
        keys, queries = keys.clamp(min=0), None
        if mask is not None and 1 < mask.shape[2] < j:  # a query itself is the last that it sees
            own = j - 1 - mask[:, 0].flip(-1).to(torch.uint8).argmax(-1)
            queries = Places(_one(keys.gather(1, own)))
        return LayerCall(Places(_one(keys)), q_places=queries)


def _window(i: int, j: int, window: int, device: torch.device) -> Tensor:
    """Which of j keys the last i of them see, of the last ``window``: bool (i j)."""
    return torch.ones(i, j, dtype=torch.bool, device=device).tril(j - i).triu(j - i - window + 1)


def _scheme(entry: dict[str, Any]) -> Scheme:
    """The scheme that a config names, {name: cope, max_pos: 64}."""
    return scheme(entry["name"], {name: v for name, v in entry.items() if name != "name"})


def _for_each_query_head(t: Tensor, h: int) -> Tensor:
    """(b hk j d) → (b h j d): query head a uses key head a // (h / hk)."""
    return t if t.shape[1] == h else t.repeat_interleave(h // t.shape[1], dim=1)


@contextmanager
def _weights_at_hand(module: nn.Module) -> Iterator[None]:
    """Within, weights that accelerate has put aside are there: they are read without a call."""
    aside: list[tuple[nn.Module, Any]] = [
        (inner, inner._hf_hook) for inner in module.modules() if hasattr(inner, "_hf_hook")
    ]
    for inner, hook in aside:
        hook.pre_forward(inner)
    try:
        yield
    finally:
        for inner, hook in aside:
            hook.post_forward(inner, None)


def _check_one_document(position_ids: Tensor) -> None:
    """Raise a `FlagError` if places begin anew within a row: transformers sees one text there."""
    if not is_tracing(position_ids) and bool((position_ids.diff(dim=-1) < 0).any()):
        raise FlagError(
            "position_ids",
            "position_ids begin anew within a row: beside a cache transformers does not keep "
            "packed documents apart: call the model with use_cache=False",
        )


def _with_left(call: LayerCall, left: Sequence[Tensor | None]) -> LayerCall:
    """The call with what tokens left behind for each module that `read_by` names."""
    groups = len(left) // 2
    return replace(call, placing=tuple(left[:groups]), remembered=tuple(left[groups:]))


def _one(places: Tensor) -> Tensor:
    """(1 n) → (n), for all rows; (b n) as it is."""
    return places[0] if len(places) == 1 else places


def _in_a_row(t: Tensor) -> Tensor:
    """(b h n …) → (1 h b·n …)."""
    return t.transpose(0, 1).flatten(1, 2)[None]


def _fused(
    parts: Sequence[Part], call: LayerCall, q: Tensor, k: Tensor, v: Tensor, **settings: Any
) -> Tensor:
    """Attention of all groups of heads without a (b h i j) tensor, (b h i dv)."""
    sinks = own_sinks(parts, q.device)
    if keys_of_each_head(parts):
        h = q.shape[1]
        k, v = _for_each_query_head(k, h), _for_each_query_head(v, h)
    gates: Gates = {None: None, "values": v}
    if len(parts) > 1:
        return attend_groups(parts, call, q, k, v, gates, sinks=sinks, **settings)
    remembered, settings["placing"] = call.left(0)
    return attend(parts[0], call, q, k, v, gates, remembered, sink=sinks[0], **settings)


def _written_out(
    parts: Sequence[Part],
    call: LayerCall,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout: float,
    *,
    scale: float,
    mask: Tensor | None,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """Attention with all its weights held, (b h i dv) and (b h i j)."""
    dtype, (h, i), j = v.dtype, q.shape[1:3], k.shape[2]
    wide = torch.promote_types(dtype, torch.float32)
    k, v = _for_each_query_head(k, h), _for_each_query_head(v, h)
    gates: Gates = {None: None, "values": v}
    if call.places.documents is not None:
        mask = within_documents(mask, call.places.documents, j)
    seen = visible(q, k, mask_of(parts, call, mask, i, j), causal)
    queries, logits = [], []
    inputs: list[AttendInputs | None] = []
    for index, (part, heads) in enumerate(with_heads(parts)):
        gate_k = None if part.attend is None else gate_keys_of(part.attend, k, gates)
        gate_k = None if gate_k is None else gate_k[:, heads]
        left, placing = call.left(index)
        its_q, its_k, gate_k = turned(part, call, q[:, heads], k[:, heads], gate_k, placing=placing)
        queries.append(its_q.to(wide))
        logits.append(scale * its_q.to(wide) @ its_k.to(wide).mT)
        if part.attend is None or part.attend.gives_bias:
            inputs.append(None)  # nothing, or a bias that is written out
        else:
            its = AttendInputs(scale=scale, gate_k=gate_k, remembered=left)
            inputs.append(replace(its, cu_seqlens=call.places.documents))
    s = torch.cat(logits, dim=1)
    bias = bias_of(parts, call, i, j)
    s = (s if bias is None else s + bias).masked_fill(~seen, torch.finfo(wide).min)
    if any(told is not None for told in inputs):
        s = s + added_by_modules(parts, inputs, torch.cat(queries, dim=1), s)
    sink = sink_of_heads(parts, own_sinks(parts, q.device))
    weights = weights_of(parts, s.masked_fill(~seen, -torch.inf), sink)
    weights = weights.masked_fill(~seen.any(-1, keepdim=True), 0.0)
    if dropout > 0:
        weights = F.dropout(weights, dropout)
    return (weights @ v.to(wide)).to(dtype), weights.to(dtype)


# -- what transformers calls -----------------------------------------------------------------------


def xcope_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention function ``"xcope"``.

    Args:
        module: the attention module that calls.
        query: (b h i d).
        key: (b hk j d).
        value: (b hk j dv).
        attention_mask: of `xcope_mask`, or the caller's.
        scaling: of the logits; None: d ** −0.5.
        dropout: needs the (b h i j) weights.
        kwargs: what else the class hands on.

    Returns:
        (b i h dv); (b h i j) weights where ``output_attentions`` asks for them.

    Raises:
        FlagError: what the class asks for is not computed here.
    """
    for name, what in REFUSED.items():
        if kwargs.get(name) is not None:
            raise FlagError(name, f"{_kind(module)} {what}, {name}=…: xcope's attention does not")
    causal = kwargs.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise FlagError(
            "is_causal", f"{_kind(module)} is not causal (is_causal=False): {NOT_CAUSAL}"
        )
    own = getattr(module, NAME, None)
    if own is None:
        own = _noted(module, query, key, value)
    documents = kwargs.get("cu_seq_lens_q")
    mask = understood(attention_mask, query.shape[2], key.shape[2])
    if mask is not None and mask.dtype == DOCUMENTS:
        documents = None  # the mask tells of them
    if documents is not None:
        _check_packed(query, key, mask)
    if dropout > 0:
        _tell(DROPS)
    given = module.__dict__.pop("_xcope_given", None) or Given()
    scale = float(query.shape[-1] ** -0.5 if scaling is None else scaling)
    out, weights = own(query, key, value, mask, scale, given, documents, dropout)
    return out.transpose(1, 2).contiguous(), weights


def _check_packed(query: Tensor, key: Tensor, mask: Tensor | None) -> None:
    """Raise a `FlagError` if cu_seq_lens come with what they do not go together with."""
    wrong = ""
    if query.shape[2] != key.shape[2]:
        wrong = "a cache: call the model with use_cache=False"
    elif mask is not None and len(query) > 1:
        wrong = "a mask of several rows: flatten them into one"
    if wrong:
        raise FlagError("cu_seq_lens_q", f"cu_seq_lens_q does not go together with {wrong}")


def _noted(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> LayerPosition:
    """What a module that has none of our schemes attends with, while it is watched."""
    calls, shape = watching.get(), query.shape
    if calls is None:
        raise FlagError("model", NOT_RESTORED)
    if shape[2] != key.shape[2]:
        raise FlagError("model", f"{_kind(module)} attends to more keys than there are tokens")
    calls.append({"module": module, "q": shape, "k": key.shape, "v": value.shape})
    plain = {"heads": shape[1], "dim_head": shape[3], "dim_value": value.shape[3], "dim": 0}
    return LayerPosition(plain | {"position": None})


def _kind(module: nn.Module) -> str:
    return type(module).__name__


_tell_once = cache(log.warning)


def _tell(warning: str) -> None:
    """Log a warning, once."""
    _tell_once(warning)


# logged while compiling, it cuts no graph in two
torch.compiler.assume_constant_result(_tell)  # type: ignore[no-untyped-call]

DROPS = (
    "attention dropout holds the (b h n n) weights to drop from them: set attention_dropout "
    "(attn_pdrop of GPT-2) to 0 to train in O(n) memory"
)
FROZEN = (
    "CoPE's tables are zero and do not learn: nothing will change; let them learn "
    "(position_parameters), with PEFT by LoraConfig(modules_to_save=['xcope'])"
)


AttentionInterface.register(NAME, xcope_attention)
AttentionMaskInterface.register(NAME, xcope_mask)


def before_model(module: Any, args: Any, kwargs: Any) -> None:
    """Forward pre-hook of the model: some classes do not tell their layers of this."""
    module._xcope_asked["maps"] = bool(kwargs.get("output_attentions"))


def before_attention(module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Forward pre-hook of attention modules: what is not handed on to attention is noted here."""
    other = module.config._attn_implementation
    if other in ("eager", "sdpa") or str(other).startswith(("flash_", "flex_", "paged")):
        raise FlagError(
            "attn_implementation",
            f"attn_implementation={other!r} leaves out the positions that xcope has put into this "
            "model: set_attn_implementation('xcope') brings them back, remove_position takes them "
            "out",
        )
    names, still = module._xcope_hook["arguments"], module._xcope_hook["still"]
    given = dict(zip(names, args, strict=False)) | kwargs
    changed: dict[str, Any] = {}
    embeddings = given.get("position_embeddings")
    if still is not None and embeddings is not None:
        changed["position_embeddings"] = _still(embeddings, still)
    own, noted = getattr(module, NAME), Given(maps=module._xcope_hook["asked"]["maps"])
    cached = next((name for name, value in given.items() if isinstance(value, Cache)), None)
    x = given.get("hidden_states", args[0] if args else None)
    if cached is not None:
        cache, layer = given[cached], getattr(module, "layer_idx", 0)
        noted.cached = given.get("position_ids")
        if own.needs_places:
            noted.last = _last_places(cache, layer, x.shape[1], given.get("position_ids"))
    if own.remembers:
        noted.remembered = own.remember(x)
        if cached is not None:
            changed[cached] = _loaded_cache(cache, noted.remembered, layer)
    module.__dict__["_xcope_given"] = noted
    args = tuple(changed.pop(name, value) for name, value in zip(names, args, strict=False))
    return args, {**kwargs, **changed}


def _last_places(
    cache: Any, layer: int, n: int, position_ids: Tensor | None
) -> Tensor | int | None:
    """Where the last of n tokens stand, if the cache holds a window that has left the first."""
    dropped = cache.get_mask_sizes(n, layer)[1]
    if isinstance(dropped, int) and dropped == 0:
        return None
    if position_ids is not None and position_ids.ndim == 2:
        return position_ids[:, -1:]
    last: Tensor | int = cache.get_query_offset(layer) + n - 1
    return last


def _still(embeddings: Any, still: Sequence[float]) -> Any:
    """Position embeddings by which nothing turns."""
    if isinstance(embeddings, Tensor):
        return torch.full_like(embeddings, still[0])
    return tuple(torch.full_like(t, s) for t, s in zip(embeddings, still, strict=True))


# -- what tokens leave behind, in transformers' caches ---------------------------------------------


def _loaded_cache(cache: Any, remembered: Sequence[Tensor | None], layer: int) -> Any:
    """A view of a cache whose values carry what tokens left behind, as further channels.

    So it is cropped, reordered, moved and cut to windows with them.
    """
    kind = type(cache.layers[layer]).__name__ if layer < len(cache.layers) else type(cache).__name__
    if "Quantized" in kind:
        raise FlagError(
            "cache_implementation",
            "a quantized cache would round what the scheme remembers of each token: "
            "choose the dynamic or the static one",
        )
    view = copy(cache)

    def update(keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        load = [_load(t, keys.shape[1], values.dtype) for t in remembered if t is not None]
        return cache.update(keys, torch.cat((values, *load), dim=-1), *args, **kwargs)

    view.update = update
    return view


def _pieces(dtype: torch.dtype) -> int:
    """How many numbers of a dtype hold one of float32."""
    return 3 if dtype.itemsize < 4 else 1


def _load(t: Tensor, kv_heads: int, dtype: torch.dtype) -> Tensor:
    """(b h n) or (b h n c) → (b hk n m) in the values' dtype."""
    rest = t[..., None] if t.ndim == 3 else t
    rest = F.pad(rest, (0, 0, 0, 0, 0, -rest.shape[1] % kv_heads))
    pieces = []
    for _ in range(_pieces(dtype)):
        pieces.append(rest.to(dtype))
        rest = rest - pieces[-1].to(rest.dtype)
    whole = torch.cat(pieces, dim=-1)
    grouped = whole.view(len(whole), kv_heads, -1, *whole.shape[2:])  # (b hk g n m)
    return grouped.transpose(2, 3).flatten(3)


def _unloaded(
    v: Tensor, dim_value: int, given: Sequence[Tensor | None]
) -> tuple[Tensor, list[Tensor | None]]:
    """The inverse, for all keys: values, and what tokens left behind.

    Args:
        v: (b hk j dv + m).
        dim_value: dv.
        given: of the tokens of this call, whose shapes tell what m is made of.
    """
    first, pieces = dim_value, _pieces(v.dtype)
    found: list[Tensor | None] = []
    for t in given:
        if t is None:
            found.append(None)
            continue
        heads, channels = t.shape[1], t.shape[3] if t.ndim == 4 else 1
        groups = -(-heads // v.shape[1])
        load = v[..., first : first + groups * pieces * channels]
        first += load.shape[-1]
        apart = load.reshape(*load.shape[:-1], groups, pieces, channels)
        whole = apart.to(t.dtype).sum(-2)
        whole = whole.transpose(2, 3).flatten(1, 2)[:, :heads]
        found.append(whole if t.ndim == 4 else whole[..., 0])
    return v[..., :dim_value], found


def arguments(module: nn.Module) -> list[str]:
    """The names of the positional arguments of a module's call."""
    return list(inspect.signature(type(module).forward).parameters)[1:]
