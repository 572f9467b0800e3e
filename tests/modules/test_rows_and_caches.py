"""A row in a batch is what it is alone, and tokens beside a cache what they are in the whole."""

import pytest
import torch
from schemes import KINDS, NAMES, position

import xcope
from xcope.errors import FlagError

SIZE = {"dim": 32, "heads": 4, "attn_dim_head": 16, "verbose": False}
OPTIONS = {
    "rotary_dynamic": {"trained_len": 6},
    "rotary_longrope": {"original_max_position_embeddings": 6},
}
"""What makes a scheme depend on the length within these tests."""


def where(name):
    return position(name, **OPTIONS.get(name, {}))


def awake(module):
    with torch.no_grad():  # what starts at zero or small would go unseen
        for key, parameter in module.named_parameters():
            shared = not key.startswith(("layers", "attn_layers.layers"))
            if "cope" in key or (shared and parameter.abs().max() < 0.05):
                parameter.normal_()
    return module.eval()


def decoder_of(place, depth=2, **flags):
    torch.manual_seed(0)
    return awake(xcope.Decoder(**SIZE, depth=depth, position=place, **flags))


def model_of(place, wrapper=None, depth=2, max_seq_len=64, **flags):
    torch.manual_seed(0)
    layers = xcope.Decoder(**SIZE, depth=depth, position=place, **flags)
    return awake(
        xcope.TransformerWrapper(
            num_tokens=20, max_seq_len=max_seq_len, attn_layers=layers, **(wrapper or {})
        )
    )


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


# -- beside a cache -------------------------------------------------------------------------------

SPLITS = {"layers": {"layers": ["rotary", "alibi"]}, "heads": {"heads": ["rotary", "fire"]}}
DECODERS = {name: where(name) for name in KINDS if name not in ("absolute", "sinusoidal")}
DECODERS |= SPLITS
CACHED = {
    "plain": {},
    "memories": {"attn_num_mem_kv": 3},
    "kv_heads": {"attn_kv_heads": 2},
    "one_kv_head": {"attn_one_kv_head": True},
}


@pytest.mark.parametrize("flags", CACHED)
@pytest.mark.parametrize("name", DECODERS)
def test_new_tokens_beside_a_cache_are_as_in_the_whole(name, flags):
    if name == "pope" and flags == "memories":
        with pytest.raises(FlagError, match="attn_num_mem_kv"):
            decoder_of(DECODERS[name], **CACHED[flags])
        return
    decoder = decoder_of(DECODERS[name], **CACHED[flags])
    x, start = torch.randn(2, 12, 32), torch.tensor([2, 0])
    if not decoder.can_cache_kv:
        _, cache = decoder(x[:, :7], return_hiddens=True)
        with pytest.raises(FlagError, match="cache"):
            decoder(x[:, 7:8], cache=cache)
        return
    for padding in ({}, {"seq_start_pos": start}):
        whole = decoder(x, **padding)
        for steps in ((1, 1), (3, 2), (5,), (2, 3)):
            _, cache = decoder(x[:, :7], return_hiddens=True, **padding)
            end = 7
            for step in steps:
                given = {"cache": cache, "cache_age": step, "return_hiddens": True, **padding}
                new = x[:, end : end + step]
                close(
                    decoder(new, input_not_include_cache=True, **given)[0], whole[:, end:][:, :step]
                )
                if not padding:
                    everything = decoder(x[:, : end + step], **given)[0]
                    close(everything[:, -step:], whole[:, end:][:, :step])
                out, cache = decoder(new, **given)
                close(out, whole[:, end : end + step])
                end += step


@pytest.mark.parametrize("name", NAMES)
def test_a_wrapper_too_may_be_fed_new_tokens_only(name):
    model = model_of(where(name))
    if not model.attn_layers.can_cache_kv:
        pytest.skip("it keeps no cache")
    tokens = torch.randint(20, (2, 10))
    whole = model(tokens)
    _, cache = model(tokens[:, :4], return_intermediates=True)
    for flag in ({}, {"input_not_include_cache": True}):
        close(model(tokens[:, 4:5], cache=cache, **flag), whole[:, 4:5])
        close(model(tokens[:, 4:], cache=cache, cache_age=6, **flag), whole[:, 4:])


def test_tokens_that_are_neither_cached_nor_read_are_an_error():
    model = model_of("rotary")
    tokens = torch.randint(20, (2, 10))
    _, cache = model(tokens[:, :4], return_intermediates=True)
    for age in ({}, {"cache_age": 5}):
        with pytest.raises(FlagError, match=r"of 10 tokens the cache holds 4.*cache_age=6"):
            model(tokens, cache=cache, **age)
    with pytest.raises(FlagError, match="give cache_age=2"):
        model.attn_layers(torch.randn(2, 6, 32), cache=cache)


def test_places_are_given_for_all_tokens_beside_a_cache_too():
    decoder = decoder_of("rotary")
    x, pos = torch.randn(1, 8, 32), torch.arange(8) * 3
    whole = decoder(x, pos=pos)
    _, cache = decoder(x[:, :6], pos=pos[:6], return_hiddens=True)
    close(decoder(x[:, 6:], pos=pos, cache=cache, cache_age=2), whole[:, 6:])
    with pytest.raises(FlagError, match="8 tokens with those in the cache"):
        decoder(x[:, 6:], pos=pos[6:], cache=cache, cache_age=2)


# -- a row beside others --------------------------------------------------------------------------

LENGTHS = (4, 9, 7)
BEFORE = {
    "nothing": ({}, {}),
    "memory tokens": ({"num_memory_tokens": 3}, {}),
    "class token": ({"use_cls_token": True}, {}),
    "learned memories": ({}, {"attn_num_mem_kv": 3}),
    "prepended embeddings": ({}, {}),
    "recurrent memories": ({"max_mem_len": 5}, {}),
    "recycling": ({"recycling": True}, {}),
    "window": ({}, {"attn_max_attend_past": 4}),
    "window over memory tokens": ({"num_memory_tokens": 3}, {"attn_max_attend_past": 4}),
}


def rows():
    return [torch.randint(20, (1, length)) for length in LENGTHS]


@pytest.mark.parametrize(
    ("name", "before"),
    [
        (name, before)
        for before in BEFORE
        for name in (KINDS if BEFORE[before] != ({}, {}) else NAMES)
    ],
)
def test_a_padded_row_has_the_logits_that_it_has_alone(name, before):
    if (name, before) == ("pope", "learned memories"):
        pytest.skip("refused")
    if name == "window" and before.startswith("window"):
        pytest.skip("two sizes of one window are refused")
    wrapper, flags = BEFORE[before]
    model = model_of(where(name), wrapper, **flags)
    longest = max(LENGTHS)
    extra = {
        "prepended embeddings": {"prepend_embeds": torch.randn(3, 2, 32)},
        "recurrent memories": {"mems": [torch.randn(3, 5, 32) for _ in range(2)]},
        "recycling": {"recycle_steps": 2},
    }.get(before, {})
    texts = rows()
    padded = torch.cat([torch.nn.functional.pad(t, (longest - t.shape[1], 0)) for t in texts])
    start = torch.tensor([longest - length for length in LENGTHS])
    together = model(padded, seq_start_pos=start, **extra)
    right = torch.cat([torch.nn.functional.pad(t, (0, longest - t.shape[1])) for t in texts])
    mask = torch.arange(longest) < torch.tensor(LENGTHS)[:, None]
    ended = model(right, mask=mask, **extra)
    for index, text in enumerate(texts):
        own = {
            key: [m[index : index + 1] for m in value]
            if isinstance(value, list)
            else value[index : index + 1]
            if isinstance(value, torch.Tensor)
            else value
            for key, value in extra.items()
        }
        alone = model(text, **own)
        if before == "class token":  # the logits are the row's
            close(together[index], alone[0])
            close(ended[index], alone[0])
            continue
        close(together[index, -LENGTHS[index] :], alone[0, -LENGTHS[index] :])
        close(ended[index, : alone.shape[1]], alone[0])


def greedy(model, prompts, length, **given):
    wrapper = xcope.AutoregressiveWrapper(model)
    return wrapper.generate(prompts, length, temperature=0.0, **given)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_prompts_of_several_lengths_continue_as_alone(name, cache):
    for wrapper in ({}, {"num_memory_tokens": 2}):
        model = model_of(where(name), wrapper, depth=1)
        prompts = [row[0] for row in rows()]
        together = greedy(model, prompts, 6, cache_kv=cache, eos_token=3)
        for row, prompt in zip(together, prompts, strict=True):
            alone = greedy(model, prompt[None], 6, cache_kv=cache, eos_token=3)[0]
            assert torch.equal(row[: len(alone)], alone)


@pytest.mark.parametrize("name", NAMES)
def test_a_sliding_window_leaves_a_row_as_alone(name):
    model = model_of(where(name), depth=1, max_seq_len=8)
    prompts = torch.stack([torch.randint(20, (7,)) for _ in range(3)])
    given = {"restrict_to_max_seq_len": True, "cache_kv": False}
    together = greedy(model, prompts, 6, **given)
    for row, prompt in zip(together, prompts, strict=True):
        assert torch.equal(row, greedy(model, prompt[None], 6, **given)[0])


def test_interspersed_memories_and_padding_are_refused_together():
    model = model_of("rotary", {"num_memory_tokens": 2, "memory_tokens_interspersed_every": 4})
    with pytest.raises(FlagError, match="memory_tokens_interspersed_every"):
        model(torch.randint(20, (2, 8)), seq_start_pos=torch.tensor([0, 2]))


# -- shapes of places and masks ------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_places_of_any_shape_and_dtype_of_whole_numbers(name):
    model = model_of(where(name))
    tokens = torch.randint(20, (2, 7))
    expected = model(tokens)
    for pos in (torch.arange(7), torch.arange(7)[None], torch.arange(7).expand(2, 7)):
        for dtype in (torch.int64, torch.int32):
            close(model(tokens, pos=pos.to(dtype)), expected)
    for few in (torch.randint(20, (0, 7)), torch.randint(20, (2, 1))):
        assert model(few).shape == (*few.shape, 20)


@pytest.mark.parametrize("name", NAMES)
def test_huge_places_are_finite_or_named(name):
    model = model_of(where(name))
    tokens = torch.randint(20, (1, 4))
    pos = torch.tensor([0, 5, 2**31 + 7, 2**33])
    if model.max_table_len is not None:
        with pytest.raises(FlagError, match="pos"):
            model(tokens, pos=pos)
        return
    assert model(tokens, pos=pos).isfinite().all()


@pytest.mark.parametrize("name", KINDS)
def test_places_of_each_head_are_for_biases(name):
    decoder = decoder_of(DECODERS.get(name, "none"))
    x, pos = torch.randn(2, 6, 32), torch.randint(9, (2, 4, 6)).sort(-1).values
    if any(part.rotation is not None or part.scale is not None for part in _parts(decoder)):
        with pytest.raises(FlagError, match="pos"):
            decoder(x, pos=pos)
        return
    close(decoder(x, pos=pos[:, :1].expand(2, 4, 6)), decoder(x, pos=pos[:, 0]))
    assert decoder(x, pos=pos).isfinite().all()
    with pytest.raises(FlagError, match="pos"):
        decoder(x, pos=pos[:, :3])


def _parts(decoder):
    return [p for m in decoder.modules() for p in getattr(m, "parts", ()) if hasattr(p, "rotation")]


WRONG = {
    "mask": [
        torch.ones(2, 5),
        torch.ones(2, 4).bool(),
        torch.ones(5).bool(),
        torch.ones(2, 5).int(),
    ],
    "attn_mask": [torch.zeros(5, 5), torch.ones(4, 5).bool(), torch.ones(5).bool()],
    "self_attn_kv_mask": [torch.ones(2, 5), torch.ones(3, 5).bool(), torch.ones(2, 1, 5).bool()],
    "pos": [
        torch.arange(5.0),
        torch.arange(4),
        torch.ones(5).bool(),
        torch.zeros(3, 5).long(),
        torch.zeros(5, 31),
    ],
    "seq_start_pos": [torch.zeros(3).long(), torch.zeros(2), torch.zeros(2, 1).long(), 1],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in WRONG.items() for v in vs])
def test_what_does_not_fit_is_named(name, value):
    model = model_of("alibi", depth=1)
    with pytest.raises(FlagError, match=name):
        model(torch.randint(20, (2, 5)), **{name: value})


@pytest.mark.parametrize("shape", [(5, 5), (4, 5, 5), (2, 4, 5, 5), (2, 1, 5, 5)])
def test_masks_of_attention_have_two_to_four_dimensions(shape):
    model = model_of("alibi", depth=1)
    tokens = torch.randint(20, (2, 5))
    close(model(tokens, attn_mask=torch.ones(shape).bool().tril()), model(tokens))


@pytest.mark.parametrize("pos", [torch.arange(6), torch.arange(7.0), torch.zeros(3, 7).long()])
def test_places_of_a_context_fit_it(pos):
    decoder = decoder_of("rotary", cross_attend=True)
    x, context = torch.randn(2, 5, 32), torch.randn(2, 7, 32)
    expected = decoder(x, context=context, context_pos=torch.arange(7))
    close(decoder(x, context=context, context_pos=torch.arange(7, dtype=torch.int32)), expected)
    with pytest.raises(FlagError, match="context_pos"):
        decoder(x, context=context, context_pos=pos)


@pytest.mark.parametrize("mask", [torch.ones(2, 7), torch.ones(2, 6) > 0, torch.ones(2, 1, 7) > 0])
def test_masks_of_a_context_fit_it(mask):
    decoder = decoder_of("none", cross_attend=True)
    with pytest.raises(FlagError, match="context_mask"):
        decoder(torch.randn(2, 5, 32), context=torch.randn(2, 7, 32), context_mask=mask)
