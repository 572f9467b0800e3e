"""Every scheme is registered, printable, documented by a YAML file, and buildable."""

import inspect
import pathlib
import re
from itertools import combinations

import pytest
import torch
from schemes import NAMES, position

import xcope
from xcope.errors import FlagError
from xcope.positions import (
    AttendInputs,
    Family,
    Geometry,
    Scheme,
    Slot,
    clash,
    parse,
    presets,
    register,
    single,
)
from xcope.positions.alibi import alibi_slopes

SINGLE = [n for n, kind in xcope.schemes().items() if kind.slot is not None]

ROOT = pathlib.Path(__file__).parents[2]
GEOMETRY = Geometry(dim=32, heads=4, dim_head=16, max_seq_len=20)


@pytest.mark.parametrize("name", NAMES)
def test_each_scheme_is_one_file_and_one_yaml(name):
    kind = xcope.schemes()[name]
    assert kind.__module__ == f"xcope.positions.{name}"
    plan = parse(position(name))
    assert plan == single(kind(**_options(name)))


def _options(name):
    options = position(name)
    del options["name"]
    return options


@pytest.mark.parametrize("name", NAMES)
def test_each_scheme_has_an_oracle_that_is_not_ours(name):
    """x-transformers by the equality tests, everything else by a test file of its own."""
    kind = xcope.schemes()[name]
    assert kind.oracle
    if kind.oracle == "x-transformers":
        assert kind.counterpart() is not None
    else:
        oracles = ROOT / "tests" / "positions" / "oracles"
        text = (oracles / f"test_{name}.py").read_text()
        if "from rotations import" in text:
            text += (oracles / "rotations.py").read_text()
        package = kind.oracle.replace("-", "_")
        assert package == "formula" or re.search(rf"(import|from|skip\(\") ?{package}\b", text)


@pytest.mark.parametrize("name", NAMES)
def test_each_scheme_says_what_the_docs_need(name):
    kind = xcope.schemes()[name]
    assert kind.title
    assert kind.paper
    assert kind.formula
    described = inspect.getdoc(kind)
    assert f"``position: {name}``" in described
    own = [o for o in kind.options() if o != "random_max"]
    described += "".join(inspect.getdoc(base) or "" for base in kind.__mro__)
    assert [option for option in own if f"{option}:" not in described] == []


@pytest.mark.parametrize("name", NAMES)
def test_each_scheme_builds_what_its_slot_needs(name):
    for part in parse(position(name)).schemes:
        module = part.build(GEOMETRY)
        pos = torch.arange(7)
        if part.slot is Slot.INPUT:
            assert module(torch.zeros(2, 7, dtype=torch.long)).shape[-2:] == (7, 32)
        elif part.slot is Slot.ROTATION:
            q, k = module.rotate(*torch.randn(2, 1, 4, 7, 16), pos, pos)
            assert q.shape == k.shape == (1, 4, 7, 32 if module.widens else 16)
        elif part.slot is Slot.BIAS:
            assert module.dense(pos[4:], pos).shape == (4, 3, 7)
        elif part.slot is Slot.MASK:
            first, near = module(pos)
            assert first.shape == near.shape == (7,)
        elif part.slot is Slot.SINK:
            assert module(module.head_attn_sink, pos.device).shape == (4,)
        elif part.slot is Slot.SCALE:
            assert module(pos[4:], pos[4:] + 1).shape == (4, 3)
        else:
            left = module.remember(torch.randn(2, 7, 32)) if module.remembers else None
            assert left is None or left.shape[:3] == (2, 4, 7)
            q = torch.randn(2, 4, 7, 16)
            inputs = AttendInputs(scale=0.25, remembered=left)
            assert module.attend(q, q, q, inputs).shape == q.shape


def test_the_table_for_people_has_every_scheme_under_its_family_and_every_preset():
    head, *groups = repr(xcope.schemes()).split("\n\n")
    assert head.split() == ["scheme", "slot", "options", "formula", "paper"]
    listed = {title: rows for title, *rows in (group.splitlines() for group in groups)}
    released = listed.pop("presets of released models: {preset: NAME}")
    assert [row.split()[0] for row in released] == list(presets())
    found = [row.split()[0] for rows in listed.values() for row in rows]
    assert sorted(found) == NAMES
    for title, rows in listed.items():
        for row in rows:
            kind = xcope.schemes()[row.split()[0]]
            assert (kind.family.value, kind.formula in row, kind.paper in row) == (
                title,
                True,
                True,
            )


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("none", Family.FIXED),
        ("alibi", Family.FIXED),
        ("t5", Family.LEARNED),
        ("absolute", Family.LEARNED),
        ("rotary_yarn", Family.ROTATION),
        ("cope_alibi", Family.CONTENT),
        ("path", Family.CONTENT),
        ("relative", Family.LEARNED),
        ("window", Family.OPTION),
    ],
)
def test_a_scheme_is_of_the_family_that_it_says_or_its_slot_has(name, family):
    assert xcope.schemes()[name].family is family


def test_a_scheme_of_ones_own_need_not_say_its_family():
    class Own(Scheme):
        slot = Slot.BIAS

    class Fixed(Own):
        family = Family.FIXED

    class Again(Fixed):
        pass

    assert [one.family for one in (Own, Fixed, Again)] == [
        Family.LEARNED,
        Family.FIXED,
        Family.FIXED,
    ]


def test_two_schemes_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two schemes are called 'cope'"):
        register(xcope.schemes()["cope"])


def test_cope_rotary_is_cope_and_rotary():
    together = parse({"name": "cope_rotary", "max_pos": 9, "rotary_dim": 8})
    assert together == parse([{"name": "cope", "max_pos": 9}, {"name": "rotary", "dim": 8}])


def test_scheme_objects_are_taken_as_they_are():
    (cope,) = parse("cope").schemes
    assert parse([cope, "absolute"]).schemes[0] is cope


@pytest.mark.parametrize(("one", "other"), [*combinations(SINGLE, 2)])
def test_pairs_that_do_not_clash_make_a_decoder_that_runs(one, other):
    pair = [position(one), position(other)]
    schemes = [scheme for entry in pair for scheme in parse(entry).schemes]
    if clash(*schemes):
        for order in (pair, pair[::-1]):
            with pytest.raises(FlagError, match=f"(?s){one}.*{other}|{other}.*{one}"):
                parse(order)
        return
    assert {*parse(pair).schemes} == {*parse(pair[::-1]).schemes}
    model = xcope.TransformerWrapper(
        num_tokens=9,
        max_seq_len=12,
        attn_layers=xcope.Decoder(dim=32, depth=1, heads=2, attn_dim_head=16, position=pair),
    )
    tokens = torch.randint(9, (1, 12))
    model(tokens).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    text = xcope.AutoregressiveWrapper(model.eval())
    cached, full = (text.generate(tokens[:, :6], 6, temperature=0.0, cache_kv=c) for c in (1, 0))
    assert torch.equal(cached, full)


def test_alibi_slopes_are_the_papers():
    assert alibi_slopes(8) == [2.0**-h for h in range(1, 9)]
    twelve = alibi_slopes(12)
    assert twelve[:8] == alibi_slopes(8)
    assert twelve[8:] == pytest.approx([2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])


def test_sinusoidal_is_sines_then_cosines():
    (scheme,) = parse("sinusoidal").schemes
    out = scheme.build(GEOMETRY)(torch.zeros(1, 50, dtype=torch.long)) * 32**0.5
    i, m = 37, 5
    angle = torch.tensor(i * 10000 ** (-m / 16))
    torch.testing.assert_close(out[i, m], angle.sin())
    torch.testing.assert_close(out[i, 16 + m], angle.cos())


def test_input_schemes_begin_at_zero_where_a_left_padded_row_begins():
    x = torch.zeros(2, 6, dtype=torch.long)
    for name in ("absolute", "sinusoidal"):
        module = parse(name).schemes[0].build(GEOMETRY)
        padded = module(x, seq_start_pos=torch.tensor([0, 2]))
        torch.testing.assert_close(padded[1, 2:], module(x)[:4])
        torch.testing.assert_close(module(x, offset=3), module(x, pos=torch.arange(3, 9)))


def test_l2norm_table_has_rows_of_length_one():
    (scheme,) = parse({"name": "absolute", "l2norm": True}).schemes
    rows = scheme.build(GEOMETRY)(torch.zeros(1, 6, dtype=torch.long))
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(6))


def test_scheme_requirements_name_the_flag():
    with pytest.raises(FlagError) as caught:
        parse({"name": "sinusoidal", "theta": -1.0}).schemes[0].build(GEOMETRY)
    assert caught.value.flag == "sinusoidal_theta"
