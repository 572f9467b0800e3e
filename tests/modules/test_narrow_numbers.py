"""Places, and what is computed from them, stay float32 or wider in models of narrower numbers."""

import contextlib
import copy

import pytest
import torch
from schemes import NAMES, position

import xcope
from xcope.modules import seam
from xcope.positions.base import WithConstants

SIZE = {"dim": 32, "heads": 4, "attn_dim_head": 16, "verbose": False}


def model_of(where, depth=1, **flags):
    torch.manual_seed(0)
    return xcope.TransformerWrapper(
        num_tokens=20,
        max_seq_len=16,
        attn_layers=xcope.Decoder(**SIZE, depth=depth, position=where, **flags),
    ).eval()


def constants(model):
    return {
        f"{prefix}.{name}": buffer
        for prefix, module in model.named_modules()
        if isinstance(module, WithConstants)
        for name, buffer in module.named_buffers(recurse=False)
    }


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def loaded_from(dtype):
    def load(model, where):
        checkpoint = {
            k: v.to(dtype) for k, v in model.state_dict().items() if v.is_floating_point()
        }
        model.load_state_dict(checkpoint, strict=False)
        return model

    return load


def built_under(dtype):
    def build(model, where):
        with default_dtype(dtype):
            return model_of(where)

    return build


def given_memory(model, where):
    with torch.device("meta"):
        empty = model_of(where)
    empty.to_empty(device="cpu").load_state_dict(model.state_dict())
    return empty


def assigned(dtype):
    def load(model, where):
        with torch.device("meta"):
            empty = model_of(where)
        empty.load_state_dict({k: v.to(dtype) for k, v in model.state_dict().items()}, assign=True)
        return empty

    return load


WAYS = {
    "bfloat16": lambda model, _: model.bfloat16(),
    "half": lambda model, _: model.half(),
    "to": lambda model, _: model.to("cpu", torch.bfloat16).float(),
    "double and back": lambda model, _: model.double().bfloat16().float(),
    "default dtype": built_under(torch.bfloat16),
    "bfloat16 checkpoint": loaded_from(torch.bfloat16),
    "float16 checkpoint": loaded_from(torch.float16),
    "meta": given_memory,
    "meta, assigned": assigned(torch.float32),
    "meta, assigned from bfloat16": assigned(torch.bfloat16),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_constants_are_those_of_a_float32_model(name, way):
    where = position(name)
    expected = {key: buffer.clone() for key, buffer in constants(model_of(where)).items()}
    model = WAYS[way](model_of(where), where)
    found = constants(model)
    assert found.keys() == expected.keys()
    for key, buffer in found.items():
        assert buffer.dtype.itemsize >= 4, key
        torch.testing.assert_close(buffer.float(), expected[key], rtol=0, atol=0, msg=key)
    assert model(torch.randint(20, (1, 8))).isfinite().all()


PLACES = torch.tensor([0, 1, 2999, 3000, 3001, 99_999, 100_000])


def computed(module, name):
    """What a module makes of far places, in whatever dtype it makes it: (…)."""
    if isinstance(module, xcope.positions.IndexBias):
        if name == "sandwich":  # its table reaches as far as the places
            return module.curve(PLACES).mT
        return module.dense(PLACES[-1:], PLACES.flip(0))
    if isinstance(module, xcope.positions.Rotation):
        q = torch.ones(1, 4, len(PLACES), 16)
        return torch.stack([t.float() for t in module.rotate(q, q, PLACES, PLACES)])
    if "sinusoidal" in name:
        return module(torch.zeros(1, len(PLACES)), pos=PLACES)
    raise AssertionError(f"{name}: say here what of its module follows from places")


def module_of(name):
    """The scheme's module that reads places; None where there is none, or it looks them up."""
    torch.manual_seed(0)
    geometry = xcope.positions.Geometry(dim=32, heads=4, dim_head=16, max_seq_len=16)
    # with the usual scale_base, far keys of xPos are e^40 times as long
    written = dict(position(name, **({"scale_base": 1e6} if name == "xpos" else {})))
    built = [
        p.build(geometry) for p in xcope.positions.scheme(written.pop("name"), written).parts()
    ]
    kinds = (xcope.positions.Rotation, xcope.positions.IndexBias, xcope.positions.AddedToInput)
    found = [m for m in built if isinstance(m, kinds) and not hasattr(m, "emb")]
    return found[0] if found else None


READERS = [name for name in NAMES if module_of(name) is not None]


@pytest.mark.parametrize("how", ["bfloat16", "half", "autocast", "default dtype"])
@pytest.mark.parametrize("name", READERS)
def test_far_places_are_told_apart_as_in_float64(name, how):
    module = module_of(name)
    narrow = torch.float16 if how == "half" else torch.bfloat16
    if how in ("bfloat16", "half"):
        module = module.to(narrow)
    exact = module_of(name).double()
    with torch.no_grad():
        for mine, theirs in zip(exact.parameters(), module.parameters(), strict=True):
            mine.copy_(theirs)
        expected = computed(exact, name).double()
        with contextlib.ExitStack() as stack:
            if how == "autocast":
                stack.enter_context(torch.autocast("cpu", torch.bfloat16))
            if how == "default dtype":
                stack.enter_context(default_dtype(narrow))
            found = computed(module, name)
    last = torch.finfo(found.dtype).eps if "sinusoidal" in name else 0
    # an angle of 100 000 in float32 is right to 2^-7
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0.02 + last)


def test_neighbouring_sinusoidal_places_differ_in_bfloat16():
    added = module_of("sinusoidal").bfloat16()(torch.zeros(1, 3001))
    assert added.dtype == torch.bfloat16
    assert (added[1:] != added[:-1]).any(-1).all()


COPES = [["alibi", {"name": "cope", o: True}] for o in ("sep_keys", "val_gates", "talking_heads")]


@pytest.mark.parametrize("where", [*map(position, NAMES), *COPES], ids=str)
def test_a_bfloat16_model_is_as_near_to_float64_with_logits_written_out_as_with_tiles(where):
    model = model_of(where, depth=2).bfloat16()
    exact = copy.deepcopy(model).double()
    tokens = torch.randint(20, (1, 16))
    with seam.logits_kept(model):
        written_out = model(tokens)
    for found in (model(tokens), written_out):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), exact(tokens), rtol=0.05, atol=0.05)
