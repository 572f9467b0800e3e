"""`TransformerWrapper` and `AutoregressiveWrapper`: tokens in, logits or new tokens out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from xcope.errors import FlagError
from xcope.modules import seam
from xcope.modules.decoder import Decoder, abs_pos_default, random_numbers_of_its_own
from xcope.modules.flags import arguments, resolve, unknown, wrapper_flags
from xcope.modules.places import (
    check_masks,
    documents_of,
    is_places,
    packed_places,
    tokens_only_cached,
)
from xcope.positions import (
    Geometry,
    Plan,
    Position,
    Scheme,
    Slot,
    combined,
    scheme,
    single,
)
from xcope.positions.base import (
    AddedToInput,
    AttendModule,
    IndexBias,
    QueryScale,
    Rotation,
    Sinks,
    fill_constants,
)

SCHEME_MODULES = (AddedToInput, Rotation, IndexBias, AttendModule, Sinks, QueryScale)


class TransformerWrapper(seam.UpstreamTransformerWrapper):  # type: ignore[misc]
    """A decoder with its token embedding and output layer.

    As x-transformers' wrapper, with one difference: choosing a scheme means that scheme only.
    Learned absolute positions stand beside it only when asked for.

    Args:
        num_tokens: size of the vocabulary.
        max_seq_len: rows of a table of absolute positions, and what ``max_pos="block"`` means;
            other schemes take longer inputs.
        attn_layers: the stack, usually a `Decoder`.
        use_abs_pos_emb: True adds learned absolute positions to whatever the decoder has; False
            adds none; None adds them only if the decoder names no position at all.
        scaled_sinu_pos_emb: sinusoidal instead of learned ones.
        flags: all other keywords of x-transformers' ``TransformerWrapper``.

    Attributes:
        plan: which layer and which head has which scheme.
        schemes: all of them, combinations replaced by their parts.

    Raises:
        FlagError: (a ValueError) an unknown flag, contradictory flags, an impossible size.
    """

    plan: Plan
    schemes: tuple[Scheme, ...]

    def __init__(
        self,
        *,
        num_tokens: int,
        max_seq_len: int,
        attn_layers: Any,
        use_abs_pos_emb: bool | None = None,
        scaled_sinu_pos_emb: bool = False,
        **flags: Any,
    ) -> None:
        _check(num_tokens, max_seq_len, attn_layers, flags)
        if isinstance(attn_layers, Decoder):
            attn_layers.fit_tables(max_seq_len)
            plan, default = attn_layers.plan, attn_layers.abs_pos_default
        else:
            plan, default = single(), not attn_layers.disable_abs_pos_emb
        plan, chosen = with_input(
            plan,
            default and max_seq_len > 0,
            use_abs_pos_emb=use_abs_pos_emb,
            scaled_sinu_pos_emb=scaled_sinu_pos_emb,
            l2norm_embed=bool(flags.get("l2norm_embed")),
        )
        dim = flags.get("emb_dim") or attn_layers.dim
        geometry = Geometry(dim, attn_layers.attn_heads, attn_layers.attn_dim_head, max_seq_len)
        upstream = {
            "num_tokens": num_tokens,
            "max_seq_len": max_seq_len,
            "attn_layers": attn_layers,
            "use_abs_pos_emb": False,
        }
        needed, upstream = tuple(upstream), upstream | flags
        with seam.errors_for_people(seam.UpstreamTransformerWrapper, upstream, needed):
            super().__init__(**upstream)
        seam.check_wrapper(self)
        if flags.get("tie_embedding"):
            seam.tie_logits(self)
        if chosen is not None:
            with random_numbers_of_its_own():
                embedding: Any = chosen.build(geometry)
            seam.fill_input(self, embedding)
        self._know(plan)

    @classmethod
    def adopt(cls, wrapper: seam.UpstreamTransformerWrapper, plan: Plan) -> None:
        """Let a wrapper that x-transformers built, around a `Decoder`, be of this class: in place.

        Args:
            wrapper: what it adds to the embedding is of ours already.
            plan: who has which scheme.

        Raises:
            SeamError: an x-transformers whose insides moved.
        """
        seam.check_wrapper(wrapper)
        wrapper.__class__ = cls
        if seam.is_tied(wrapper):
            seam.tie_logits(wrapper)
        wrapper._know(plan)

    def _know(self, plan: Plan) -> None:
        self.plan, self.schemes = plan, plan.schemes
        self.register_load_state_dict_pre_hook(_explain_positions)
        self.register_load_state_dict_post_hook(fill_constants)

    @property
    def max_table_len(self) -> int | None:
        """The longest input that a table of absolute positions takes; None: no limit."""
        return getattr(self.pos_emb, "max_seq_len", None)

    def position_parameters(self) -> list[nn.Parameter]:
        """What the schemes learn: tables, slopes, gates. Not the keys of ``cope_sep_keys``, which
        are the attention's."""
        found = {
            parameter: None
            for module in self.modules()
            if isinstance(module, SCHEME_MODULES)
            for parameter in module.parameters()
        }
        for module in self.modules():
            learned = module.head_attn_sink if isinstance(module, seam.SchemeAttend) else None
            if learned is not None:
                found[learned] = None
        return list(found)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As x-transformers': token ids (b n) in, logits (b n num_tokens) out.

        With ``cu_seqlens``, int32 or int64 (m + 1), ``x`` (1 n) holds m documents, and each has the
        logits that it has alone, see `Decoder.forward`. Under ``random_max`` one draw of places
        serves all documents.

        Raises:
            FlagError: see `Decoder.forward`; beside ``cu_seqlens`` also: memory or class tokens,
                pooling, a document that does not fit into a table of absolute positions (on a GPU
                that one is not looked for).
        """
        if isinstance(self.attn_layers, Decoder):
            kwargs = arguments("TransformerWrapper", args, kwargs, beneath=["Decoder"])
            args = ()
        # x-transformers' own layers read flash_pack_seq_kwargs themselves
        documents = documents_of(x, kwargs) if isinstance(self.attn_layers, Decoder) else None
        if documents is not None:
            seam.check_packed_wrapper(self)
            kwargs["cu_seqlens"] = documents
            if isinstance(self.pos_emb, AddedToInput) and kwargs.get("pos") is None:
                kwargs["pos"] = self.pos_emb(x, pos=self._places(documents, x.shape[1]))
        start = kwargs.get("seq_start_pos")
        if self.average_pool_embed and start is not None and kwargs.get("mask") is None:
            kwargs["mask"] = torch.arange(x.shape[1], device=x.device) >= start[:, None]
        if isinstance(self.attn_layers, Decoder):
            self._place_tokens(x, kwargs)
        wants_logits = kwargs.get("return_attn") or kwargs.get("return_attn_z_loss")
        with seam.logits_kept(self.attn_layers) if wants_logits else nullcontext():
            return super().forward(x, *args, **kwargs)

    def _place_tokens(self, x: Tensor | None, arguments: dict[str, Any]) -> None:
        """Say in ``arguments`` what comes before the tokens, and whether the cache does."""
        prepended = arguments.get("prepend_embeds")
        before = 0 if prepended is None else prepended.shape[1]
        n = before if x is None else before + x.shape[1]
        cls_tokens = 0 if self.cls_token is None else self.num_cls_tokens
        cache = arguments.get("cache")
        countable = cache is not None and not (self.num_memory_tokens or cls_tokens)
        if countable and tokens_only_cached(n, cache, arguments.get("cache_age", 1)):
            arguments["input_not_include_cache"] = True
        pos = arguments.get("pos")
        if pos is not None and x is not None:
            if is_places(pos, x[..., None]):
                arguments["pos"] = pos.long()  # x-transformers takes int32 for an embedding
            elif pos.shape[-1] not in (1, self.emb_dim):
                raise FlagError(
                    "pos",
                    f"pos {tuple(pos.shape)} in {pos.dtype} is not allowed: an embedding of places "
                    f"is ({x.shape[1]} {self.emb_dim}) or ({len(x)} {x.shape[1]} {self.emb_dim})",
                )
        mask = arguments.get("mask")
        if mask is not None and x is not None:
            check_masks(x[..., None], {"mask": mask})
        if arguments.get("seq_start_pos") is None:
            return
        if self.memory_tokens_interspersed_every and self.num_memory_tokens:
            raise FlagError(
                "seq_start_pos",
                "seq_start_pos does not go together with memory_tokens_interspersed_every, whose "
                "memories would stand elsewhere in a padded row: give each row alone",
            )
        arguments["tokens_before"] = self.num_memory_tokens + cls_tokens + before

    def _places(self, documents: Tensor, n: int) -> Tensor:
        """Of the n tokens of packed documents, for what is added to their embeddings: (n)."""
        pos = packed_places(documents, n)
        seen = documents.device.type == "cpu" and not torch.compiler.is_compiling()
        longest = self.max_table_len
        if longest is not None and seen and n and pos.max() >= longest:
            raise FlagError(
                "max_seq_len",
                f"a document of {int(pos.max()) + 1} tokens does not fit into learned absolute "
                f"positions of max_seq_len={longest}: shorten it",
            )
        draw = getattr(self.pos_emb, "draw", None)
        if draw is not None and (self.training or draw.at_test):
            pos = draw.places_of_documents(documents, n)[pos]
        return pos


class AutoregressiveWrapper(seam.UpstreamAutoregressiveWrapper):  # type: ignore[misc]
    """Next-token loss and generation, as x-transformers' wrapper.

    ``generate`` differs in one default: ``restrict_to_max_seq_len=None`` cuts the context to
    ``max_seq_len`` only for schemes that own a table of places; others see all of it.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As x-transformers': the loss of predicting each token of ``x`` (b n) from those before.

        Raises:
            FlagError: an unknown argument.
        """
        return super().forward(x, **self._arguments("AutoregressiveWrapper", args, kwargs))

    @torch.no_grad()
    def generate(
        self,
        prompts: Tensor | list[Tensor],
        seq_len: int,
        *args: Any,
        restrict_to_max_seq_len: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Continue prompts (b n) by ``seq_len`` tokens; returns (b seq_len).

        Raises:
            FlagError: a prompt, or with the cache the whole text, that a table of absolute
                positions cannot take.
        """
        kwargs = self._arguments("generate", (seq_len, *args), kwargs)
        kwargs.setdefault("restrict_to_max_seq_len", restrict_to_max_seq_len)
        self._restrict(prompts, kwargs)
        one = prompts[0] if isinstance(prompts, list) else prompts
        several = len(prompts) > 1 and (one is not prompts or one.ndim > 1)
        if several and getattr(self.net, "looped", False):
            raise FlagError(
                "looped", "a looped model generates one text at a time: give prompts one by one"
            )
        return super().generate(prompts, **kwargs)

    @torch.no_grad()
    def beam_search(
        self,
        prompts: Tensor,
        seq_len: int,
        *args: Any,
        restrict_to_max_seq_len: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `generate`, by beam search."""
        kwargs = self._arguments("beam_search", (seq_len, *args), kwargs)
        kwargs.setdefault("restrict_to_max_seq_len", restrict_to_max_seq_len)
        self._restrict(prompts, kwargs)
        return super().beam_search(prompts, **kwargs)

    def _arguments(
        self, function: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Of a call, by their names; checked if it is known who gets them."""
        if not isinstance(getattr(self.net, "attn_layers", None), Decoder):
            return dict(zip(seam.CALLS[function], args, strict=False)) | kwargs
        return arguments(function, args, kwargs, beneath=["TransformerWrapper", "Decoder"])

    def _restrict(self, prompts: Tensor | list[Tensor], kwargs: dict[str, Any]) -> None:
        seq_len, restrict = kwargs["seq_len"], kwargs["restrict_to_max_seq_len"]
        if isinstance(self.net, TransformerWrapper):
            kwargs["input_not_include_cache"] = False  # every call has the whole text
        rows = prompts if isinstance(prompts, list) else [prompts]
        longest = max((row.shape[-1] for row in rows), default=0)
        limit = getattr(self.net, "max_table_len", None)
        if limit is not None:
            if longest > limit:
                raise FlagError(
                    "prompt",
                    f"the prompt has {longest} tokens, but learned absolute positions end at "
                    f"max_seq_len={limit}: shorten the prompt",
                )
            # the last token is only read out, never read in
            if longest + seq_len - 1 > limit and kwargs.get("cache_kv", True):
                raise FlagError(
                    "seq_len",
                    f"{longest} prompt tokens and {seq_len} new ones pass max_seq_len={limit}, "
                    f"where learned absolute positions end: ask for at most {limit - longest + 1} "
                    "new tokens, or pass cache_kv=False to slide a window over the text",
                )
        kwargs["restrict_to_max_seq_len"] = limit is not None if restrict is None else restrict


def _check(num_tokens: int, max_seq_len: int, attn_layers: nn.Module, flags: Any) -> None:
    known = wrapper_flags()
    for flag in flags:
        if flag not in known:
            raise unknown("TransformerWrapper", flag, known)
    seam.check_flags(flags)
    for flag, value, least in (("num_tokens", num_tokens, 1), ("max_seq_len", max_seq_len, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise FlagError(
                flag, f"{flag}={value!r} is not allowed: a whole number from {least} on"
            )
    if not isinstance(attn_layers, seam.AttentionLayers):
        raise FlagError(
            "attn_layers",
            f"attn_layers must be a Decoder, but is a {type(attn_layers).__name__}",
        )


def plan_of(position: Position | None, flags: Mapping[str, Any]) -> Plan:
    """The plan of the model that these flags describe, without building it.

    Args:
        position: as for `Decoder`.
        flags: of `Decoder` and of `TransformerWrapper`; sizes need not be among them.

    Raises:
        FlagError: flags that contradict each other, as when the model is built.
    """
    to_wrapper = wrapper_flags()
    request = resolve(position, {k: v for k, v in flags.items() if k not in to_wrapper})
    plan, _ = with_input(
        request.plan,
        abs_pos_default(request),
        use_abs_pos_emb=flags.get("use_abs_pos_emb"),
        scaled_sinu_pos_emb=flags.get("scaled_sinu_pos_emb", False),
        l2norm_embed=bool(flags.get("l2norm_embed")),
    )
    return plan


def with_input(
    plan: Plan,
    default: bool,
    *,
    use_abs_pos_emb: bool | None,
    scaled_sinu_pos_emb: bool,
    l2norm_embed: bool,
) -> tuple[Plan, Scheme | None]:
    """A decoder's plan with what the wrapper adds to the embedding, and that scheme.

    Args:
        default: add learned absolute positions where no flag says whether to.

    Raises:
        FlagError: flags that contradict each other or the plan.
    """
    named = next(iter(plan.of(Slot.INPUT)), None)
    asked = "sinusoidal" if scaled_sinu_pos_emb else "absolute"
    if use_abs_pos_emb is False and (named is not None or scaled_sinu_pos_emb):
        other = f"position={named.name!r}" if named is not None else "scaled_sinu_pos_emb=True"
        raise FlagError("use_abs_pos_emb", f"use_abs_pos_emb=False contradicts {other}")
    if named is not None and scaled_sinu_pos_emb and named.name != asked:
        raise FlagError(
            "scaled_sinu_pos_emb",
            f"two schemes at once: scaled_sinu_pos_emb=True and position={named.name!r}",
        )
    if use_abs_pos_emb is None:
        use_abs_pos_emb = scaled_sinu_pos_emb or default
    if named is None and not use_abs_pos_emb:
        return plan, None
    chosen = named or scheme(asked)
    if l2norm_embed and "l2norm" in chosen.options():
        chosen = dataclasses.replace(chosen, **{"l2norm": True})
    return plan if named else combined([single(chosen), plan]), chosen


def _explain_positions(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    _metadata: Any,
    _strict: bool,
    _missing: list[str],
    _unexpected: list[str],
    error_msgs: list[str],
) -> None:
    """Before loading: say what to set where absolute positions are on one side only."""
    table = state_dict.get(f"{prefix}pos_emb.emb.weight")
    ours = getattr(getattr(module.pos_emb, "emb", None), "weight", None)
    if table is not None and ours is None:
        error_msgs.append(
            f"the checkpoint has learned absolute positions ({prefix}pos_emb.emb.weight, "
            f"{tuple(table.shape)}), this model has none: x-transformers adds them beside ALiBi "
            "and CoPE unless told otherwise. Build the model with "
            f"TransformerWrapper(use_abs_pos_emb=True, max_seq_len={table.shape[0]}), in YAML "
            "position: [absolute, …]"
        )
    if table is None and ours is not None:
        error_msgs.append(
            "this model has learned absolute positions, the checkpoint has none: build the model "
            "with TransformerWrapper(use_abs_pos_emb=False)"
        )
