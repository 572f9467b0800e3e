"""Every scheme is registered, printable, documented by a YAML file, and buildable."""

import pathlib

import pytest
import torch
import yaml

import xcope
from xcope.errors import FlagError
from xcope.positions import Geometry, Slot, expand, parse, register
from xcope.positions.alibi import alibi_slopes

ROOT = pathlib.Path(__file__).parents[2]
GEOMETRY = Geometry(dim=32, heads=4, dim_head=16, max_seq_len=20)


@pytest.mark.parametrize("name", xcope.schemes())
def test_each_scheme_is_one_file_and_one_yaml(name):
    kind = xcope.schemes()[name]
    assert kind.__module__ == f"xcope.positions.{name}"
    config = yaml.safe_load((ROOT / "configs" / "schemes" / f"{name}.yaml").read_text())
    (scheme,) = parse(config["model"]["position"])
    assert type(scheme) is kind


@pytest.mark.parametrize("name", xcope.schemes())
def test_each_scheme_builds_what_its_slot_needs(name):
    for part in expand(parse(name)):
        module = part.build(GEOMETRY)
        if part.slot is None:
            assert module is None
        elif part.slot is Slot.INPUT:
            assert module(torch.zeros(2, 7, dtype=torch.long)).shape[-2:] == (7, 32)
        elif part.slot is Slot.ROTATION:
            angles, scale = module(torch.arange(7))
            assert angles.shape[:2] == (1, 7)
            assert scale == 1.0
        elif part.slot is Slot.BIAS:
            assert module(3, 7).shape == (4, 3, 7)
        else:
            q = torch.randn(1, 4, 7, 16)
            assert module.attend(q, q, q, scale=0.25).shape == q.shape


def test_the_table_for_people_lists_every_scheme_with_its_paper():
    text = repr(xcope.schemes())
    for name, kind in xcope.schemes().items():
        assert name in text
        assert kind.paper in text
    assert len(xcope.schemes()) == len(text.splitlines()) - 1


def test_two_schemes_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two schemes are called 'cope'"):
        register(xcope.schemes()["cope"])


def test_cope_rotary_is_cope_and_rotary():
    together = expand(parse({"name": "cope_rotary", "max_pos": 9, "rotary_dim": 8}))
    assert together == parse([{"name": "cope", "max_pos": 9}, {"name": "rotary", "dim": 8}])


def test_scheme_objects_are_taken_as_they_are():
    (cope,) = parse("cope")
    assert parse([cope, "absolute"])[0] is cope


def test_alibi_slopes_are_the_papers():
    assert alibi_slopes(8) == [2.0**-h for h in range(1, 9)]
    twelve = alibi_slopes(12)
    assert twelve[:8] == alibi_slopes(8)
    assert twelve[8:] == pytest.approx([2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])


def test_sinusoidal_is_sines_then_cosines():
    (scheme,) = parse("sinusoidal")
    out = scheme.build(GEOMETRY)(torch.zeros(1, 50, dtype=torch.long)) * 32**0.5
    i, m = 37, 5
    angle = torch.tensor(i * 10000 ** (-m / 16))
    torch.testing.assert_close(out[i, m], angle.sin())
    torch.testing.assert_close(out[i, 16 + m], angle.cos())


def test_input_schemes_begin_at_zero_where_a_left_padded_row_begins():
    x = torch.zeros(2, 6, dtype=torch.long)
    for name in ("absolute", "sinusoidal"):
        module = parse(name)[0].build(GEOMETRY)
        padded = module(x, seq_start_pos=torch.tensor([0, 2]))
        torch.testing.assert_close(padded[1, 2:], module(x)[:4])
        torch.testing.assert_close(module(x, offset=3), module(x, pos=torch.arange(3, 9)))


def test_l2norm_table_has_rows_of_length_one():
    (scheme,) = parse({"name": "absolute", "l2norm": True})
    rows = scheme.build(GEOMETRY)(torch.zeros(1, 6, dtype=torch.long))
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(6))


def test_scheme_requirements_name_the_flag():
    with pytest.raises(FlagError) as caught:
        parse({"name": "sinusoidal", "theta": -1.0})[0].build(GEOMETRY)
    assert caught.value.flag == "sinusoidal_theta"
