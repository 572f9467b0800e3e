"""For every keyword that x-transformers takes: values that change the result, and company."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

DIM, HEADS, DIM_HEAD, TOKENS, LENGTH, CONTEXT = 32, 4, 8, 24, 32, 5


@dataclass(frozen=True)
class Case:
    """One value of a keyword.

    Args:
        flags: of the decoder, the keyword among them.
        wrapper: of the wrapper.
        call: further arguments of every call.
        changes: whether the value changes what x-transformers gives.
        refused: whether it is refused when the decoder or the wrapper is built.
        refused_under: the schemes under which it is.
        oracle: whether x-transformers can do it at all.
        at_random: whether even evaluation draws random numbers.
        padded: whether rows may be padded on the left; otherwise that is refused.
        generates: whether `AutoregressiveWrapper` takes the model.
        beside: whether rows of unlike lengths are tried here: not with tokens before all of them.
    """

    flags: dict[str, Any] = field(default_factory=dict)
    wrapper: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    changes: bool = True
    refused: bool = False
    refused_under: frozenset[str] = frozenset()
    oracle: bool = True
    at_random: bool = False
    padded: bool = True
    generates: bool = True
    beside: bool = True


def on(**flags: Any) -> Case:
    """Flags of the decoder that act as in x-transformers."""
    return Case(flags)


def without_effect(**flags: Any) -> Case:
    """Flags that change how something is computed, gradients or first weights, but no logits."""
    return Case(flags, changes=False)


def refused(**flags: Any) -> Case:
    """Flags that are refused."""
    return Case(flags, refused=True)


def prefixed(prefix: str, case: Case, **beside: Any) -> Case:
    """The case of a part's keyword as one of the decoder's."""
    flags = {prefix + flag: value for flag, value in case.flags.items()}
    return replace(case, flags=beside | flags)


class Gru(nn.Module):
    """A recurrent module beside attention: (b n dim) → (b n dim), and its state."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(DIM, DIM, batch_first=True)

    def forward(self, x, state=None, mask=None):
        return self.gru(x if mask is None else x * mask[..., None], state)


class Loud(nn.Module):
    """An embedding of tokens that is none of x-transformers'."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(TOKENS, DIM)

    def forward(self, x):
        return 2 * self.emb(x)


def squared(logits):
    """An attention function that is no softmax."""
    weights = logits.clamp(min=-2) + 2
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-6)


ADAPTIVE = {"use_adaptive_layernorm": True}
CROSS = {"cross_attend": True}
STREAMS = {"num_residual_streams": 2}
GATED = {"gated_multi_residual": True, "residual_fn_kwargs": {"read_gate_rank": 4}, **STREAMS}
DIFFERENT = {"qkv_receive_diff_residuals": True}
ONE_INPUT = frozenset({"forgetting"})  # its gates are made from the layer's input

LAYERS = {
    "dim": [on(dim=48)],
    "depth": [on(depth=3)],
    "heads": [on(heads=2)],
    "cross_attend": [on(**CROSS)],
    "only_cross": [refused(only_cross=True, **CROSS)],
    "only_attn": [on(only_attn=True)],
    "use_scalenorm": [on(use_scalenorm=True)],
    "use_rmsnorm": [on(use_rmsnorm=True)],
    "use_dynamic_tanh": [on(use_dynamic_tanh=True)],
    "use_derf": [on(use_derf=True)],
    "dynamic_tanh_init_alpha": [on(dynamic_tanh_init_alpha=0.5, use_dynamic_tanh=True)],
    "use_simple_rmsnorm": [on(use_simple_rmsnorm=True)],
    "use_adaptive_layernorm": [on(**ADAPTIVE)],
    "use_adaptive_rmsnorm": [on(use_adaptive_rmsnorm=True)],
    "use_adaptive_layerscale": [
        on(use_adaptive_layerscale=True),
        on(use_adaptive_layerscale=True, **ADAPTIVE),
    ],
    "norm_add_unit_offset": [on(norm_add_unit_offset=False)],
    "dim_condition": [on(dim_condition=8, **ADAPTIVE)],
    "adaptive_condition_mlp": [on(adaptive_condition_mlp=True, **ADAPTIVE)],
    "adaptive_condition_mlp_expansion": [
        on(adaptive_condition_mlp_expansion=2, adaptive_condition_mlp=True, **ADAPTIVE)
    ],
    "alibi_pos_bias": [on(alibi_pos_bias=True)],
    "alibi_num_heads": [on(alibi_num_heads=2, alibi_pos_bias=True)],
    "rel_pos_bias": [on(rel_pos_bias=True)],
    "rel_pos_num_buckets": [on(rel_pos_num_buckets=4, rel_pos_bias=True)],
    "rel_pos_max_distance": [on(rel_pos_max_distance=5, rel_pos_num_buckets=4, rel_pos_bias=True)],
    "dynamic_pos_bias": [on(dynamic_pos_bias=True)],
    "dynamic_pos_bias_log_distance": [
        on(dynamic_pos_bias_log_distance=True, dynamic_pos_bias=True)
    ],
    "dynamic_pos_bias_mlp_depth": [on(dynamic_pos_bias_mlp_depth=3, dynamic_pos_bias=True)],
    "dynamic_pos_bias_norm": [on(dynamic_pos_bias_norm=True, dynamic_pos_bias=True)],
    "rotary_pos_emb": [on(rotary_pos_emb=True)],
    "rotary_emb_dim": [on(rotary_emb_dim=8, rotary_pos_emb=True)],
    "rotary_xpos": [on(rotary_xpos=True)],
    "rotary_interpolation_factor": [on(rotary_interpolation_factor=2.0, rotary_pos_emb=True)],
    "rotary_xpos_scale_base": [on(rotary_xpos_scale_base=16, rotary_xpos=True)],
    "rotary_base_rescale_factor": [on(rotary_base_rescale_factor=4.0, rotary_pos_emb=True)],
    "rotate_num_heads": [
        on(rotate_num_heads=2, rotary_pos_emb=True),
        on(rotate_num_heads=1, rotary_pos_emb=True, attn_num_mem_kv=2),
        on(rotate_num_heads=3, rotary_xpos=True),
        on(rotate_num_heads=2, rotary_pos_emb=True, attn_use_cope=True),
        on(rotate_num_heads=2, rotary_pos_emb=True, alibi_pos_bias=True),
        on(rotate_num_heads=2, rotary_pos_emb=True, attn_softclamp_logits=True),
        on(rotate_num_heads=1, rotary_pos_emb=True, **CROSS),
        refused(rotate_num_heads=2, polar_pos_emb=True),
        refused(rotate_num_heads=2, rotary_pos_emb=True, attn_kv_heads=2),
        refused(rotate_num_heads=5, rotary_pos_emb=True),
    ],
    "polar_pos_emb": [on(polar_pos_emb=True)],
    "polar_bias_uniform_init": [
        Case({"polar_bias_uniform_init": True, "polar_pos_emb": True}, oracle=False)  # crashes
    ],
    "weight_tie_layers": [on(weight_tie_layers=True)],
    "custom_layers": [on(custom_layers=("a", "f", "f", "a"), depth=None)],
    "layers_execute_order": [on(layers_execute_order=(0, 1, 2, 3, 0, 1))],
    "sandwich_coef": [on(sandwich_coef=1)],
    "par_ratio": [on(par_ratio=2)],
    "residual_attn": [on(residual_attn=True)],
    "cross_residual_attn": [on(cross_residual_attn=True, **CROSS)],
    "macaron": [on(macaron=True)],
    "pre_norm": [on(pre_norm=False)],
    "pre_norm_has_final_norm": [on(pre_norm_has_final_norm=False)],
    "pre_and_post_norm": [on(pre_and_post_norm=True)],
    "attn_aggregated_residuals": [
        on(attn_aggregated_residuals=True, attn_aggregated_residual_kwargs={"lora_rank": 8}),
        refused(attn_aggregated_residuals=True),  # its default does not fit this dim
    ],
    "attn_aggregated_residual_kwargs": [
        on(attn_aggregated_residual_kwargs={"lora_rank": 4}, attn_aggregated_residuals=True)
    ],
    "gate_residual": [on(gate_residual=True)],
    "orthog_residual": [on(orthog_residual=True)],
    "mv_split_residual": [on(mv_split_residual=True)],
    "gated_multi_residual": [on(**GATED)],
    "scale_residual": [on(scale_residual=True), on(scale_residual=0.5)],
    "scale_residual_constant": [on(scale_residual_constant=0.5)],
    "depth_scale_residual": [
        without_effect(depth_scale_residual=True),
        on(depth_scale_residual=0.5),
    ],
    "shift_tokens": [
        on(shift_tokens=1),
        on(shift_tokens=(0, 2, 1, 0)),
        on(shift_tokens=1, use_layerscale=True, **STREAMS),
    ],
    "sandwich_norm": [on(sandwich_norm=True)],
    "softclamp_output": [on(softclamp_output=True)],
    "softclamp_output_value": [on(softclamp_output_value=1.0, softclamp_output=True)],
    "zero_init_branch_output": [without_effect(zero_init_branch_output=True)],
    "layer_dropout": [on(layer_dropout=0.5)],
    "cross_attn_tokens_dropout": [on(cross_attn_tokens_dropout=0.5, **CROSS)],
    "disable_abs_pos_emb": [without_effect(disable_abs_pos_emb=True)],
    "use_layerscale": [on(use_layerscale=True)],
    "layerscale_init_value": [without_effect(layerscale_init_value=0.5, use_layerscale=True)],
    "unet_skips": [on(unet_skips=True)],
    "integrate_layers": [replace(on(integrate_layers=True), refused_under=ONE_INPUT)],
    "layer_integrate_use_softmax": [
        replace(
            on(layer_integrate_use_softmax=False, integrate_layers=True), refused_under=ONE_INPUT
        )
    ],
    "num_residual_streams": [on(**STREAMS)],
    "qkv_receive_diff_residuals": [
        replace(on(**DIFFERENT, **STREAMS), refused_under=ONE_INPUT),
        replace(on(**DIFFERENT, **GATED), refused_under=ONE_INPUT),
        refused(**DIFFERENT),
        refused(**DIFFERENT, **STREAMS, attn_num_mem_kv=2),
        refused(**DIFFERENT, **STREAMS, attn_gate_values=True),
        refused(**DIFFERENT, **STREAMS, attn_gate_value_heads=True),
    ],
    "reinject_input": [on(reinject_input=True)],
    "learned_reinject_input_gate": [on(learned_reinject_input_gate=True, reinject_input=True)],
    "add_value_residual": [on(add_value_residual=True)],
    "learned_value_residual_mix": [on(learned_value_residual_mix=False, add_value_residual=True)],
    "rel_pos_kwargs": [
        on(rel_pos_kwargs={"slopes": [0.5, 0.2, 0.1, 0.0]}, alibi_pos_bias=True),
        refused(rel_pos_kwargs={"slopes": [0.5, 0.2, 0.1, 0.0]}, rotary_pos_emb=True),
    ],
    "residual_fn_kwargs": [
        without_effect(residual_fn_kwargs={"init_alpha": 0.5}, mv_split_residual=True),
        on(residual_fn_kwargs={"learned": True}, mv_split_residual=True),
    ],
    "hyper_conn_sinkhorn_iters": [without_effect(hyper_conn_sinkhorn_iters=1, **STREAMS)],
    "verbose": [without_effect(verbose=False)],
}

FOLDED = {"hybrid_module": Gru(), "hybrid_fold_axial_dim": 2}
HYBRID = {"hybrid_module": Gru(), "hybrid_fold_axial_dim": 1}
FORGETS = {"data_dependent_alibi": True}
FORGETS_PER_ROW = {"data_dependent_alibi_per_row": True, **FORGETS}
LATENT = {"use_latent_kv": True, "dim_latent_kv": 16}

# under ``attn_`` and, beside cross-attention, under ``cross_attn_``
ATTENTION = {
    "dim_head": [on(dim_head=16)],
    "flash": [without_effect(flash=True)],
    "pre_talking_heads": [on(pre_talking_heads=True)],
    "post_talking_heads": [on(post_talking_heads=True)],
    "pre_scale_post_talking_heads": [on(pre_scale_post_talking_heads=True)],
    "head_scale": [on(head_scale=True)],
    "sparse_topk": [on(sparse_topk=2)],
    "sparse_topk_straight_through": [
        without_effect(sparse_topk_straight_through=True, sparse_topk=2)
    ],
    "num_mem_kv": [on(num_mem_kv=3), on(num_mem_kv=2, one_kv_head=True)],
    "dropout": [on(dropout=0.3)],
    "sublayer_dropout": [on(sublayer_dropout=0.3)],
    "on_attn": [on(on_attn=True)],
    "gate_value_heads": [on(gate_value_heads=True)],
    "swiglu_values": [on(swiglu_values=True, gate_values=True)],
    "gate_values": [on(gate_values=True)],
    "gate_values_rank": [on(gate_values_rank=4, gate_values=True)],
    "gate_values_headwise": [on(gate_values_headwise=True, gate_values=True)],
    "output_gate": [on(output_gate=True)],
    "output_gate_rank": [on(output_gate_rank=4, output_gate=True)],
    "output_gate_headwise": [on(output_gate_headwise=True, output_gate=True)],
    "low_rank_silu_gates": [on(low_rank_silu_gates=False, gate_values_rank=4, gate_values=True)],
    "zero_init_output": [without_effect(zero_init_output=True)],
    "hard": [on(hard=True)],
    "max_attend_past": [on(max_attend_past=2), on(max_attend_past=2, num_mem_kv=2)],
    "qk_norm": [on(qk_norm=True)],
    "qk_norm_groups": [on(qk_norm_groups=2, qk_norm=True)],
    "qk_norm_scale": [on(qk_norm_scale=3, qk_norm=True)],
    "qk_norm_dim_scale": [on(qk_norm_dim_scale=True, qk_norm=True)],
    "qk_rmsnorm": [on(qk_rmsnorm=True)],
    "k_rmsnorm": [on(k_rmsnorm=True)],
    "value_rmsnorm": [on(value_rmsnorm=True)],
    "l2_distance": [on(l2_distance=True)],
    "sigmoid": [on(sigmoid=True)],
    "gumbel_softmax": [Case({"gumbel_softmax": True}, at_random=True)],
    "gumbel_softmax_temp": [
        Case(
            {"gumbel_softmax_temp": 2.0, "gumbel_softmax": True, "gumbel_softmax_hard": False},
            at_random=True,
        )
    ],
    "gumbel_softmax_hard": [
        Case({"gumbel_softmax_hard": False, "gumbel_softmax": True}, at_random=True)
    ],
    "cog_signed": [on(cog_signed=True)],
    "custom_attn_fn": [on(custom_attn_fn=squared)],
    "hybrid_module": [
        Case(HYBRID, padded=False),
        refused(hybrid_module=Gru()),  # x-transformers then lacks its norms
    ],
    "hybrid_fold_axial_dim": [Case(FOLDED, padded=False)],
    "hybrid_learned_mix": [Case({"hybrid_learned_mix": True, **FOLDED}, padded=False)],
    "one_kv_head": [on(one_kv_head=True)],
    "kv_heads": [on(kv_heads=2), on(kv_heads=(2, 1))],
    "value_dim_head": [on(value_dim_head=16)],
    "dim_out": [without_effect(dim_out=DIM), refused(dim_out=48)],
    "add_zero_kv": [on(add_zero_kv=True)],
    "head_learned_sink": [on(head_learned_sink=True)],
    "softclamp_logits": [on(softclamp_logits=True)],
    "logit_softclamp_value": [on(logit_softclamp_value=1.0, softclamp_logits=True)],
    "laser": [on(laser=True)],
    "laser_softclamp_value": [on(laser_softclamp_value=2.0, laser=True)],
    "project_out": [on(project_out=False), refused(project_out=False, value_dim_head=16)],
    "use_latent_q": [on(use_latent_q=True, dim_latent_q=16), refused(use_latent_q=True)],
    "dim_latent_q": [on(dim_latent_q=8, use_latent_q=True)],
    "use_latent_kv": [on(**LATENT)],
    "dim_latent_kv": [on(dim_latent_kv=8, use_latent_kv=True)],
    "onnxable": [without_effect(onnxable=True)],
    "attend_sdp_kwargs": [without_effect(attend_sdp_kwargs={"enable_math": True}, flash=True)],
    "use_rel_proj_pos_bias": [on(use_rel_proj_pos_bias=True)],
    "rel_proj_num_distance_basis": [on(rel_proj_num_distance_basis=4, use_rel_proj_pos_bias=True)],
    "rel_proj_max_dist": [on(rel_proj_max_dist=3, use_rel_proj_pos_bias=True)],
}

# where the two differ
SELF_ATTENTION = {
    "dim_context": [refused(dim_context=48)],
    "output_proj_depth": [refused(output_proj_depth=2)],
    "rotate_num_heads": [refused(rotate_num_heads=2)],
    "learned_value_residual_mix": [refused(learned_value_residual_mix=True)],
    "qkv_receive_diff_residuals": [refused(qkv_receive_diff_residuals=True)],
    "inverted_attention": [refused(inverted_attention=True)],
    "hybrid_mask_kwarg": [refused(hybrid_mask_kwarg="mask", **HYBRID)],
    "selective": [Case({"selective": True}, padded=False)],
    "latent_rope_subheads": [on(latent_rope_subheads=1, **LATENT)],
    "orthog_projected_values": [on(orthog_projected_values=True)],
    "orthog_projected_values_per_head": [on(orthog_projected_values_per_head=True)],
    "data_dependent_alibi": [on(**FORGETS)],
    "data_dependent_alibi_per_row": [on(**FORGETS_PER_ROW)],
    "data_dependent_alibi_per_row_dim_head": [
        on(data_dependent_alibi_per_row_dim_head=4, **FORGETS_PER_ROW)
    ],
    "data_dependent_alibi_kwargs": [
        on(data_dependent_alibi_kwargs={"post_log_scale": 0.5}, **FORGETS)
    ],
    "use_cope": [on(use_cope=True)],
    "cope_max_pos": [on(cope_max_pos=4, use_cope=True)],
    "cope_soft_onehot_pos": [
        Case({"cope_soft_onehot_pos": True, "use_cope": True}, oracle=False)  # it crashes there
    ],
    "cope_talking_heads": [on(cope_talking_heads=True, use_cope=True)],
    "flash_pack_seq": [
        Case(
            {"flash_pack_seq": True, "flash": True},
            call={"cu_seqlens": torch.tensor([0, 6])},
            oracle=False,  # it needs a GPU and a package of its own
            generates=False,
        )
    ],
}
CROSS_ATTENTION = {
    "dim": [refused(dim=DIM)],
    "heads": [refused(heads=2)],
    "causal": [refused(causal=True)],
    "dim_context": [on(dim_context=48)],
    "output_proj_depth": [refused(output_proj_depth=2)],
    "rotate_num_heads": [without_effect(rotate_num_heads=2)],  # acts on given context_pos
    "learned_value_residual_mix": [without_effect(learned_value_residual_mix=True)],
    "qkv_receive_diff_residuals": [refused(qkv_receive_diff_residuals=True)],
    "inverted_attention": [refused(inverted_attention=True)],
    "hybrid_mask_kwarg": [
        Case({"hybrid_mask_kwarg": "mask", **HYBRID}, padded=False, changes=False)
    ],
    "selective": [refused(selective=True)],
    "latent_rope_subheads": [on(latent_rope_subheads=1, **LATENT)],
    "orthog_projected_values": [refused(orthog_projected_values=True)],
    "orthog_projected_values_per_head": [refused(orthog_projected_values_per_head=True)],
    "data_dependent_alibi": [refused(**FORGETS)],
    "data_dependent_alibi_per_row": [refused(**FORGETS_PER_ROW)],
    "data_dependent_alibi_per_row_dim_head": [
        refused(data_dependent_alibi_per_row_dim_head=4, **FORGETS_PER_ROW)
    ],
    "data_dependent_alibi_kwargs": [
        refused(data_dependent_alibi_kwargs={"bias_init": 1}, **FORGETS)
    ],
    "use_cope": [refused(use_cope=True)],
    "cope_max_pos": [refused(cope_max_pos=4, use_cope=True)],
    "cope_soft_onehot_pos": [refused(cope_soft_onehot_pos=True, use_cope=True)],
    "cope_talking_heads": [refused(cope_talking_heads=True, use_cope=True)],
    "flash_pack_seq": [refused(flash_pack_seq=True, flash=True)],
}

SOFTCLAMPED = {"glu_softclamp": True, "glu": True}

FEED_FORWARD = {
    "dim_out": [without_effect(dim_out=DIM), refused(dim_out=48)],
    "mult": [on(mult=2), on(mult=(2, 3)), refused(mult="4")],
    "glu": [on(glu=True)],
    "glu_mult_bias": [on(glu_mult_bias=True, glu=True)],
    "swish": [on(swish=True)],
    "relu_squared": [on(relu_squared=True)],
    "solu": [on(solu=True)],
    "custom_activation": [on(custom_activation=nn.Tanh())],
    "post_act_ln": [on(post_act_ln=True)],
    "dropout": [on(dropout=0.3)],
    "sublayer_dropout": [on(sublayer_dropout=0.3)],
    "no_bias": [on(no_bias=True)],
    "zero_init_output": [without_effect(zero_init_output=True)],
    "output_proj_depth": [refused(output_proj_depth=2)],
    "softclamp_value": [on(softclamp_value=0.5)],
    "glu_softclamp": [on(**SOFTCLAMPED)],
    "glu_gate_softclamp_value": [on(glu_gate_softclamp_value=0.2, **SOFTCLAMPED)],
    "glu_up_softclamp_value": [on(glu_up_softclamp_value=0.2, **SOFTCLAMPED)],
}

DECODER = {
    **LAYERS,
    **{
        f"attn_{keyword}": [prefixed("attn_", case) for case in cases]
        for keyword, cases in (ATTENTION | SELF_ATTENTION).items()
    },
    **{
        f"cross_attn_{keyword}": [prefixed("cross_attn_", case, **CROSS) for case in cases]
        for keyword, cases in (ATTENTION | CROSS_ATTENTION).items()
    },
    **{
        f"ff_{keyword}": [prefixed("ff_", case) for case in cases]
        for keyword, cases in FEED_FORWARD.items()
    },
}
"""Keyword of the decoder → cases."""


def around(changes: bool = True, **wrapper: Any) -> Case:
    """Flags of the wrapper."""
    return Case(wrapper=wrapper, changes=changes)


RECYCLED = {"call": {"recycle_steps": 2}, "generates": False}
LOOPED = {"flags": {"pre_and_post_norm": True}, "generates": False}
MIXTURE = {"mixture_of_softmax": True}
ABSOLUTE = {"use_abs_pos_emb": True}

WRAPPER = {
    "num_tokens": [around(num_tokens=30)],
    "max_seq_len": [around(max_seq_len=16, changes=False)],
    "attn_layers": [],  # every case has one
    "embed_num_tokens": [
        Case(
            wrapper={"embed_num_tokens": {"kind": TOKENS}},
            call={"embed_ids": lambda tokens: {"kind": tokens // 2}},
            generates=False,
        )
    ],
    "emb_dim": [around(emb_dim=16)],
    "max_mem_len": [around(max_mem_len=4, changes=False)],
    "shift_mem_down": [around(shift_mem_down=1, changes=False)],
    "emb_dropout": [around(emb_dropout=0.3)],
    "post_emb_norm": [around(post_emb_norm=True)],
    "num_memory_tokens": [Case(wrapper={"num_memory_tokens": 2}, beside=False)],
    "memory_tokens_interspersed_every": [
        Case(wrapper={"memory_tokens_interspersed_every": 3, "num_memory_tokens": 2}, beside=False)
    ],
    "tie_embedding": [around(tie_embedding=True)],
    "tie_embedding_scale": [around(tie_embedding_scale=0.5, tie_embedding=True)],
    "logits_dim": [Case(wrapper={"logits_dim": 30}, generates=False)],
    "return_only_embed": [Case(wrapper={"return_only_embed": True}, generates=False)],
    "num_output_heads": [Case(wrapper={"num_output_heads": 2}, generates=False)],
    "use_abs_pos_emb": [Case({"alibi_pos_bias": True}, ABSOLUTE)],
    "scaled_sinu_pos_emb": [
        Case({"alibi_pos_bias": True}, {"scaled_sinu_pos_emb": True, **ABSOLUTE})
    ],
    "l2norm_embed": [around(l2norm_embed=True)],
    "recycling": [Case(wrapper={"recycling": True}, **RECYCLED)],
    "train_max_recycle_steps": [
        Case(wrapper={"train_max_recycle_steps": 2, "recycling": True}, changes=False, **RECYCLED)
    ],
    "looped": [Case(wrapper={"looped": True}, **LOOPED)],
    "max_looped_steps": [Case(wrapper={"max_looped_steps": 2, "looped": True}, **LOOPED)],
    "emb_frac_gradient": [around(emb_frac_gradient=0.5, changes=False)],
    "attn_z_loss_weight": [Case(wrapper={"attn_z_loss_weight": 1e-3}, refused=True)],
    "average_pool_embed": [Case(wrapper={"average_pool_embed": True}, generates=False)],
    "use_cls_token": [Case(wrapper={"use_cls_token": True}, generates=False, beside=False)],
    "num_cls_tokens": [
        Case(wrapper={"num_cls_tokens": 2, "use_cls_token": True}, generates=False, beside=False)
    ],
    "attn_pool": [around(attn_pool=True, changes=False)],
    "num_pooled_tokens": [around(num_pooled_tokens=2, attn_pool=True, changes=False)],
    "attn_pool_depth": [around(attn_pool_depth=2, attn_pool=True, changes=False)],
    "dim_pooled_tokens": [around(dim_pooled_tokens=16, attn_pool=True, changes=False)],
    "squeeze_out_last_dim": [
        Case(wrapper={"squeeze_out_last_dim": True, "logits_dim": 1}, generates=False)
    ],
    "token_emb": [around(token_emb=Loud())],
    "mixture_of_softmax": [around(**MIXTURE)],
    "mixture_of_softmax_k": [around(mixture_of_softmax_k=2, **MIXTURE)],
    "sigsoftmax_logits": [around(sigsoftmax_logits=True)],
    "ff_deep_embed": [around(ff_deep_embed=True)],
    "to_logits": [around(to_logits=nn.Sequential(nn.Linear(DIM, TOKENS), nn.Tanh()))],
    "add_continuous_pred_head": [around(add_continuous_pred_head=True, changes=False)],
    "input_not_include_cache": [Case(wrapper={"input_not_include_cache": True}, changes=False)],
}
"""Keyword of the wrapper → cases."""
