"""What holds for every registered scheme in a decoder."""

import pytest
import torch
from schemes import KINDS, NAMES, position

import xcope
from xcope.errors import FlagError
from xcope.modules import seam

SIZE = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 16, "verbose": False}
FLAGS = {
    "plain": {},
    "kv_heads": {"attn_kv_heads": 2},
    "one_kv_head": {"attn_one_kv_head": True},
    "mem_kv": {"attn_num_mem_kv": 3},
    "qk_norm": {"attn_qk_norm": True},
    "value_residual": {"add_value_residual": True},
    "window": {"attn_max_attend_past": 5},
    "sink": {"attn_head_learned_sink": True},
}
REFUSED = {("pope", "kv_heads"), ("pope", "one_kv_head"), ("pope", "mem_kv")} | {
    (name, "sink") for name in ("path", "stick_breaking", "wall")
}


def model_of(where, max_seq_len=48, **flags):
    torch.manual_seed(0)
    model = xcope.TransformerWrapper(
        num_tokens=40,
        max_seq_len=max_seq_len,
        attn_layers=xcope.Decoder(**SIZE, position=where, **flags),
    )
    with torch.no_grad():  # what starts at zero or small would go unseen
        for name, parameter in model.named_parameters():
            if "layers" not in name.split(".")[:1] and parameter.abs().max() < 0.05:
                parameter.normal_()
    return model.eval()


def cases(flags):
    """Every scheme without flags; one of each kind with each of the flags."""
    return [
        (n, f) for f in flags for n in (NAMES if f == "plain" else KINDS) if (n, f) not in REFUSED
    ]


@pytest.mark.parametrize(("name", "flags"), cases(FLAGS))
def test_tiles_equal_the_bias_written_out(name, flags):
    model = model_of(position(name), **FLAGS[flags])
    tokens = torch.randint(40, (2, 24))
    mask = torch.ones(2, 24, dtype=torch.bool)
    mask[0, 20:] = mask[1, 5:9] = False
    results = []
    for kept in (False, True):
        model.zero_grad()
        if kept:
            with seam.logits_kept(model):
                logits = model(tokens, mask=mask)
        else:
            logits = model(tokens, mask=mask)
        logits[mask].square().mean().backward()
        results.append((logits[mask], {n: p.grad for n, p in model.named_parameters()}))
    (logits, grads), (expected, expected_grads) = results
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    for parameter, grad in grads.items():
        assert grad is not None, parameter
        torch.testing.assert_close(
            grad, expected_grads[parameter], atol=1e-4, rtol=1e-3, msg=parameter
        )


def text(model, prompt, length, **kwargs):
    return xcope.AutoregressiveWrapper(model).generate(prompt, length, temperature=0.0, **kwargs)


@pytest.mark.parametrize(("name", "flags"), cases(["plain", "kv_heads", "mem_kv", "qk_norm"]))
def test_greedy_text_is_the_same_with_and_without_the_cache(name, flags):
    model = model_of(position(name), max_seq_len=96, **FLAGS[flags])
    prompt = torch.randint(40, (2, 9))
    cached, full = (text(model, prompt, 18, cache_kv=cache) for cache in (True, False))
    assert len(set(full.flatten().tolist())) > 2, "a constant text would compare nothing"
    assert torch.equal(cached, full)


@pytest.mark.parametrize("name", NAMES)
def test_past_the_training_length_too_unless_a_table_of_places_ends(name):
    model = model_of(position(name), max_seq_len=16)
    prompt = torch.randint(40, (1, 12))
    if model.max_table_len is not None:
        assert "absolute" in name
        with pytest.raises(FlagError, match="max_seq_len=16"):
            text(model, prompt, 40)
        return
    cached, full = (text(model, prompt, 40, cache_kv=cache) for cache in (True, False))
    assert torch.equal(cached, full)


@pytest.mark.parametrize("name", NAMES)
def test_a_left_padded_row_gives_what_it_gives_alone(name):
    model = xcope.AutoregressiveWrapper(model_of(position(name)))
    prompts = [torch.randint(40, (length,)) for length in (4, 9, 7)]
    together = model.generate(prompts, 12, temperature=0.0)
    for row, prompt in zip(together, prompts, strict=True):
        assert torch.equal(row, model.generate(prompt[None], 12, temperature=0.0)[0])


@pytest.mark.parametrize("name", NAMES)
def test_beam_search_and_bfloat16(name):
    model = model_of(position(name))
    prompt = torch.randint(40, (2, 5))
    assert xcope.AutoregressiveWrapper(model).beam_search(prompt, 6, beams=2).shape == (2, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(prompt).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_dropout_of_attention_takes_the_written_out_path(name):
    model = model_of(position(name), attn_dropout=0.5).train()
    tokens = torch.randint(40, (1, 12))
    assert not torch.equal(model(tokens), model(tokens))


RANDOM = [n for n, kind in xcope.schemes().items() if "random_max" in kind.options()]


@pytest.mark.parametrize("name", RANDOM)
def test_random_places_in_training_and_the_usual_ones_in_evaluation(name):
    plain, random = model_of(position(name)), model_of(position(name, random_max=48))
    tokens = torch.randint(40, (2, 12))
    torch.testing.assert_close(random(tokens), plain(tokens))
    first, second = random.train()(tokens), random(tokens)
    assert not torch.equal(first, second)
    with pytest.raises(FlagError, match="48"):
        random(torch.randint(40, (1, 49)))


@pytest.mark.parametrize("name", RANDOM)
def test_a_draw_of_all_places_is_the_usual_order(name):
    plain, random = model_of(position(name)), model_of(position(name, random_max=48))
    tokens = torch.randint(40, (1, 48))
    torch.testing.assert_close(random.train()(tokens), plain.train()(tokens), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_position_parameters_are_those_that_a_model_without_positions_lacks(name):
    model, bare = model_of(position(name)), model_of("none")
    ours = {parameter: key for key, parameter in model.named_parameters()}
    own = {ours[parameter] for parameter in model.position_parameters()}
    assert own == set(ours.values()) - {key for key, _ in bare.named_parameters()}
