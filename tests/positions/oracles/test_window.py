"""Windows against the masks of transformers' models, and against the definition in loops."""

import pytest
import torch
from transformers.masking_utils import (
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

import xcope
from xcope.errors import FlagError
from xcope.modules.attention import LayerCall
from xcope.modules.places import Places
from xcope.ops.windows import within
from xcope.positions import Geometry, scheme

N = 23


def limits(**options):
    return scheme("window", options).build(Geometry(dim=8, heads=2, dim_head=4))


def seen(places, i=N, mask=None, **options):
    """Which keys i queries see, bool (b i j), causal order included."""
    j = places.keys.shape[-1]
    window = LayerCall(places).window(limits(**options), i, j, mask)
    causal = torch.ones(i, j, dtype=torch.bool).tril(j - i)
    return within(window, slice(0, j))[:, 0] & causal


def of_transformers(function, rows=1):
    b, q, k = torch.arange(rows)[:, None, None], torch.arange(N)[:, None], torch.arange(N)
    return function(b, None, q, k).expand(rows, N, N)


@pytest.mark.parametrize("size", [1, 4, N, 100])
def test_a_window_is_that_of_mistral_and_gemma(size):
    ours = seen(Places(torch.arange(N)), size=size)
    assert torch.equal(ours, of_transformers(sliding_window_causal_mask_function(size)))


def test_chunks_are_those_of_llama_4_in_padded_rows_too():
    padding = torch.tensor([0, 2, 7])
    places = Places((torch.arange(N) - padding[:, None]).clamp(min=0))
    there = torch.arange(N) >= padding[:, None]
    theirs = of_transformers(chunked_causal_mask_function(5, padding), rows=3)
    ours = seen(places, size=5, chunked=True)
    assert torch.equal(*(m & there[:, None] & there[..., None] for m in (ours, theirs)))


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("i", [N, 3, 1])
def test_first_keys_are_seen_from_everywhere(chunked, i):
    ours = seen(Places(torch.arange(N)), i, size=4, sinks=2, chunked=chunked)
    for row, query in enumerate(range(N - i, N)):
        for key in range(N):
            near = query // 4 == key // 4 if chunked else query - key < 4
            assert ours[0, row, key] == (key <= query and (near or key < 2)), (query, key)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_row_counts_from_its_first_token(chunked):
    """Padded by places, by a mask, or in a document: it sees what it sees alone."""
    alone = seen(Places(torch.arange(N - 6)), N - 6, size=4, sinks=2, chunked=chunked)
    placed = Places((torch.arange(N) - 6).clamp(min=0)[None])
    mask = (torch.arange(N) >= 6)[None, None, None]
    packed = torch.cat((torch.arange(6), torch.arange(N - 6)))
    documents = Places(packed, documents=torch.tensor([0, 6, N]))
    for places, hidden in ((placed, None), (Places(torch.arange(N)), mask), (documents, None)):
        ours = seen(places, mask=hidden, size=4, sinks=2, chunked=chunked)
        assert torch.equal(ours[:, 6:, 6:], alone)


def test_memories_before_the_padding_keep_their_places_in_the_window():
    """Two memories, three of padding, then tokens at places 2, 3, …"""
    slots = torch.arange(N)
    keys = torch.where(slots < 2, slots, (slots - 3).clamp(min=2))[None]
    padding = (slots >= 2) & (slots < 5)
    alone = seen(Places(torch.arange(N - 3)), N - 3, size=4, sinks=1)[0]
    for places in (
        Places(keys, padding=padding[None]),
        Places(slots * 7, given=True, padding=padding[None]),
    ):
        ours = seen(places, size=4, sinks=1)[0]
        assert torch.equal(ours[~padding][:, ~padding], alone)


def test_the_window_counts_the_keys_that_a_query_sees():
    rank = torch.arange(N)
    for options in ({"size": 4}, {"size": 4, "sinks": 2}, {"size": 4, "sinks": 6, "chunked": True}):
        counted = seen(Places(rank), **options).sum(-1)[0]
        assert torch.equal(limits(**options).count(rank), counted)


def test_learned_memories_are_seen_by_all_as_in_x_transformers():
    window = LayerCall(Places(torch.arange(N))).window(limits(size=4), N, N + 3, None)
    ours = within(window, slice(0, N + 3))[0, 0]
    assert ours[:, :3].all()
    assert ours[-1, 3:].sum() == 4


@pytest.mark.parametrize(
    ("flags", "flag", "says"),
    [
        ({"position": "window", "window_size": 0}, "window_size", "1 or more"),
        ({"position": "window", "window_sinks": -1}, "window_sinks", "0 or more"),
        ({"attn_max_attend_past": -1}, "attn_max_attend_past", "0 on"),
        ({"attn_max_attend_past": True}, "attn_max_attend_past", "0 on"),
        (
            {"position": {"name": "window", "size": 9}, "attn_max_attend_past": 4},
            "attn_max_attend_past",
            r"window\(size=5\).*window\(size=9\)",
        ),
    ],
)
def test_windows_that_make_no_sense_are_refused(flags, flag, says):
    with pytest.raises(FlagError, match=says) as caught:
        xcope.Decoder(dim=16, depth=1, heads=2, attn_dim_head=8, **flags)
    assert caught.value.flag == flag


def test_what_a_decoder_has_by_a_flag_of_x_transformers():
    size = {"dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}
    by_flag = xcope.Decoder(**size, rotary_pos_emb=True, attn_max_attend_past=7)
    assert by_flag.plan.label() == "rotary+window(size=8)"
    beside = xcope.Decoder(**size, position="rotary", attn_max_attend_past=(7, None))
    assert beside.plan.label() == "layers(rotary+window(size=8), rotary)"
    assert xcope.Decoder(**size, attn_max_attend_past=7).abs_pos_default
    assert not xcope.Decoder(**size, position="window").abs_pos_default
