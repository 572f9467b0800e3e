"""Packed documents: each has the logits and gradients that it has alone, whatever the scheme."""

import pytest
import torch

from benchmarks.schemes.workloads import position
from xcope import Decoder, TransformerWrapper, schemes
from xcope.errors import FlagError
from xcope.positions import Draw

LENGTHS = (7, 0, 1, 12)
EDGES = torch.tensor([0, 7, 7, 8, 20], dtype=torch.int32)
LENGTH_DEPENDENT = ("rotary_dynamic", "rotary_longrope")


def model(its_position, wrapper=None, **flags):
    torch.manual_seed(0)
    sizes = {"dim": 32, "depth": 2, "heads": 2, "attn_dim_head": 16}
    layers = Decoder(**sizes | flags, position=its_position)
    return TransformerWrapper(num_tokens=16, max_seq_len=16, attn_layers=layers, **(wrapper or {}))


def tokens():
    torch.manual_seed(1)
    return torch.randint(16, (1, sum(LENGTHS)))


def shaken(net):
    """With parameters that begin at zero moved, so that every scheme acts."""
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net


def logits_and_gradients(net, logits):
    net.zero_grad()
    (logits * torch.linspace(-1, 1, logits.numel()).view(logits.shape)).sum().backward()
    grads = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    return logits.detach(), grads


def assert_as_alone(net, **keywords):
    x = tokens()
    packed = logits_and_gradients(net, net(x, **(keywords or {"cu_seqlens": EDGES})))
    pieces = [net(piece) for piece in x.split(LENGTHS, dim=1) if piece.numel()]
    alone = logits_and_gradients(net, torch.cat(pieces, dim=1))
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(schemes()).difference(LENGTH_DEPENDENT)))
def test_every_scheme(name):
    assert_as_alone(shaken(model(position(name))))


@pytest.mark.parametrize(
    "several",
    [["rotary", "none"], {"heads": ["cope", "alibi"]}, ["absolute", "cope"]],
    ids=str,
)
def test_splits_and_combinations(several):
    assert_as_alone(shaken(model(several)))


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_keys(kv_heads):
    assert_as_alone(shaken(model("cope", heads=4, attn_kv_heads=kv_heads)))


@pytest.mark.parametrize("name", ["cope", "alibi", "rotary", "forgetting"])
@pytest.mark.parametrize(
    "flag",
    ["attn_softclamp_logits", "residual_attn", "attn_pre_talking_heads", "attn_add_zero_kv"],
)
def test_where_logits_are_materialised(name, flag):
    assert_as_alone(shaken(model(name, **{flag: True})))


def test_every_key_may_be_seen():
    net, x = shaken(model("alibi")), tokens()
    packed = net(x, cu_seqlens=EDGES, causal=False)
    pieces = [net(piece, causal=False) for piece in x.split(LENGTHS, dim=1) if piece.numel()]
    torch.testing.assert_close(packed, torch.cat(pieces, dim=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["cope", "alibi"])
def test_a_mask_beside_documents(name):
    net, x = shaken(model(name)), tokens()
    mask = torch.arange(20) % 5 != 2
    kept = [m for m in mask.split(LENGTHS) if m.numel()]
    pieces = [piece for piece in x.split(LENGTHS, dim=1) if piece.numel()]
    alone = [net(piece, mask=m[None]) for piece, m in zip(pieces, kept, strict=True)]
    packed = net(x, cu_seqlens=EDGES, mask=mask[None])
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("flags", [{}, {"attn_flash_pack_seq": True, "attn_flash": True}], ids=str)
def test_the_spelling_of_x_transformers(flags):
    spelled = {"cu_seqlens_q": EDGES, "cu_seqlens_k": EDGES.clone()}
    spelled |= {f"max_seqlen_{side}": 12 for side in "qk"}
    x = tokens()
    ours = shaken(model("cope", **flags))(x, flash_pack_seq_kwargs=spelled)
    torch.testing.assert_close(ours, shaken(model("cope"))(x, cu_seqlens=EDGES))


@pytest.mark.parametrize("name", ["absolute", "rotary", "alibi"])
def test_random_places_are_drawn_once_for_all_documents(name):
    net = shaken(model({"name": name, "random_max": 20}, dim=64)).train()
    edges = torch.tensor([0, 5, 10, 15, 20])
    logits = net(torch.arange(5).repeat(4)[None], cu_seqlens=edges)
    for others in logits.split(5, dim=1)[1:]:
        torch.testing.assert_close(logits[:, :5], others)
    assert not torch.allclose(logits, net(torch.arange(5).repeat(4)[None], cu_seqlens=edges))


def test_random_places_are_drawn_for_the_longest_document():
    edges = torch.tensor([0, 3, 8, 8, 12])
    draws = torch.stack([Draw(9).places_of_documents(edges, 12)[:5] for _ in range(400)])
    assert (draws.diff(dim=1) > 0).all()
    assert (draws[:, 0] == 0).float().mean() < 0.7  # of 9 places 5 are drawn
    assert draws[:, 4].max() == 8
    with pytest.raises(FlagError, match="random_max=4 is not allowed with inputs of 5 tokens"):
        Draw(4).places_of_documents(edges, 12)


def test_an_embedding_of_places_may_be_given():
    net, x = shaken(model("none")), tokens()
    pos = torch.randn(1, 20, 32)
    packed = net(x, pos=pos, cu_seqlens=EDGES)
    torch.testing.assert_close(packed[:, 8:], net(x[:, 8:], pos=pos[:, 8:]), rtol=1e-4, atol=1e-5)


def test_a_row_may_be_longer_than_the_table():
    assert model("absolute")(tokens(), cu_seqlens=EDGES).shape == (1, 20, 16)
    with pytest.raises(FlagError, match="a document of 20 tokens does not fit"):
        model("absolute")(tokens(), cu_seqlens=torch.tensor([0, 20]))


UNEQUAL = {"cu_seqlens_q": EDGES, "cu_seqlens_k": torch.tensor([0, 6, 7, 8, 20])}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"cu_seqlens": torch.tensor([0, 19])}, "must end with the number of tokens, 20"),
        ({"cu_seqlens": torch.tensor([0.0, 20.0])}, "must be int32 or int64"),
        ({"cu_seqlens": [0, 20]}, "must be a tensor, int32 or int64, but is a list"),
        ({"pos": torch.arange(20)}, "pos does not go together"),
        ({"seq_start_pos": torch.tensor([0])}, "seq_start_pos does not go together"),
        ({"seq_pos_offset": 3}, "seq_pos_offset is not for you to give: TransformerW"),
        ({"mems": [torch.zeros(1, 2, 32)] * 2}, "mems does not go together"),
        ({"prepend_embeds": torch.zeros(1, 2, 32)}, "prepend_embeds does not go together"),
        ({"context": torch.zeros(1, 2, 32)}, "context does not go together"),
        ({"flash_pack_seq_kwargs": UNEQUAL}, "say the same: give one of them"),
        ({"cu_seqlens": None, "flash_pack_seq_kwargs": UNEQUAL}, "must have the same cu_seqlens_q"),
        ({"cu_seqlens": None, "flash_pack_seq_kwargs": {"cu_seqlens_q": EDGES}}, "lacks cu_"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_calls_that_do_not_fit_are_explained(call, message):
    with pytest.raises(FlagError, match=message):
        model("rotary")(tokens(), **({"cu_seqlens": EDGES} | call))


@pytest.mark.parametrize(
    "flags",
    [
        {"attn_num_mem_kv": 3},
        {"shift_tokens": 1},
        {"orthog_residual": True},
        {"mv_split_residual": True},
        {"attn_hybrid_module": torch.nn.Identity(), "attn_hybrid_fold_axial_dim": 1},
        {"attn_orthog_projected_values": True},
        {"attn_orthog_projected_values_per_head": True},
        {"attn_selective": True},
        {"wrapper": {"num_memory_tokens": 2}},
        {"wrapper": {"use_cls_token": True}},
        {"wrapper": {"attn_pool": True}},
        {"wrapper": {"average_pool_embed": True}},
    ],
    ids=str,
)
def test_what_acts_across_documents_is_refused(flags):
    flag = next(iter(flags.get("wrapper", flags)))
    with pytest.raises(FlagError, match=f"{flag} does not go together with cu_seqlens"):
        model("none", **flags)(tokens(), cu_seqlens=EDGES)


@pytest.mark.parametrize("name", LENGTH_DEPENDENT)
def test_what_follows_the_length_of_the_row_is_refused(name):
    with pytest.raises(FlagError, match="dynamic NTK or LongRoPE"):
        model(position(name))(tokens(), cu_seqlens=EDGES)


def test_documents_that_were_promised_are_missed():
    with pytest.raises(FlagError, match="attn_flash_pack_seq=True, but the call has no cu_seqlens"):
        model("rotary", attn_flash_pack_seq=True)(tokens())


def test_a_decoder_alone_takes_no_places():
    layers = Decoder(dim=32, depth=1, heads=2, attn_dim_head=16, position="alibi")
    with pytest.raises(FlagError, match="pos does not go together"):
        layers(torch.zeros(1, 20, 32), pos=torch.arange(20), cu_seqlens=EDGES)


def test_a_batch_is_refused():
    with pytest.raises(FlagError, match="flatten the batch into one row"):
        model("rotary")(tokens().view(2, 10), cu_seqlens=torch.tensor([0, 10]))
