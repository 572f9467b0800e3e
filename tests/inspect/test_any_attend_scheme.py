"""Schemes of the attend slot that only this file knows are traced, summed up and shown."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from matplotlib.image import imread
from torch import nn

from xcope.inspect import page, picture, summary, trace
from xcope.ops.terms import Separable
from xcope.positions import AttendModule, Scheme, Slot, registry


class OpenKeys(AttendModule):
    """Logits minus 0.5 times the keys between key and query whose gate is above ½."""

    def forward(self, q, logits, seen, inputs):
        return -0.5 * self.trace(q, logits, seen, inputs)["open keys"]

    def trace(self, q, logits, seen, inputs):
        gates = logits.sigmoid().masked_fill(~seen, 0.0)
        counts = (gates > 0.5).float().flip(-1).cumsum(-1).flip(-1).masked_fill(~seen, 0.0)
        return {"gates": gates, "open keys": counts}


class Weighed(AttendModule):
    """Logits plus what the key's token weighs, told by vectors: nothing calls `forward`."""

    remembers = True

    def __init__(self, dim, heads):
        super().__init__()
        self.to_weight = nn.Linear(dim, heads)

    def remember(self, x):
        return self.to_weight(x).mT

    def terms(self, remembered, i):
        return Separable(torch.zeros_like(remembered[..., -i:]), -remembered)

    def forward(self, q, logits, seen, inputs):
        return inputs.remembered[:, :, None].expand_as(logits)

    def trace(self, q, logits, seen, inputs):
        return {
            "weight <b>": self(q, logits, seen, inputs),
            "length": q.norm(dim=-1)[..., None] * seen,
        }


@dataclass(frozen=True, kw_only=True)
class Open(Scheme):
    """``position: open``."""

    name: ClassVar[str] = "open"
    title: ClassVar[str] = "Open keys"
    slot: ClassVar[Slot | None] = Slot.ATTEND
    oracle: ClassVar[str] = "formula"

    def build(self, geometry):
        return OpenKeys()


@dataclass(frozen=True, kw_only=True)
class Weight(Open):
    """``position: weight``."""

    name: ClassVar[str] = "weight"

    def build(self, geometry):
        return Weighed(geometry.dim, geometry.heads)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    schemes = {**registry._SCHEMES, "open": Open, "weight": Weight}
    monkeypatch.setattr(registry, "_SCHEMES", schemes)


MIXED = {"heads": ["open", {"name": "cope", "max_pos": 5}, "weight", "rotary"]}


def check_softmax(layer):
    logits = (layer.logits + layer.bias).masked_fill(~layer.seen, -torch.inf)
    torch.testing.assert_close(layer.attention, logits.softmax(-1), atol=1e-5, rtol=1e-4)


def test_gates_without_a_table_and_a_map_of_its_own(make, ids):
    for layer in trace(make("open"), ids).layers:
        check_softmax(layer)
        torch.testing.assert_close(layer.gates, layer.logits.sigmoid() * layer.seen)
        assert (layer.positions, layer.saturated, layer.max_pos) == (None, None, (None,) * 4)
        assert set(layer.named) == {"logits", "seen", "attention", "bias", "gates", "open keys"}
        torch.testing.assert_close(layer.bias, -0.5 * layer.maps["open keys"])
        wanted = sum((layer.gates[1, 2, 20, key] > 0.5).item() for key in range(3, 21))
        assert layer.maps["open keys"][1, 2, 20, 3] == wanted


def test_a_scheme_whose_bias_the_layer_writes_out(make, ids):
    model = make("weight", attn_num_mem_kv=2)
    for layer in trace(model, ids).layers:
        check_softmax(layer)
        assert layer.gates is None
        seen = layer.seen
        torch.testing.assert_close(layer.maps["weight <b>"][seen], layer.bias.expand_as(seen)[seen])
        assert layer.maps["weight <b>"][..., :2].abs().max() == 0  # memories are no tokens
        assert layer.maps["weight <b>"][..., 2:].abs().max() > 0


def test_queries_are_those_that_meet_the_keys(make, ids):
    plain, turned = (trace(make(p), ids).layers[0] for p in ("weight", ["rotary", "weight"]))
    torch.testing.assert_close(plain.maps["length"], turned.maps["length"])  # turning keeps it
    assert not torch.allclose(plain.logits, turned.logits)


def test_groups_of_heads_have_their_own_maps(make, ids):
    for layer in trace(make(MIXED), ids).layers:
        check_softmax(layer)
        assert layer.max_pos == (None, 5, None, None)
        assert [list(layer.further_maps(0, head)) for head in range(4)] == [
            ["gates", "open keys"], [], ["weight <b>", "length"], [],
        ]  # fmt: skip
        assert layer.gates.isnan().all(-1).all(-1).tolist() == [[False, False, True, True]] * 2


def test_heads_with_gates_are_summed_up_without_a_table(make, ids):
    traced = trace(make(MIXED), ids)
    opened, cope, weighed, plain = summary(traced)[:4]
    layer = traced.layers[0]
    assert opened.mean_gate == pytest.approx(layer.gates[:, 0][layer.seen[:, 0]].mean().item())
    assert opened.counted
    assert opened.saturated is None
    assert cope.saturated is not None
    assert (weighed.mean_gate, weighed.counted, plain.mean_gate) == (None, (), None)
    assert weighed.bias[0] < weighed.bias[1]


def test_a_notebook_tells_their_numbers(make, ids):
    traced = trace(make(MIXED, depth=1), ids)
    opened, cope, weighed, plain = traced._repr_html_().split("<tr>")[2:]
    layer = traced.layers[0]
    number = layer.maps["weight <b>"][0, 2, -1, -1]
    assert f"gate {layer.gates[0, 0, -1, -1]:.2f}, open keys " in opened
    assert "position" in cope
    assert f", weight &lt;b&gt; {number:.3g}, length " in weighed
    assert "attention" in plain
    assert "gate" not in plain


def test_a_picture_has_a_block_for_each_map(make, ids, tmp_path):
    heights = []
    for name in ("rotary", "weight"):
        traced = trace(make(name, depth=1), ids[0, :8])
        picture(traced, tmp_path / "one.png")
        image = imread(tmp_path / "one.png")
        heights.append(image.shape[0])
    assert heights[1] > 2.5 * heights[0]  # attention; attention, bias, and two maps


SHOWN = """() => [...document.querySelectorAll('#tokens .token i')].map(cell => cell.textContent)"""
SHADES = """() => [...document.querySelectorAll('#tokens .token')].map(
    cell => Number(cell.style.getPropertyValue('--a')))"""


def test_the_page_shows_them_under_their_own_names(make, ids, open_page, tmp_path):
    traced = trace(make(MIXED), ids[0])
    (tmp_path / "maps.html").write_text(page(traced), encoding="utf-8")
    opened = open_page(tmp_path / "maps.html")
    opened.wait_for_selector("body[data-ready]")

    def pick(group, word, value):
        opened.locator(f"#{group} label", has_text=word).click()
        opened.wait_for_selector(f"body[data-ready='{value}']")

    def views():
        return opened.locator("#views label").all_inner_texts()

    layer = traced.layers[0]
    assert views() == ["Positions", "Attention", "Bias", "Gates", "Open keys"]
    pick("views", "Open keys", "0-0-map:open keys")
    counts = layer.maps["open keys"][0, 0, -1]
    shown = [float(text) for text in opened.evaluate(SHOWN)]
    assert shown == pytest.approx(counts.tolist(), abs=0.06)
    most = layer.maps["open keys"][0, 0].max()
    assert opened.evaluate(SHADES) == pytest.approx((counts / most).tolist(), abs=0.002)
    assert "Largest open keys: 2 " in opened.inner_text("#detail")
    assert "open keys, as the scheme tells it" in opened.inner_text("#legend")
    pick("heads", "2", "0-2-attention")
    assert views()[4:] == ["Weight <b>", "Length"]
    pick("views", "Weight <b>", "0-2-map:weight <b>")
    weights = layer.maps["weight <b>"][0, 2, -1]
    shown = [float(text.replace("−", "-")) for text in opened.evaluate(SHOWN)]
    assert shown == pytest.approx(weights.tolist(), abs=0.06)
    opened.locator("#tokens .token").nth(20).click()
    opened.locator("#tokens .token").nth(4).hover()
    number = layer.maps["length"][0, 2, 20, 4]
    assert f"length {number:.2f}" in opened.inner_text("#detail")
