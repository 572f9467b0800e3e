"""A head in numbers, a trace in a notebook, a trace in a picture."""

import re

import pytest
import torch
from matplotlib.image import imread

from xcope.inspect import LayerTrace, Trace, page, picture, summary, trace

GATES = torch.tensor([[1.0, 0, 0], [0.5, 0.25, 0], [1.0, 0.25, 1.0]])
ATTENTION = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.25, 0.25, 0.5]])


@pytest.fixture
def counted():
    """A text "x y x" under one head with CoPE and one with a bias."""
    seen = torch.ones(3, 3).bool().tril().expand(1, 2, 3, 3)
    gates = torch.stack((GATES, torch.full((3, 3), torch.nan)))[None]
    layer = LayerTrace(
        schemes=("cope(max_pos=3)", "alibi<&>"),
        logits=torch.zeros(1, 2, 3, 3),
        seen=seen,
        attention=torch.stack((ATTENTION, ATTENTION))[None],
        bias=torch.stack((torch.zeros(3, 3), torch.tensor([[0.0, 9, 9], [-1, 0, 9], [-2, -1, 0]]))),
        gates=gates,
        positions=gates.flip(-1).cumsum(-1).flip(-1).clamp(max=2),
        max_pos=(3, None),
    )
    return Trace(torch.tensor([[0, 1, 0]]), (("x", "<y>", "x"),), (layer,))


def test_each_head_in_numbers(counted):
    one, other = summary(counted)
    assert (one.layer, one.head, one.scheme) == (0, 0, "cope(max_pos=3)")
    assert one.mean_gate == pytest.approx((1 + 0.5 + 0.25 + 1 + 0.25 + 1) / 6)
    assert dict(one.counted) == pytest.approx({"x": 3.5 / 4, "<y>": 0.25})
    assert one.saturated == pytest.approx(1 / 6)
    assert dict(one.attended) == pytest.approx({"x": 2.25 / 3, "<y>": 0.75 / 3})
    assert [name for name, _ in one.attended] == ["x", "<y>"]
    assert one.distance == pytest.approx((0 + 0.5 + 0.5 + 0.25) / 3)
    assert (other.mean_gate, other.counted, other.saturated) == (None, (), None)
    assert other.bias == (-2.0, 0.0)
    assert len(summary(counted, most=1)[0].counted) == 1


def test_padding_does_not_count(make, ids):
    mask = torch.ones(1, 24, dtype=torch.bool)
    mask[:, :6] = False
    model = make("cope")
    padded = summary(trace(model, ids[:1], mask))
    alone = summary(trace(model, ids[:1, 6:]))
    for one, other in zip(padded, alone, strict=True):
        assert one.mean_gate == pytest.approx(other.mean_gate, abs=1e-5)
        assert one.distance == pytest.approx(other.distance, abs=1e-3)
        assert sum(share for _, share in one.attended) <= 1


def test_a_notebook_shows_the_last_query(counted):
    html = counted._repr_html_()
    assert html.count("<tr>") == 3
    assert "&lt;y&gt;" in html
    assert "<y>" not in html
    assert "alibi&lt;&amp;&gt;" in html
    assert re.findall(r'title="([^"]*)"', html) == [
        "gate 1.00, position 2.00",
        "gate 0.25, position 1.25",
        "gate 1.00, position 1.00",
        "attention 0.250",
        "attention 0.250",
        "attention 0.500",
    ]
    shades = re.findall(r"rgb\(0 114 178/([\d.]+)\)", html)
    assert [float(shade) for shade in shades[:3]] == pytest.approx([0.7, 0.175, 0.7], abs=0.006)


def test_a_notebook_stays_small(make):
    html = trace(make("cope", depth=9), torch.arange(400) % 20)._repr_html_()
    assert len(html) < 200_000
    assert "and 4 more heads" in html


@pytest.mark.parametrize("name", ["cope", "rotary", "none"])
def test_a_notebook_shows_any_scheme(make, ids, name):
    html = trace(make(name), ids)._repr_html_()
    assert html.count("<tr>") == 1 + 8
    assert ("position" in html) == (name == "cope")


MIXED = {"layers": ["rotary", {"heads": ["alibi", {"name": "cope", "max_pos": 5}]}]}


@pytest.mark.parametrize("position", ["cope", "alibi", MIXED], ids=str)
def test_pictures_show_what_there_is(make, ids, tmp_path, position):
    traced = trace(make(position), ids[:, :9], labels=[["$x$", "a\nb", *"c" * 7]] * 2)
    picture(traced, tmp_path / "one.png", title="$5 & _x_")
    picture(traced, tmp_path / "other.png", row=1)
    one, other = imread(tmp_path / "one.png"), imread(tmp_path / "other.png")
    for image in (one, other):
        coloured = image[..., :3].max(-1) - image[..., :3].min(-1) > 0.2
        assert coloured.mean() > 0.02
    assert one.shape != other.shape or (one != other).any()


def test_gates_in_the_picture_are_darker_where_they_are_wider_open(make, ids, tmp_path):
    model = make("cope", depth=1, heads=2)
    traced = trace(model, ids[0, :6])
    layer = traced.layers[0]
    means = {}
    for fill in (0.0, 1.0):
        gates = torch.full_like(layer.gates, fill)
        same = {name: getattr(layer, name) for name in ("schemes", "logits", "seen", "attention")}
        changed = LayerTrace(
            **same, bias=layer.bias, gates=gates, positions=gates * 0, max_pos=layer.max_pos
        )
        picture(Trace(traced.ids, traced.labels, (changed,)), tmp_path / "gates.png")
        means[fill] = imread(tmp_path / "gates.png")[..., :3].mean()
    assert means[1.0] < means[0.0] - 0.1


def test_pages_take_few_bytes_for_a_number(make):
    """Of 512 tokens: gates and their positions a byte for each pair, attention one, bias two."""
    ids = torch.randint(20, (512,), generator=torch.Generator().manual_seed(0))
    pairs = 2 * 4 * 512 * 513 / 2
    cope = page(trace(make("cope"), ids))
    assert len(cope) < pairs * 4 * 4 / 3 + 60_000
    alibi = page(trace(make("alibi"), ids))
    assert len(alibi) < pairs * 1.1 * 4 / 3 + 60_000
