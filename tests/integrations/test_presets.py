"""Each preset gives the logits of transformers' model with the same weights.

A tiny random model loses its own positions, its attention becomes that of a `Decoder` with the
preset, and its logits stay what they were.
"""

import importlib
import os
from dataclasses import dataclass, field

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface

from xcope import AutoregressiveWrapper, Decoder, TransformerWrapper
from xcope.integrations.transformers import set_position
from xcope.modules.seam import self_attentions
from xcope.positions import presets

HIDDEN, HEADS, HEAD, TOKENS = 32, 4, 16, 40
LENGTHS = (24, 17, 9)
"""Of texts; windows, chunks and training lengths are shorter."""
TEXTS = torch.randint(3, TOKENS, (3, 24), generator=torch.Generator().manual_seed(0))
SIZES = {
    "vocab_size": TOKENS,
    "hidden_size": HIDDEN,
    "intermediate_size": 24,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": HEAD,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass
class Case:
    """A model of transformers.

    Args:
        folder: of ``transformers.models``.
        prefix: of the names of its classes.
        sizes: of the preset, small ones.
        config: preset → what its config says.
        without: what its config says of a model without positions.
        patched: names of its file → what they are in a model without positions.
        depth: number of layers.
        names: of its config, model and attention, after the prefix.
    """

    folder: str
    prefix: str
    sizes: dict
    config: object
    without: dict = field(default_factory=dict)
    patched: dict = field(default_factory=lambda: {"apply_rotary_pos_emb": lambda q, k, *_: (q, k)})
    depth: int = 3
    names: tuple = ("Config", "ForCausalLM", "Attention")
    common: dict = field(default_factory=lambda: SIZES)

    @property
    def file(self):
        return importlib.import_module(f"transformers.models.{self.folder}.modeling_{self.folder}")

    def kind(self, index):
        if index:
            return getattr(self.file, self.prefix + self.names[index])
        configs = f"transformers.models.{self.folder}.configuration_{self.folder}"
        return getattr(importlib.import_module(configs), self.prefix + self.names[0])

    def model(self, preset, **changed):
        """The model with random weights, the same at each call."""
        arguments = self.common | {"num_hidden_layers": self.depth} | self.config(preset) | changed
        model = self.kind(1)(self.kind(0)(**arguments)).eval().requires_grad_(False)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm = name.endswith("norm.weight") or parameter.ndim == 1
            parameter.copy_(1 + 0.3 * noise if norm else 0.4 * noise)
        return model


def rope(base, kind="default", **more):
    return {"rope_theta": base, "rope_type": kind, **more}


def kinds(every, most, last="full_attention", depth=3):
    """transformers' names of what the layers are."""
    return [last if (layer + 1) % every == 0 else most for layer in range(depth)]


def one(x, *_, **__):
    """In place of a function that turns one tensor."""
    return x


FULL = {"layer_types": ["full_attention"] * 3}
SLIDING = "sliding_attention"
CASES = {
    "smollm3": Case(
        "smollm3",
        "SmolLM3",
        {"every": 3},
        lambda p: {
            "rope_parameters": rope(p.base),
            "no_rope_layers": [1, 1, 0, 1] if p.every == 3 else [1, 0, 1, 0],
        },
        depth=4,
    ),
    "llama3": Case(
        "llama",
        "Llama",
        {"trained_len": 32, "base": 1e4},
        lambda p: {
            "rope_parameters": rope(
                p.base,
                "llama3",
                factor=p.factor,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=p.trained_len,
            )
        },
    ),
    "llama4": Case(
        "llama4",
        "Llama4",
        {"chunk": 6, "floor": 4, "every": 2, "trained_len": 32, "base": 1e4},
        lambda p: {
            "rope_parameters": rope(
                p.base,
                "llama3",
                factor=p.factor,
                low_freq_factor=1.0,
                high_freq_factor=1.0,
                original_max_position_embeddings=p.trained_len,
            ),
            "attention_chunk_size": p.chunk,
            "floor_scale": p.floor,
            "no_rope_layer_interval": p.every,
            "num_local_experts": 2,
            "intermediate_size_mlp": 24,
        },
        {"attn_temperature_tuning": False},
        {"apply_rotary_emb": lambda q, k, _: (q, k)},
        names=("TextConfig", "ForCausalLM", "TextAttention"),
    ),
    "gemma3": Case(
        "gemma3",
        "Gemma3",
        {"window": 5, "every": 2, "base": 1e5},
        lambda p: {
            "rope_parameters": {
                SLIDING: rope(p.local_base),
                "full_attention": rope(p.base, "linear", factor=p.factor),
            },
            "sliding_window": p.window,
            "layer_types": kinds(p.every, SLIDING),
            "query_pre_attn_scalar": HEAD,
        },
        names=("TextConfig", "ForCausalLM", "Attention"),
    ),
    "gemma4": Case(
        "gemma4",
        "Gemma4",
        {"window": 5, "every": 3},
        lambda p: {
            "rope_parameters": {
                SLIDING: rope(p.local_base),
                "full_attention": rope(p.base, "proportional", partial_rotary_factor=p.share),
            },
            "sliding_window": p.window,
            "layer_types": kinds(p.every, SLIDING),
            "global_head_dim": HEAD,
            "vocab_size_per_layer_input": TOKENS,
            "hidden_size_per_layer_input": 4,
        },
        patched={"apply_rotary_pos_emb": one},
        names=("TextConfig", "ForCausalLM", "TextAttention"),
    ),
    "command_a": Case(
        "cohere2",
        "Cohere2",
        {"window": 5, "every": 2},
        lambda p: {
            "rope_parameters": rope(p.base),
            "sliding_window": p.window,
            "layer_types": kinds(p.every, SLIDING),
            "hidden_size": HEADS * HEAD,
        },
    ),
    "gpt_oss": Case(
        "gpt_oss",
        "GptOss",
        {"window": 5, "trained_len": 32, "every": 2},
        lambda p: {
            "rope_parameters": rope(
                p.base,
                "yarn",
                factor=p.factor,
                beta_fast=32.0,
                beta_slow=1.0,
                truncate=False,
                original_max_position_embeddings=p.trained_len,
            ),
            "sliding_window": p.window,
            "layer_types": kinds(p.every, SLIDING),
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
        },
    ),
    "qwen3": Case("qwen3", "Qwen3", {}, lambda p: {"rope_parameters": rope(p.base)}, depth=2),
    "mistral": Case(
        "mistral",
        "Mistral",
        {"window": 5},
        lambda p: {"rope_parameters": rope(p.base), "sliding_window": p.window},
        depth=2,
    ),
    "ministral3": Case(
        "ministral3",
        "Ministral3",
        {"trained_len": 8, "base": 1e4},
        lambda p: {
            "rope_parameters": rope(
                p.base,
                "yarn",
                factor=p.factor,
                beta_fast=32.0,
                beta_slow=1.0,
                mscale=1.0,
                mscale_all_dim=1.0,
                llama_4_scaling_beta=0.1,
                original_max_position_embeddings=p.trained_len,
            )
        },
        patched={
            "apply_rotary_pos_emb": lambda q, k, *_: (q, k),
            "get_llama_4_attn_scale": lambda *_: torch.ones(1),
        },
        depth=2,
    ),
    "olmo3": Case(
        "olmo3",
        "Olmo3",
        {"window": 5, "every": 2, "trained_len": 32, "base": 1e4},
        lambda p: {
            "rope_parameters": {
                SLIDING: rope(p.base),
                "full_attention": rope(
                    p.base,
                    "yarn",
                    factor=p.factor,
                    beta_fast=32.0,
                    beta_slow=1.0,
                    original_max_position_embeddings=p.trained_len,
                ),
            },
            "sliding_window": p.window,
            "layer_types": kinds(p.every, SLIDING),
            "hidden_size": HEADS * HEAD,
        },
    ),
    "inkling": Case(
        "inkling",
        "Inkling",
        {"width": 3, "extent": 9, "window": 5, "every": 2},
        lambda p: {
            "d_rel": p.width,
            "rel_extent": p.extent,
            "sliding_window_size": p.window,
            "layer_types": kinds(p.every, "hybrid_sliding", "hybrid"),
            "swa_num_attention_heads": HEADS,
            "swa_num_key_value_heads": 2,
            "swa_head_dim": HEAD,
            "mlp_layer_types": ["dense"] * 3,
            "logits_mup_width_multiplier": 1.0,
        },
        patched={},
        names=("TextConfig", "ForCausalLM", "Attention"),
    ),
    "phi3": Case(
        "phi3",
        "Phi3",
        {
            "trained_len": 12,
            "short_factor": tuple(1 + 0.1 * pair for pair in range(8)),
            "long_factor": tuple(1.5**pair for pair in range(8)),
        },
        lambda p: {
            "rope_parameters": rope(
                p.base,
                "longrope",
                short_factor=[*p.short_factor],
                long_factor=[*p.long_factor],
                original_max_position_embeddings=p.trained_len,
            ),
            "original_max_position_embeddings": p.trained_len,
            "max_position_embeddings": int(p.factor * p.trained_len),
            "hidden_size": HEADS * HEAD,
        },
        depth=2,
    ),
    "mpt": Case(
        "mpt",
        "Mpt",
        {},
        lambda _: {"d_model": 48, "n_heads": 6, "n_layers": 2, "vocab_size": TOKENS},
        patched={},
        depth=2,
        common={},
    ),
    "bloom": Case(
        "bloom",
        "Bloom",
        {},
        lambda _: {"hidden_size": 48, "n_head": 6, "n_layer": 2, "vocab_size": TOKENS},
        patched={},
        depth=2,
        common={},
    ),
    "t5": Case(
        "t5",
        "T5",
        {"num_buckets": 8, "max_distance": 16},
        lambda p: {
            "vocab_size": TOKENS,
            "d_model": HIDDEN,
            "d_kv": HEAD,
            "d_ff": 24,
            "num_layers": 1,
            "num_decoder_layers": 2,
            "num_heads": HEADS,
            "relative_attention_num_buckets": p.num_buckets,
            "relative_attention_max_distance": p.max_distance,
        },
        patched={},
        depth=2,
        names=("Config", "ForConditionalGeneration", "Attention"),
        common={},
    ),
    "pythia": Case(
        "gpt_neox",
        "GPTNeoX",
        {},
        lambda p: {
            "rope_parameters": rope(p.base, partial_rotary_factor=p.share),
            "hidden_size": HEADS * HEAD,
        },
        depth=2,
    ),
    "gptj": Case(
        "gptj",
        "GPTJ",
        {},
        lambda p: {
            "vocab_size": TOKENS,
            "n_embd": HEADS * HEAD,
            "n_head": HEADS,
            "n_layer": 2,
            "n_inner": 24,
            "n_positions": 32,
            "rotary_dim": int(p.share * HEAD),
        },
        patched={"apply_rotary_pos_emb": one},
        depth=2,
        common={},
    ),
}


def logits(model, texts, mask=None):
    """(b n vocabulary)."""
    given = {"attention_mask": mask, "use_cache": False}
    if model.config.is_encoder_decoder:
        read = torch.ones(len(texts), 3, dtype=torch.long)
        return model(input_ids=read, decoder_input_ids=texts, use_cache=False).logits
    return model(input_ids=texts, **given).logits


class Ours:
    """Attention of a model's layers by those of a `Decoder`.

    What the decoder's layers read holds q, k, v and what the model's layer reads, side by side;
    their projections pick the parts.

    Args:
        position: of the decoder.
        attentions: of the model.
    """

    def __init__(self, position, attentions):
        self.position, self.attentions = position, attentions
        self.read, self.start, self.decoder = {}, None, None
        for layer, module in enumerate(attentions):
            module.layer_of_ours, module.ours = layer, self
            module.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module, args, kwargs):
        self.read[module.layer_of_ours] = args[0] if args else kwargs["hidden_states"]

    def __call__(self, module, q, k, v, scale):
        """(b n h d) from (b h n d)."""
        layer, h, d = module.layer_of_ours, q.shape[1], q.shape[3]
        # as in x-transformers, query heads take turns at the key heads
        self.order = torch.arange(h).view(k.shape[1], -1).T.flatten()
        q = q[:, self.order] * (scale * d**0.5)  # our layers divide by √d
        parts = [t.transpose(1, 2).flatten(2) for t in (q, k, v)] + [self.read[layer]]
        x = torch.cat(parts, dim=-1)
        if self.decoder is None:
            self.decoder = self.built(h, d, [part.shape[-1] for part in parts])
        given = {} if self.start is None else {"seq_start_pos": self.start}
        out = self.decoder(x, layers_execute_order=(2 * layer,), **given) - x
        return out[..., : h * d].unflatten(-1, (h, d))[:, :, self.order.argsort()]

    def built(self, heads, dim_head, widths):
        decoder = Decoder(
            dim=sum(widths),
            depth=len(self.attentions),
            heads=heads,
            attn_kv_heads=widths[1] // dim_head,
            attn_dim_head=dim_head,
            position=self.position,
            ff_mult=1,
        ).eval()
        picks = torch.eye(sum(widths)).split(widths)
        decoder.final_norm = nn.Identity()
        for layer, (own, their) in enumerate(
            zip(self_attentions(decoder), self.attentions, strict=True)
        ):
            decoder.layers[2 * layer][0][0] = nn.Identity()
            for project, pick in zip((own.to_q, own.to_k, own.to_v), picks, strict=False):
                project.weight = nn.Parameter(pick)
            own.to_out.weight = nn.Parameter(picks[0].T)
            self.learned(own, their, picks[3])
        return decoder.requires_grad_(False)

    def learned(self, own, their, pick):
        """Give our layer what the model's has learned of positions."""
        if hasattr(their, "relative_attention_bias"):  # T5's, of the first layer for all
            bias = own.attend.parts[0].bias
            own_scale = their.key_value_proj_dim**0.5
            bias.relative_attention_bias.weight = nn.Parameter(
                their.relative_attention_bias.weight / own_scale
            )
        if hasattr(their, "sinks"):
            own.attend.head_attn_sink = nn.Parameter(their.sinks[self.order])
        if hasattr(their, "rel_logits_proj"):
            table = own.attend.parts[0].attend
            table.pos_emb = nn.Parameter(their.rel_logits_proj.proj.T)
            r = their.r_proj.weight.unflatten(0, (own.heads, -1))[self.order].flatten(0, 1)
            table.to_r.weight = nn.Parameter(r @ pick)
            table.to_r.bias = nn.Parameter(torch.zeros_like(table.to_r.bias))


def attention_by_ours(module, query, key, value, mask, scaling=None, **kwargs):
    if not hasattr(module, "ours"):  # T5's encoder, and what meets it
        eager = importlib.import_module(type(module).__module__).eager_attention_forward
        return eager(module, query, key, value, mask, scaling=scaling, **kwargs)
    return module.ours(module, query, key, value, scaling), None


AttentionInterface.register("ours", attention_by_ours)


def mpt_forward(self, hidden_states, **_):
    heads = [t.unflatten(-1, (self.n_heads, -1)) for t in self.Wqkv(hidden_states).chunk(3, -1)]
    q, k, v = (t.transpose(1, 2) for t in heads)
    return self.out_proj(self.ours(self, q, k, v, self.softmax_scale).flatten(2)), None


def bloom_forward(self, hidden_states, residual, *_, **__):
    q, k, v = self._reshape(self.query_key_value(hidden_states))
    out = self.ours(self, q, k, v, self.inv_norm_factor)
    return residual + self.dense(out.flatten(2)), None


OWN_FORWARD = {"mpt": mpt_forward, "bloom": bloom_forward}
"""Of models that do not take their attention from the interface."""


def by_ours(name, model, position, monkeypatch):
    """Let a decoder with this position be the attention of the model."""
    case = CASES[name]
    attentions = [m for m in model.modules() if isinstance(m, case.kind(2))]
    if name == "t5":
        attentions = [block.layer[0].SelfAttention for block in model.decoder.block]
    if name not in OWN_FORWARD:
        for module in model.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation = "ours"
    for patched, by in case.patched.items():
        monkeypatch.setattr(case.file, patched, by)
    for config in {id(m.config): m.config for m in attentions if hasattr(m, "config")}.values():
        for key, value in case.without.items():
            setattr(config, key, value)
    ours = Ours(position, attentions)
    for module in attentions:
        for key, value in case.without.items():
            setattr(module, key, value)
        if name in OWN_FORWARD:
            module.forward = OWN_FORWARD[name].__get__(module)
    return ours


@pytest.mark.parametrize("name", CASES)
def test_the_logits_are_those_of_transformers(name, monkeypatch):
    case = CASES[name]
    preset = presets()[name](**case.sizes)
    model = case.model(preset)
    alone = [logits(model, TEXTS[[row], :n]) for row, n in enumerate(LENGTHS)]
    ours = by_ours(name, model, {"preset": name, **case.sizes}, monkeypatch)
    ours.start = torch.tensor([24 - n for n in LENGTHS])
    rows = [F.pad(TEXTS[row, :n], (24 - n, 0), value=3) for row, n in enumerate(LENGTHS)]
    mask = (torch.arange(24) >= ours.start[:, None]).long()
    together = logits(model, torch.stack(rows), mask)
    for row, truth in zip(together, alone, strict=True):
        assert truth.std() > 0.1
        torch.testing.assert_close(row[-truth.shape[1] :], truth[0], atol=1e-4, rtol=1e-4)


SHAPES = {("inkling", "width"), ("inkling", "extent"), ("t5", "num_buckets")}
"""Sizes that parameters have."""
EVERY_SIZE = [
    (name, size)
    for name, kind in presets().items()
    for size in kind.options()
    if (name, size) not in SHAPES
]


@pytest.mark.parametrize(("name", "size"), EVERY_SIZE)
def test_every_size_acts(name, size, monkeypatch):
    """So that the test above would have found another one."""
    case = CASES[name]
    preset = presets()[name](**case.sizes)
    value = getattr(preset, size)
    other = value[::-1] if isinstance(value, tuple) else value * 2
    if size in ("every", "window", "chunk"):
        other = value - 1 if value > 2 else value + 1
    model = case.model(preset)
    texts = [TEXTS[:1, :n] for n in LENGTHS]
    truth = [logits(model, text) for text in texts]
    by_ours(name, model, {"preset": name, **case.sizes, size: other}, monkeypatch)
    pairs = zip(texts, truth, strict=True)
    assert any((logits(model, text) - known).abs().max() > 1e-3 for text, known in pairs)


def test_there_is_a_model_for_each_preset():
    assert CASES.keys() == presets().keys()


# -- whole models ----------------------------------------------------------------------------------


def as_ours(model, position):
    """A `TransformerWrapper` with the weights of a model that is built as LLaMA is."""
    layers, text = model.model.layers, model.config
    decoder = Decoder(
        dim=HIDDEN,
        depth=len(layers),
        heads=HEADS,
        attn_kv_heads=text.num_key_value_heads,
        attn_dim_head=HEAD,
        position=position,
        use_rmsnorm=True,
        ff_glu=True,
        ff_swish=True,
        ff_no_bias=True,
        ff_mult=text.intermediate_size / HIDDEN,
    )
    ours = TransformerWrapper(num_tokens=TOKENS, max_seq_len=64, attn_layers=decoder)
    ours.eval().requires_grad_(False)
    # as in x-transformers, query heads take turns at the key heads
    order = torch.arange(HEADS).view(text.num_key_value_heads, -1).T.flatten()
    ours.token_emb.emb.weight.copy_(model.model.embed_tokens.weight)
    ours.to_logits.weight.copy_(model.lm_head.weight)
    decoder.final_norm.g.copy_(model.model.norm.weight - 1)  # x-transformers adds the 1
    blocks = list(decoder.layers)
    for their, attend, feed in zip(layers, blocks[::2], blocks[1::2], strict=True):
        attention, (inner, out) = attend[1], (feed[1].ff[0], feed[1].ff[-1])
        attend[0][0].g.copy_(their.input_layernorm.weight - 1)
        feed[0][0].g.copy_(their.post_attention_layernorm.weight - 1)
        q, o = their.self_attn.q_proj.weight, their.self_attn.o_proj.weight
        attention.to_q.weight.copy_(q.unflatten(0, (HEADS, HEAD))[order].flatten(0, 1))
        attention.to_k.weight.copy_(their.self_attn.k_proj.weight)
        attention.to_v.weight.copy_(their.self_attn.v_proj.weight)
        attention.to_out.weight.copy_(o.unflatten(1, (HEADS, HEAD))[:, order].flatten(1))
        inner.proj.weight.copy_(torch.cat((their.mlp.up_proj.weight, their.mlp.gate_proj.weight)))
        inner.proj.bias.zero_()
        out.weight.copy_(their.mlp.down_proj.weight)
    return ours


@pytest.mark.parametrize("name", ["smollm3", "llama3", "mistral", "ministral3"])
def test_a_whole_model_has_the_logits_of_transformers_and_goes_on_alike(name):
    case = CASES[name]
    # x-transformers' norms add nothing to their divisor
    model = case.model(presets()[name](**case.sizes), rms_norm_eps=1e-12)
    ours = as_ours(model, {"preset": name, **case.sizes})
    starts = torch.tensor([24 - n for n in LENGTHS])
    rows = torch.stack([F.pad(TEXTS[row, :n], (24 - n, 0)) for row, n in enumerate(LENGTHS)])
    together = ours(rows, seq_start_pos=starts)
    for row, n in enumerate(LENGTHS):
        truth = logits(model, TEXTS[[row], :n])[0]
        torch.testing.assert_close(together[row, -n:], truth, atol=1e-4, rtol=1e-4)
    theirs = model.generate(TEXTS[:1], max_new_tokens=8, do_sample=False, eos_token_id=-1)
    own = AutoregressiveWrapper(ours).generate(TEXTS[:1], 8, temperature=0.0)
    assert own.tolist() == theirs[:, 24:].tolist()  # each beside a cache of its own


def test_a_model_of_transformers_takes_a_preset():
    case = CASES["smollm3"]
    truth = logits(case.model(presets()["smollm3"](**case.sizes)), TEXTS)
    turning_everywhere = case.model(presets()["smollm3"](**case.sizes), no_rope_layers=[1] * 4)
    assert (logits(turning_everywhere, TEXTS) - truth).abs().max() > 0.1
    set_position(turning_everywhere, {"preset": "smollm3", **case.sizes})
    torch.testing.assert_close(logits(turning_everywhere, TEXTS), truth, atol=1e-4, rtol=1e-4)
