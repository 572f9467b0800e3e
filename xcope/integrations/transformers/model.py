"""`XCopeForCausalLM`: our decoders as models of Hugging Face transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from accelerate.hooks import remove_hook_from_module
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel, slice_logits_to_keep
from transformers.utils import logging
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import can_return_tuple

from xcope import files
from xcope.config.build import make_model
from xcope.errors import FlagError, did_you_mean, listing
from xcope.integrations.transformers.cache import keep, layers_of
from xcope.integrations.transformers.config import CODE, XCopeConfig
from xcope.modules import cache_of, kept_by, logits_kept, recomputed
from xcope.modules.wrapper import SCHEME_MODULES as SCHEMES
from xcope.positions.base import WithConstants

log = logging.get_logger(__name__)

NOT_A_LANGUAGE_MODEL = (
    "average_pool_embed",
    "cross_attend",
    "embed_num_tokens",
    "logits_dim",
    "looped",
    "num_output_heads",
    "only_cross",
    "recycling",
    "return_only_embed",
    "squeeze_out_last_dim",
    "use_cls_token",
)
"""Flags with which token ids alone do not give logits (b n num_tokens)."""
OF_THE_LOSS = ("num_items_in_batch", "ignore_index", "shift_labels")
SAYS_THE_SAME = ("cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
"""What collators of packed rows give beside ``cu_seq_lens_q``."""
TAKEN = (*OF_THE_LOSS, *SAYS_THE_SAME, "cu_seq_lens_q", "position_ids", "is_causal")

KEEPS_NONE = "tokens meet elsewhere than in attention, or change as more follow"
IMPORTS = '''"""xcope's models, for `trust_remote_code=True`: needs `pip install "xcope[hf]"`."""

from xcope.integrations.transformers import XCopeConfig, XCopeForCausalLM

__all__ = ["XCopeConfig", "XCopeForCausalLM"]
'''


def _shared_weights(model: nn.Module) -> dict[str, str] | None:
    """Names of weights that layers share (``cope_shared``) → the first name of the same."""
    first: dict[nn.Parameter, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    pairs = {name: first.setdefault(parameter, name) for name, parameter in named}
    return {name: of for name, of in pairs.items() if name != of} or None


class XCopeForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """An `xcope.TransformerWrapper`, ``model``, behind the interface of transformers.

    ``generate``, ``Trainer``, ``pipeline``, ``save_pretrained``, PEFT and lm-eval take it as they
    take their own. A row that is padded, on either side, gives what it gives alone. Where a scheme
    keeps no cache, as dynamic NTK, or a table of absolute positions would end, `generate` goes on
    without one, and says so once.

    Raises:
        FlagError: see `xcope.Decoder`; a flag with which the decoder is no language model.
    """

    config_class = XCopeConfig
    config: XCopeConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["TransformerWrapper"]

    def __init__(self, config: XCopeConfig) -> None:
        super().__init__(config)
        for flag in NOT_A_LANGUAGE_MODEL:
            value = (config.flags or {}).get(flag)
            if value and not (flag == "num_output_heads" and value == 1):
                raise FlagError(
                    flag,
                    f"{flag}={value!r} is not taken by XCopeForCausalLM: tokens alone would not "
                    "give logits for each next token; use xcope.TransformerWrapper",
                )
        section = config.section()
        device = torch.get_default_device()  # from_pretrained builds on the meta device
        self.model = make_model(section, config.num_tokens, config.max_seq_len, device)
        self._schemes = [module for module in self.model.modules() if isinstance(module, SCHEMES)]
        self.gradient_checkpointing = False
        self._recompute: partial[Any] | None = None
        self._tied_weights_keys = _shared_weights(self)
        self.post_init()

    # -- forward ---------------------------------------------------------------------------------

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")  # type: ignore[untyped-decorator]
    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """Logits, and with ``labels`` the loss of each next token.

        Args:
            input_ids: (b n); beside a cache, the new tokens.
            attention_mask: (b m), 0 where a token means nothing; beside a cache m counts its
                tokens, too. What is masked is not read, and places count the other tokens.
            cache: what an earlier call gave, or an empty ``DynamicCache``; also by its older name
                ``past_key_values``.
            inputs_embeds: (b n dim), instead of ``input_ids``.
            labels: (b n) int64; they are shifted here, and −100 is not scored.
            use_cache: give a cache; None: as the config says, and not in training.
            output_attentions: give the attention maps, (b h n m) for each layer.
            output_hidden_states: give what goes into the first block and out of each.
            logits_to_keep: logits of so many last tokens, or of these; 0: of all.
            kwargs: ``position_ids``, int64 (b n), where they are not the numbers of the tokens; in
                a batch of one, places that begin again at 0 are packed documents, as
                ``cu_seq_lens_q`` says, too. ``num_items_in_batch``, ``ignore_index`` and
                ``shift_labels`` are the loss's.

        Raises:
            FlagError: arguments that do not fit together, and unknown ones.
        """
        given = _checked(kwargs)
        # accelerate's hooks do not see what is read without being called
        tied = () if self.get_output_embeddings() is not None else (self.get_input_embeddings(),)
        _keep_at_hand((*self._schemes, *tied))
        if (input_ids is None) == (inputs_embeds is None):
            raise FlagError("input_ids", "give either input_ids or inputs_embeds")
        if input_ids is None:
            assert inputs_embeds is not None
            input_ids, embed = self._embedded(inputs_embeds)
        else:
            embed = {}
        recompute = self._recompute if self.training and torch.is_grad_enabled() else None
        layers = layers_of(cache)
        past = layers[0].get_seq_length() if layers else 0
        if use_cache and not self.model.can_cache_kv:
            _say_no_cache(KEEPS_NONE)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        use_cache = use_cache and self.model.can_cache_kv and recompute is None
        places = _places(input_ids, attention_mask, past, given)
        if attention_mask is not None and not embed:
            # an id that stands for padding need not be one of the vocabulary
            seen = attention_mask[:, -input_ids.shape[1] :]
            input_ids = input_ids.masked_fill(seen == 0, 0)
        cached = {}
        if past:
            cached["cache"] = cache_of([layer.kept for layer in layers], past)
            cached["cache_age"] = input_ids.shape[1]
        whole = self.model.to_mixture is not None or self.model.sigsoftmax_logits
        with (
            recompute() if recompute is not None else nullcontext(),
            logits_kept(self.model) if output_attentions else nullcontext(),
        ):
            out, inter = self.model(
                input_ids,
                return_intermediates=whole,
                return_embeddings_and_intermediates=not whole,
                **cached,
                **embed,
                **places,
            )
        logits = slice_logits_to_keep(out, logits_to_keep)
        if not whole:
            logits = self.model.to_logits(logits)
        loss = None
        if labels is not None:
            of_loss = {name: given[name] for name in OF_THE_LOSS if name in given}
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **of_loss
            )
        if use_cache:
            cache = keep(cache, kept_by(inter), len(input_ids), past + input_ids.shape[1])
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            cache=cache if use_cache else None,
            hidden_states=_hidden_states(inter, input_ids) if output_hidden_states else None,
            attentions=_attentions(inter) if output_attentions else None,
        )

    def _embedded(self, embeds: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Ids that mean nothing, and keywords by which the embeddings stand for them."""
        if self.model.ff_deep_embed is not None:
            raise FlagError(
                "inputs_embeds",
                "inputs_embeds does not go together with ff_deep_embed, which reads token ids: "
                "give input_ids",
            )
        normed = F.normalize(embeds, dim=-1) if self.model.l2norm_embed else embeds
        ids = torch.zeros(embeds.shape[:2], dtype=torch.int64, device=embeds.device)
        return ids, {"transform_token_embeds": lambda _: normed}

    # -- generation ------------------------------------------------------------------------------

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Without a cache where none can be kept, or where the text passes a table of places."""
        implementation = generation_config.cache_implementation
        if implementation not in (None, "dynamic"):
            raise FlagError(
                "cache_implementation",
                f"cache_implementation={implementation!r} is not taken: the cache of an xcope model"
                " grows with the text; drop it, or say 'dynamic'",
            )
        limit, longest = self.model.max_table_len, generation_config.max_length - 1
        reason = None
        if not self.model.can_cache_kv:
            reason = KEEPS_NONE
        elif limit is not None and longest > limit:
            reason = (
                f"the text may reach {longest + 1} tokens, and learned absolute positions end at "
                f"max_seq_len={limit}: a window slides over it"
            )
        if reason is not None and generation_config.use_cache:
            if model_kwargs.get("inputs_embeds") is not None or model_kwargs.get("cache"):
                raise FlagError(
                    "use_cache",
                    f"generate() from inputs_embeds or a cache needs a cache, but {reason}: give "
                    "input_ids alone, or ask for fewer tokens",
                )
            _say_no_cache(reason)
            generation_config.use_cache = False
        return super()._prepare_cache_for_generation(
            generation_config, model_kwargs, *args, **kwargs
        )

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")  # type: ignore[untyped-decorator]
    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As transformers'; a text that is too long for a table of places is seen by its end."""
        # padding of rows, those that have ended among them, need not be of the vocabulary
        input_ids = input_ids.masked_fill(input_ids >= self.config.vocab_size, 0)
        limit = self.model.max_table_len
        if limit is not None and not kwargs.get("use_cache") and inputs_embeds is None:
            input_ids = input_ids[:, -limit:]
            attention_mask = None if attention_mask is None else attention_mask[:, -limit:]
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            cache=cache,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        return inputs

    # -- embeddings ------------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the tokens."""
        embedding: nn.Module = self.model.token_emb.emb
        return embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Exchange the embedding of the tokens."""
        self.model.token_emb.emb = value
        self.model.num_tokens = value.num_embeddings

    def get_output_embeddings(self) -> nn.Module | None:
        """The output layer; None where it is the embedding of the tokens itself."""
        return self.model.to_logits if isinstance(self.model.to_logits, nn.Module) else None

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Exchange the output layer."""
        self.model.to_logits = new_embeddings

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, *args: Any, **kw: Any
    ) -> Any:
        """As transformers'.

        Raises:
            FlagError: ``ff_deep_embed``, which has further embeddings of tokens.
        """
        if self.model.ff_deep_embed is not None:
            raise FlagError(
                "ff_deep_embed",
                "ff_deep_embed has embeddings of tokens in each layer, which cannot be resized: "
                "build the model with the vocabulary that it needs",
            )
        return super().resize_token_embeddings(new_num_tokens, *args, **kw)

    # -- training, saving, loading ---------------------------------------------------------------

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable[..., Any] = torch.utils.checkpoint.checkpoint,
        every_n_layers: int = 1,
    ) -> None:
        """Let the layers' attention and feed-forward be computed again in the backward pass.

        Raises:
            FlagError: ``use_reentrant=True``.
        """
        if getattr(gradient_checkpointing_func, "keywords", {}).get("use_reentrant"):
            raise FlagError(
                "use_reentrant",
                "gradient_checkpointing_kwargs={'use_reentrant': True} is not taken: layers give "
                "each other more than one tensor; drop it, or say False",
            )
        self.gradient_checkpointing = enable
        self._recompute = (
            partial(recomputed, self.model, gradient_checkpointing_func, every_n_layers)
            if enable
            else None
        )

    def _init_weights(self, module: nn.Module) -> None:
        """Numbers that follow from the options; the weights have been drawn by the layers."""
        if isinstance(module, WithConstants):
            module.refill_constants()

    def _initialize_missing_keys(self, is_quantized: bool) -> None:
        """After loading: what the files lacked, as a fresh model has it."""
        super()._initialize_missing_keys(is_quantized)
        for module in self.modules():  # a narrower dtype was asked for, but not for these
            self._init_weights(module)
        held = dict(self.named_parameters()) | dict(self.named_buffers())
        missing = {
            name: tensor
            for name, tensor in held.items()
            if not getattr(tensor, "_is_hf_initialized", False)
            and not _is_constant(self, name)
            and not tensor.is_meta
        }
        if missing:
            with torch.device("cpu"):
                fresh = type(self)(self.config).to(self.dtype)
            wanted = dict(fresh.named_parameters()) | dict(fresh.named_buffers())
            with torch.no_grad():
                for name, tensor in missing.items():
                    tensor.copy_(wanted[name])

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As transformers', with the file by which ``trust_remote_code=True`` finds this class."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            files.write_text(Path(save_directory) / f"{CODE}.py", IMPORTS)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModelForCausalLM") -> None:
        """Nothing: `save_pretrained` writes a file that imports this class, not a copy of it."""


def _places(
    ids: Tensor, attention_mask: Tensor | None, past: int, given: dict[str, Any]
) -> dict[str, Any]:
    """Where the tokens of a call stand, as keywords of `TransformerWrapper.forward`.

    Raises:
        FlagError: a mask or places that do not fit.
    """
    rows, n = ids.shape
    mask = None if attention_mask is None else _checked_mask(attention_mask, rows, past + n)
    if mask is not None and not torch.compiler.is_compiling() and bool(mask.all()):
        mask = None
    if "cu_seq_lens_q" in given:
        return {"cu_seqlens": given["cu_seq_lens_q"]}
    if "position_ids" in given:
        return _given_places(given["position_ids"], ids, mask, past)
    return {} if mask is None else _places_by_mask(mask, past)


def _places_by_mask(mask: Tensor, past: int) -> dict[str, Any]:
    """The same, where ``mask``, (b m) bool, says what is no padding."""
    start = (mask.cumsum(-1) == 0).sum(-1)
    before, after = {"seq_start_pos": start}, {"mask": mask}
    if torch.compiler.is_compiling():  # values are not looked at
        return before if past else before | after
    ends = ~mask[:, -1] & mask.any(-1)
    runs = mask[:, 0].int() + (mask[:, 1:] & ~mask[:, :-1]).sum(-1)
    if bool((runs > 1).any()) or (past and bool(ends.any())):
        raise FlagError(
            "attention_mask",
            "attention_mask has 0 between the tokens of a row: pad on one side, and on the left "
            "to generate (tokenizer.padding_side = 'left')",
        )
    return (before if bool(start.any()) else {}) | (after if bool(ends.any()) else {})


def _checked_mask(mask: Tensor, rows: int, total: int) -> Tensor:
    if mask.ndim != 2 or mask.shape != (rows, total):
        raise FlagError(
            "attention_mask",
            f"attention_mask {tuple(mask.shape)} does not fit: it must be ({rows} {total}), 0 where"
            " a token means nothing, for all tokens and those in the cache",
        )
    return mask != 0


def _given_places(pos: Tensor, ids: Tensor, mask: Tensor | None, past: int) -> dict[str, Any]:
    """Places that the caller chose; what they say anyway is left to who counts the tokens."""
    n = ids.shape[1]
    if pos.shape[-1] != n or pos.ndim > 2:
        raise FlagError(
            "position_ids",
            f"position_ids {tuple(pos.shape)} are not allowed with {n} new tokens: ({n}) or "
            f"({len(ids)} {n})",
        )
    every = torch.ones(len(ids), past + n, dtype=torch.bool, device=ids.device)
    seen = every if mask is None else mask
    usual = (seen.cumsum(-1) - 1).clamp(min=0)[:, -n:]
    if bool(((pos == usual) | ~seen[:, -n:]).all()):
        return {} if mask is None else _places_by_mask(mask, past)
    if past:
        raise FlagError(
            "position_ids",
            "position_ids beside a cache must go on from it: the places of its tokens are not kept",
        )
    begins = (pos == 0).expand(len(ids), n)
    goes_on = pos.diff(dim=-1) == 1
    if len(ids) == 1 and mask is None and bool((begins[:, 1:] | goes_on).all()) and begins[0, 0]:
        edges = begins[0].nonzero()[:, 0]
        return {"cu_seqlens": F.pad(edges, (0, 1), value=n)}
    return {"pos": pos} | ({} if mask is None else {"mask": mask})


def _checked(given: dict[str, Any]) -> dict[str, Any]:
    """The keywords that mean something, without those that are None.

    Raises:
        FlagError: an unknown one.
    """
    for name, value in given.items():
        if name not in TAKEN and value is not None:
            raise FlagError(
                name,
                f"XCopeForCausalLM takes no {name!r}; beside its arguments: {listing(TAKEN)}"
                f"{did_you_mean(name, TAKEN)}",
            )
    if given.get("is_causal") is False:
        raise FlagError("is_causal", "is_causal=False is not taken: an xcope model is a decoder")
    return {name: value for name, value in given.items() if value is not None}


def _hidden_states(inter: Any, ids: Tensor) -> tuple[Tensor, ...]:
    """Embeddings, and what each block gives; the last one after the final norm. (b n dim) each."""
    rows, n = ids.shape
    found = (inter.hiddens[0], *inter.block_hiddens)
    # memory tokens stand before the tokens; residual streams are rows, and summed at the end
    return tuple(t[:, -n:].reshape(rows, -1, n, t.shape[-1]).sum(1) for t in found)


def _attentions(inter: Any) -> tuple[Tensor, ...]:
    return tuple(layer.post_softmax_attn for layer in inter.attn_intermediates)


def _keep_at_hand(modules: Iterable[nn.Module]) -> None:
    """Load weights that accelerate has put aside, and let them stay."""
    for module in modules:
        for inner in module.modules():
            hook = getattr(inner, "_hf_hook", None)
            if hook is not None:
                hook.pre_forward(inner)
                remove_hook_from_module(inner)


def _is_constant(model: nn.Module, name: str) -> bool:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    return isinstance(module, WithConstants) and leaf in module.constants


def _say_no_cache(reason: str) -> None:
    log.warning_once(f"no cache is kept: {reason}; each new token computes the whole text again")


def register(auto: ModuleType) -> None:
    """Put the class among those of ``transformers.AutoModelForCausalLM``."""
    auto.AutoModelForCausalLM.register(XCopeConfig, XCopeForCausalLM, exist_ok=True)
