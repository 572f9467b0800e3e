"""Which schemes are related, as docs/related.md tells it: each of its sentences is checked.

Two schemes are two decoders of one attention layer with the same weights, a few of which are set so
that one becomes the other. Channel 0 of what they read is 1 for all tokens.
"""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from xcope import Decoder
from xcope.modules.seam import self_attentions
from xcope.ops.cope.reference import positions
from xcope.positions import Geometry, parse, scheme
from xcope.positions.alibi import alibi_slopes
from xcope.positions.base import AttendInputs

PAGE = Path(__file__).parents[2] / "docs" / "related.md"
N, DIM, HEADS, D = 11, 24, 2, 8
GEOMETRY = Geometry(dim=DIM, heads=HEADS, dim_head=D, max_seq_len=N)
X = torch.randn(2, N, DIM, generator=torch.Generator().manual_seed(0))
X[..., 0] = 1
SEEN = torch.ones(N, N, dtype=torch.bool).tril()
LOGITS = torch.randn(2, HEADS, N, N, generator=torch.Generator().manual_seed(1))
RELATED = {}


def related(sentence):
    """Decorator: the check of a sentence of the page, which returns two tensors that are one, or
    yields several pairs."""

    def note(check):
        RELATED[sentence] = check
        return check

    return note


def layer(position):
    """A decoder whose one attention layer reads what the decoder reads."""
    torch.manual_seed(0)
    sizes = {"dim": DIM, "depth": 1, "heads": HEADS, "attn_dim_head": D, "ff_mult": 1}
    decoder = Decoder(position=position, **sizes).eval().requires_grad_(False)
    decoder.layers[0][0][0] = decoder.final_norm = nn.Identity()
    return decoder


def read(decoder, **call):
    """(b n dim)."""
    return decoder(X, layers_execute_order=(0,), **call)


def attention(decoder):
    return self_attentions(decoder)[0]


def module(decoder, slot="attend"):
    return getattr(attention(decoder).attend.parts[0], slot)


def same(one, other):
    """What two positions give without a change of weights."""
    return read(layer(one)), read(layer(other))


def like(decoder, other):
    """Give a decoder's layer the projections of another."""
    own, their = attention(decoder), attention(other)
    for project in ("to_q", "to_k", "to_v", "to_out"):
        getattr(own, project).weight.copy_(getattr(their, project).weight)
    return decoder


def noise(*parameters):
    """Draw them."""
    for parameter in parameters:
        parameter.normal_(generator=torch.Generator().manual_seed(2))


# -- counting --------------------------------------------------------------------------------------

FIRST = torch.arange(0, HEADS * D, D)
"""The first channel of each head."""


def with_gates(all_open):
    """CoPE whose gates are all 1 or all 0, and its table noise.

    The first channel of each head is for the gates: 1 in queries, far from 0 in the gates' keys, 0
    in keys and in the table.
    """
    decoder = layer({"name": "cope", "max_pos": 6, "sep_keys": True, "init_std": 1.0})
    own = attention(decoder)
    for weight in (own.to_q.weight, own.to_k.weight):
        weight[FIRST] = 0
    own.to_q.weight[FIRST, 0] = 1
    own.to_k.gate_weight.zero_()
    own.to_k.gate_weight[FIRST, 0] = 200.0 if all_open else -200.0
    module(decoder).pos_emb[..., 0] = 0
    return decoder


@related("CoPE whose gates are all open is `relative`, read one entry later.")
def _():
    cope = with_gates(all_open=True)
    relative = like(layer({"name": "relative", "max_pos": 5}), cope)
    module(relative).pos_emb.copy_(module(cope).pos_emb[1:])
    return read(cope), read(relative)


@related("CoPE whose gates are all closed is no position at all.")
def _():
    cope = with_gates(all_open=False)
    return read(cope), read(like(layer("none"), cope))


@related("CoPE with one position is no position at all.")
def _():
    return same({"name": "cope", "max_pos": 1, "init_std": 1.0}, "none")


def added(options, logits):
    """What a module of the attend slot adds to logits, (b h i j)."""
    built = parse(options).schemes[0].build(GEOMETRY)
    seen, q = SEEN.expand_as(logits), torch.zeros(*logits.shape[:3], D)
    return built(q, logits, seen, AttendInputs(scale=1.0))


DECAY = {"name": "decay", "gate_dim": None}
"""Per-row decay by gates of the logits."""


@related("CoPE's count, of −log σ(q·k) instead of σ(q·k), is the per-row decay.")
def _():
    counted = positions(-LOGITS.sigmoid().log().masked_fill(~SEEN, 0), 10**6)
    each = [LOGITS + added(DECAY, LOGITS), LOGITS - counted]
    return [logits.masked_fill(~SEEN, -torch.inf).softmax(-1) for logits in each]


@related("Contextual rotary whose steps are all 1 is rotary.")
def _():
    return same({"name": "contextual_rotary", "init_step": 1.0}, "rotary")


# -- decays ----------------------------------------------------------------------------------------


def forgetting(gate):
    """Forgetting attention with one gate for each head, whatever the token."""
    decoder = layer("forgetting")
    linear = module(decoder).to_forget_gates[0]
    linear.weight.zero_()
    linear.bias.copy_(gate)
    return decoder


@related("ALiBi is forgetting attention whose gates are the same for all tokens.")
def _():
    slopes = torch.tensor(alibi_slopes(HEADS))
    return read(layer("alibi")), read(forgetting(-torch.log(torch.expm1(slopes))))


@related("Forgetting attention that forgets nothing is no position at all.")
def _():
    return read(forgetting(torch.full((HEADS,), 50.0))), read(layer("none"))


@related("CABLE is forgetting attention with the opposite gate.")
def _():
    cable, forgets = layer("cable"), layer("forgetting")
    theirs, own = (module(one).to_forget_gates[0] for one in (cable, forgets))
    noise(theirs.weight, theirs.bias)
    own.weight.copy_(-theirs.weight)
    own.bias.copy_(-theirs.bias)
    return read(cable), read(forgets)


@related("Forgetting attention is per-row decay whose gates are the same for all queries.")
def _():
    decay, forgets = layer({"name": "decay", "own": True, "gate_dim": 1}), layer("forgetting")
    pairs, gates = (module(one).to_forget_gates[0] for one in (decay, forgets))
    noise(gates.weight)
    gates.bias.zero_()
    pairs.weight[:HEADS] = 0
    pairs.weight[:HEADS, 0] = 1  # of every query
    pairs.weight[HEADS:] = gates.weight
    return read(decay), read(forgets)


@related(
    "Stick-breaking is per-row decay whose gates are 1 − σ(q·k), its weights as they are instead "
    "of their softmax."
)
def _():
    weights = (LOGITS + added({"name": "stick_breaking"}, LOGITS)).exp()
    decayed = (LOGITS + added(DECAY, -LOGITS)).exp()
    earlier = SEEN.tril(-1)  # a token does not see itself there
    return weights * earlier, decayed * earlier


@related("PaTH whose β is 0 is no position at all.")
def _():
    return same({"name": "path", "beta_bias_init": -200.0}, "none")


@related("PaTH that reflects nothing but forgets is forgetting attention.")
def _():
    path = layer({"name": "path", "beta_bias_init": -200.0, "forget": True})
    forgets = layer("forgetting")
    module(path).forgetting.load_state_dict(module(forgets).state_dict())
    return read(path), read(forgets)


@related("Wall that forgets nothing is no position at all.")
def _():
    return same({"name": "wall", "bias_init": 200.0}, "none")


@related("Wall is a decay of q·k where forgetting attention's is one of its exponential.")
def _():
    wall, forgets = layer("wall"), layer("forgetting")
    decays, gates = module(wall).to_decays, module(forgets).to_forget_gates[0]
    noise(gates.weight)
    decays.weight.copy_(gates.weight.repeat_interleave(D, 0))
    decays.bias.copy_(gates.bias.repeat_interleave(D, 0))
    q, k, v = (
        project(X).unflatten(-1, (HEADS, D)).transpose(1, 2)
        for project in (attention(wall).to_q, attention(wall).to_k, attention(wall).to_v)
    )
    sums = module(forgets).remember(X).cumsum(-1)
    s = D**-0.5 * (q @ k.mT) * (sums[..., None] - sums[..., None, :]).exp()
    out = s.masked_fill(~SEEN, -torch.inf).softmax(-1) @ v
    return read(wall), X + attention(wall).to_out(out.transpose(1, 2).flatten(2))


# -- tables by distance ----------------------------------------------------------------------------


def curve_of(decoder):
    """What a bias adds at each distance, (n h)."""
    bias = module(decoder, "bias").dense(torch.tensor([N - 1]), torch.arange(N))
    return bias[:, 0].T.flip(0)


def table_of(curve):
    """T5's bias with a bucket for each distance, and these numbers in them."""
    decoder = layer({"name": "t5", "num_buckets": 2 * N, "max_distance": 2 * N})
    module(decoder, "bias").relative_attention_bias.weight[:N] = curve / D**0.5
    return decoder


@related("ALiBi, KERPLE, Sandwich, BAM and the dynamic bias are T5's table with other numbers.")
def _():
    for name in ("alibi", "kerple", "sandwich", "bam", "dynamic"):
        decoder = layer(name)
        noise(*module(decoder, "bias").parameters())
        yield read(decoder), read(table_of(curve_of(decoder)))


@related("KERPLE with exponent 1 is ALiBi.")
def _():
    kerple = layer({"name": "kerple", "kind": "power"})
    bias = module(kerple, "bias")
    bias.raw_r2.zero_()
    bias.raw_r1.copy_(torch.log(torch.expm1(torch.tensor(alibi_slopes(HEADS)))))
    return read(kerple), read(layer("alibi"))


@related("BAM with exponent 1 is ALiBi.")
def _():
    bam = layer("bam")
    bias = module(bam, "bias")
    bias.theta_beta.fill_(1.0)
    bias.theta_alpha.copy_(torch.tensor(alibi_slopes(HEADS)).log().view_as(bias.theta_alpha))
    return read(bam), read(layer("alibi"))


@related("A table by distance is `relative` asked in one constant channel.")
def _():
    relative = layer({"name": "relative", "max_pos": N, "width": HEADS})
    reader, curve = module(relative), curve_of(layer("alibi"))
    reader.to_r.weight.zero_()
    reader.to_r.bias.copy_(torch.eye(HEADS).flatten())  # each head asks in a channel of its own
    reader.pos_emb.copy_(curve)
    return read(relative), read(layer("alibi"))


@related("A window is a table by distance that is −∞ from its size on.")
def _():
    distance = torch.arange(N)[:, None].expand(N, HEADS)
    table = table_of(torch.where(distance < 4, 0.0, -1e9))
    return read(layer({"name": "window", "size": 4})), read(table)


# -- rotations -------------------------------------------------------------------------------------

SCALED = [
    {"name": "rotary_linear", "factor": 1.0},
    {"name": "rotary_ntk", "factor": 1.0},
    {"name": "rotary_yarn", "factor": 1.0, "trained_len": 4},
    {"name": "rotary_dynamic", "factor": 1.0, "trained_len": N},
    {"name": "rotary_clipped", "clip": 0},
    {"name": "rotary_llama3", "factor": 1.0, "original_max_position_embeddings": 4},
    {"name": "rotary_longrope", "factor": 1.0, "original_max_position_embeddings": 4},
]
PLAIN = {"name": "rotary", "dim": "whole", "layout": "half_split", "base": 1e4}


@related("Rotary scaled by 1 is rotary.")
def _():
    for scaled in SCALED:
        yield same(PLAIN | scaled, PLAIN)


@related("Linear interpolation by 2 reads the places 0, 2, 4, … as rotary reads 0, 1, 2, ….")
def _():
    linear = layer({"name": "rotary_linear", "factor": 2.0})
    return read(linear, pos=2 * torch.arange(N)), read(layer("rotary"))


@related("NTK-aware scaling is rotary with a larger base.")
def _():
    larger = {"name": "rotary", "dim": D, "base": 1e4 * 3 ** (D / (D - 2))}
    return same({"name": "rotary_ntk", "dim": D, "factor": 3.0}, larger)


@related("Dynamic NTK is plain rotary up to the training length.")
def _():
    return same(PLAIN | {"name": "rotary_dynamic", "factor": 4.0, "trained_len": N}, PLAIN)


@related("Proportional rotary lies between rotary and none.")
def _():
    proportional = PLAIN | {"name": "rotary_proportional"}
    yield same(proportional | {"partial_rotary_factor": 1.0}, PLAIN)
    yield same(proportional | {"partial_rotary_factor": 0.0}, "none")


@related("xPos that decays over endless lengths is rotary.")
def _():
    return same({"name": "xpos", "scale_base": 1e9}, "rotary")


@related("Rotations and tables by distance do not see where a text begins.")
def _():
    for name in ("rotary", "pope", "alibi", "t5", "kerple", "sandwich", "dynamic"):
        yield read(layer(name), pos=torch.arange(N) + 100), read(layer(name))


# -- input -----------------------------------------------------------------------------------------


@related("Sinusoidal positions are a learned table that begins with sines and is not learned.")
def _():
    sines, table = (scheme(name).build(GEOMETRY) for name in ("sinusoidal", "absolute"))
    tokens = torch.zeros(1, N, dtype=torch.long)
    table.emb.weight.data = sines(tokens).detach() * DIM**0.5
    return table(tokens), sines(tokens)


# -- beside any scheme -----------------------------------------------------------------------------


@related("A window as long as the text is none.")
def _():
    return same([PLAIN, {"name": "window", "size": N}], PLAIN)


@related("Chunks are packed documents.")
def _():
    chunks = layer([PLAIN, {"name": "window", "size": 4, "chunked": True}])
    edges = torch.tensor([0, 4, 8, N])
    plain = layer(PLAIN)
    rows = [plain(row, layers_execute_order=(0,), cu_seqlens=edges) for row in X[:, None]]
    return read(chunks), torch.cat(rows)


@related("A sink that is far below all logits takes nothing.")
def _():
    return same(["alibi", {"name": "sink", "init": -100.0}], "alibi")


@related("A sink is a key whose value is 0 and whose logit is given.")
def _():
    sink, plain = layer({"name": "sink", "init": 0.5}), layer("none")
    q, k, v = (
        project(X).unflatten(-1, (HEADS, D)).transpose(1, 2)
        for project in (attention(plain).to_q, attention(plain).to_k, attention(plain).to_v)
    )
    s = (D**-0.5 * q @ k.mT).masked_fill(~SEEN, -torch.inf)
    with_it = torch.cat((s, torch.full_like(s[..., :1], 0.5)), dim=-1).softmax(-1)
    out = with_it[..., :-1] @ v
    return read(sink), X + attention(plain).to_out(out.transpose(1, 2).flatten(2))


@related("Length-scaled logits are unscaled up to the training length.")
def _():
    scaled = {"name": "length_scale"}
    yield same([PLAIN, scaled | {"kind": "log_n", "trained_len": N}], PLAIN)
    yield same([PLAIN, scaled | {"kind": "llama4", "every": N + 1}], PLAIN)
    yield same([PLAIN, scaled | {"kind": "ministral3", "every": N}], PLAIN)


@related("Random places, drawn from as many as there are tokens, are the usual ones.")
def _():
    return read(layer(PLAIN | {"random_max": N}).train()), read(layer(PLAIN))


# -- presets ---------------------------------------------------------------------------------------


@related("MPT's and BLOOM's positions are ALiBi, T5's is `t5`.")
def _():
    for name, is_it in (("mpt", "alibi"), ("bloom", "alibi"), ("t5", "t5")):
        yield same({"preset": name}, is_it)


@related("Mistral's window, wide enough, leaves LLaMA's rotary.")
def _():
    return same({"preset": "mistral", "window": N}, PLAIN)


# -- the page --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sentence", RELATED)
@torch.no_grad()
def test_what_the_page_says_holds(sentence):
    found = RELATED[sentence]()
    for one, other in [found] if isinstance(found, tuple | list) else found:
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_the_page_says_what_is_tested():
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert re.findall(r"- \*\*(.+?)\*\*", text) == list(RELATED)
