"""Packed documents: each has the logits and gradients that it has alone, whatever the scheme."""

import pytest
import torch

from xcope import Decoder, TransformerWrapper, schemes
from xcope.benchmark.schemes.workloads import position
from xcope.errors import FlagError

LENGTHS = (7, 0, 1, 12)
EDGES = torch.tensor([0, 7, 7, 8, 20], dtype=torch.int32)
LENGTH_DEPENDENT = {"rotary_dynamic"}


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


@pytest.mark.parametrize("name", sorted(set(schemes()) - LENGTH_DEPENDENT))
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


@pytest.mark.parametrize("name", ["cope", "alibi", "rotary"])
def test_where_logits_are_materialised(name):
    assert_as_alone(shaken(model(name, attn_softclamp_logits=True)))


def test_the_spelling_of_x_transformers():
    spelled = {f"cu_seqlens_{side}": EDGES for side in "qk"}
    spelled |= {f"max_seqlen_{side}": 12 for side in "qk"}
    assert_as_alone(shaken(model("rotary")), flash_pack_seq_kwargs=spelled)


def test_random_places_are_drawn_once_for_all_documents():
    net = model({"name": "absolute", "random_max": 64}).train()
    x = torch.full((1, 10), 3)
    torch.manual_seed(0)
    logits = net(x, cu_seqlens=torch.tensor([0, 5, 10]))
    torch.testing.assert_close(logits[:, :5], logits[:, 5:])
    assert not torch.allclose(logits, net(x, cu_seqlens=torch.tensor([0, 5, 10])))


def test_a_row_may_be_longer_than_the_table():
    assert model("absolute")(tokens(), cu_seqlens=EDGES).shape == (1, 20, 16)
    with pytest.raises(FlagError, match="a document of 20 tokens does not fit"):
        model("absolute")(tokens(), cu_seqlens=torch.tensor([0, 20]))


@pytest.mark.parametrize(
    ("net", "call", "message"),
    [
        ({}, {"cu_seqlens": torch.tensor([0, 19])}, "must end with the number of tokens, 20"),
        ({}, {"cu_seqlens": torch.tensor([0.0, 20.0])}, "must be int32 or int64"),
        ({}, {"pos": torch.arange(20)}, "pos does not go together"),
        ({}, {"seq_start_pos": torch.tensor([0])}, "seq_start_pos does not go together"),
        ({"wrapper": {"num_memory_tokens": 2}}, {}, "num_memory_tokens does not go"),
        ({"attn_num_mem_kv": 3}, {}, "attn_num_mem_kv does not go"),
        ({"shift_tokens": 1}, {}, "shift_tokens"),
        ({"its_position": position("rotary_dynamic")}, {}, "dynamic"),
        ({}, {"cu_seqlens": None, "flash_pack_seq_kwargs": {"cu_seqlens_q": EDGES}}, "lacks cu_"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_explained(net, call, message):
    built = model(**({"its_position": "rotary"} | net))
    with pytest.raises(FlagError, match=message):
        built(tokens(), **({"cu_seqlens": EDGES} | call))


def test_a_batch_is_refused():
    with pytest.raises(FlagError, match="flatten the batch into one row"):
        model("rotary")(tokens().view(2, 10), cu_seqlens=torch.tensor([0, 10]))
