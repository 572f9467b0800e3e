"""A scheme of the attend slot that is defined in this file alone, through everything a user does.

It adds to each logit a learned multiple of a count: of the keys whose gate is above ½, from the
query back to the key.
"""

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import xcope
from gallery import sentence
from gallery.pictures import write_pictures
from xcope.config import build_model, load_config
from xcope.errors import FlagError
from xcope.inspect import page, trace
from xcope.modules import seam
from xcope.positions import AttendModule, Scheme, Slot, registry

pytestmark = pytest.mark.long

SIZE = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8, "verbose": False}


class CountOfOpenGates(AttendModule):
    """−m_h Σ_{t=j..i} [g_it > ½] w_t, with w = 1, or what the token says of itself."""

    def __init__(self, dim, heads, slope, gates, weighted):
        super().__init__()
        self.slope = nn.Parameter(torch.full((heads,), slope))
        self.gate_keys = None if gates == "keys" else gates
        self.gate_flag = "counted_gates"
        self.remembers = weighted
        self.weigh = nn.Linear(dim, heads) if weighted else None

    def remember(self, x):
        return self.weigh(x).mT.square()

    def open(self, q, logits, seen, inputs):
        if inputs.gate_k is not None:
            logits = q @ inputs.gate_k.mT
        return ((logits > 0) & seen).to(logits.dtype)

    def counts(self, q, logits, seen, inputs):
        counted = self.open(q, logits, seen, inputs)
        if inputs.remembered is not None:
            weighed = counted * inputs.remembered[:, :, None]
            counted = weighed.masked_fill(~seen, 0.0)
        return counted.flip(-1).cumsum(-1).flip(-1)

    def forward(self, q, logits, seen, inputs):
        return -self.slope[:, None, None] * self.counts(q, logits, seen, inputs)

    def trace(self, q, logits, seen, inputs):
        return {
            "gates": self.open(q, logits, seen, inputs),
            "counts": self.counts(q, logits, seen, inputs),
        }


@dataclass(frozen=True, kw_only=True)
class Counted(Scheme):
    """``position: counted``.

    Args:
        slope: where the multiple begins.
        gates: what the gates are made from: keys, own, values.
        weighted: tokens count for what they say of themselves.
    """

    name: ClassVar[str] = "counted"
    title: ClassVar[str] = "Counted gates"
    slot: ClassVar[Slot | None] = Slot.ATTEND
    paper: ClassVar[str] = "none"
    formula: ClassVar[str] = "q·k − m Σ [g > ½]"
    oracle: ClassVar[str] = "formula"

    slope: float = 0.3
    gates: str = "keys"
    weighted: bool = False

    def build(self, geometry):
        """The module of one layer."""
        self.require(self.gates in ("keys", "own", "values"), "gates", "keys, own or values")
        sizes = geometry.dim, geometry.heads
        return CountOfOpenGates(*sizes, self.slope, self.gates, self.weighted)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(registry, "_SCHEMES", {**registry._SCHEMES, "counted": Counted})


def model_of(position="counted", wrapper=None, **flags):
    torch.manual_seed(0)
    layers = xcope.Decoder(**SIZE | flags, position=position)
    model = xcope.TransformerWrapper(
        num_tokens=20, max_seq_len=64, attn_layers=layers, **(wrapper or {})
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("slope"):
                parameter.copy_(torch.linspace(0.1, 0.7, len(parameter)))
    return model.eval()


def tokens(rows=2, n=14):
    torch.manual_seed(1)
    return torch.randint(20, (rows, n))


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


VARIANTS = {
    "plain": {},
    "own": {"gates": "own"},
    "values": {"gates": "values"},
    "weighted": {"weighted": True},
    "both": {"gates": "own", "weighted": True},
}
PLACES = {
    "alone": lambda one: one,
    "rotary": lambda one: [one, "rotary"],
    "alibi": lambda one: [one, "alibi"],
    "layers": lambda one: {"layers": [one, "rotary"]},
    "heads": lambda one: {"heads": [one, "alibi"]},
    "heads_cope": lambda one: {"heads": [{"name": "cope", "sep_keys": True}, one]},
}
FLAGS = {
    "": {},
    "kv_heads": {"attn_kv_heads": 2},
    "one_kv_head": {"attn_one_kv_head": True},
    "memories": {"attn_num_mem_kv": 2},
}


@pytest.fixture(params=VARIANTS)
def one(request):
    return {"name": "counted", **VARIANTS[request.param]}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("flags", FLAGS)
def test_it_is_the_same_with_all_logits_held_and_not(one, place, flags):
    model = model_of(PLACES[place](one), **FLAGS[flags])
    x = tokens()
    mask = torch.arange(14) < torch.tensor([[14], [9]])
    for given in ({}, {"mask": mask}):
        with seam.logits_kept(model):
            held = model(x, **given)
        found = model(x, **given)
        rows = mask if given else torch.ones_like(mask)
        close(found[rows], held[rows])
        assert found.isfinite().all()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("flags", FLAGS)
def test_the_cache_changes_nothing(one, place, flags):
    model, x = model_of(PLACES[place](one), **FLAGS[flags]), tokens()
    whole = model(x)
    _, cache = model(x[:, :9], return_intermediates=True)
    for n in range(10, 15):
        logits, cache = model(x[:, :n], cache=cache, return_intermediates=True)
        close(logits[:, -1], whole[:, n - 1])


def test_generation_with_and_without_the_cache_is_alike(one):
    wrapped = xcope.AutoregressiveWrapper(model_of(one))
    texts = [wrapped.generate(tokens(), 12, temperature=0.0, cache_kv=kv) for kv in (True, False)]
    assert torch.equal(*texts)


@pytest.mark.parametrize("place", PLACES)
def test_a_row_that_is_padded_on_the_left_is_what_it_is_alone(one, place):
    model = model_of(PLACES[place](one))
    x = tokens(1, 14)
    padded = torch.cat((torch.zeros(1, 5, dtype=torch.long), x), dim=1)
    both = torch.cat((padded, tokens(1, 19)))
    found = model(both, seq_start_pos=torch.tensor([5, 0]))
    close(found[:1, 5:], model(x))


@pytest.mark.parametrize("place", PLACES)
def test_packed_documents_are_what_they_are_alone(one, place):
    model, x = model_of(PLACES[place](one)), tokens(1, 14)
    found = model(x, cu_seqlens=torch.tensor([0, 5, 5, 14]))
    close(found, torch.cat((model(x[:, :5]), model(x[:, 5:])), dim=1))


def test_it_trains_and_its_parameters_are_those_of_positions(one):
    model = model_of(one).train()
    learned = model.position_parameters()
    assert len(learned) == (6 if one.get("weighted") else 2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    wrapped, x, losses = xcope.AutoregressiveWrapper(model), tokens(4, 16), []
    before = [p.detach().clone() for p in learned]
    for _ in range(8):
        loss = wrapped(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    assert not any(torch.equal(a, b) for a, b in zip(learned, before, strict=True))


def test_it_is_what_its_formula_says():
    model = model_of(depth=1)
    (attention,) = seam.self_attentions(model.attn_layers)
    attention.to_out, x = nn.Identity(), torch.randn(1, 6, 32)
    q, k, v = (f(x).view(6, 4, 8) for f in (attention.to_q, attention.to_k, attention.to_v))
    slope, expected = attention.attend.cope.slope, torch.zeros(6, 4, 8)
    for h in range(4):
        for i in range(6):
            s = [(q[i, h] @ k[j, h] / 8**0.5) for j in range(i + 1)]
            s = [s[j] - slope[h] * sum(float(t > 0) for t in s[j:]) for j in range(i + 1)]
            weights = torch.stack(s).softmax(0)
            expected[i, h] = sum(weights[j] * v[j, h] for j in range(i + 1))
    found = attention(x, rotary_pos_emb=seam.Places(torch.arange(6)))
    close(found[0], expected.flatten(1))


def test_its_weights_are_saved_and_loaded(one, tmp_path):
    model, other = model_of({"heads": [one, "none"]}), model_of({"heads": [one, "none"]})
    assert any(".attend.cope.groups.0.slope" in name for name in model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt"), strict=True)
    close(other(tokens()), model(tokens()))


def test_flags_and_yaml_name_it(tmp_path):
    by_flag = xcope.Decoder(**SIZE, position="counted", counted_slope=0.5)
    assert by_flag.plan.label() == "counted(slope=0.5)"
    (tmp_path / "one.yaml").write_text(
        "model: {dim: 32, depth: 1, heads: 2, position: {name: counted, slope: 0.5}}\n"
        "task: {name: copy}\n"
    )
    model = build_model(load_config(tmp_path / "one.yaml"))
    assert model.plan.label() == "counted(slope=0.5)"
    with pytest.raises(FlagError, match="did you mean 'slope'"):
        xcope.Decoder(**SIZE, position={"name": "counted", "slop": 1.0})
    with pytest.raises(FlagError, match="counted_gates='value' is not allowed"):
        xcope.Decoder(**SIZE, position="counted", counted_gates="value")


def test_it_is_traced(one):
    traced = trace(model_of({"layers": [one, ["rotary", one], "alibi"]}, depth=3), tokens())
    for layer in traced.layers[:2]:
        assert layer.named["counts"].shape == (2, 4, 14, 14)
        assert set(layer.gates.unique().tolist()) <= {0.0, 1.0}
        slope = torch.linspace(0.1, 0.7, 4)[:, None, None]
        close(layer.bias[layer.seen], (-slope * layer.named["counts"])[layer.seen])
        weights = (layer.logits + layer.bias).masked_fill(~layer.seen, -torch.inf).softmax(-1)
        close(layer.attention, weights)
    assert "counts" not in traced.layers[2].named
    assert '"counts"' in page(traced)


def test_it_is_drawn_and_gets_its_page(one, tmp_path):
    (tmp_path / "configs/schemes").mkdir(parents=True)
    (tmp_path / "configs/schemes/counted.yaml").write_text(f"model:\n  position: {one}\n")
    panels = sentence.attend_panels(Counted(**{k: v for k, v in one.items() if k != "name"}))
    assert any("counts" in panel.title for panel in panels)
    (picture,) = write_pictures(tmp_path / "out", tmp_path, ["counted"])
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("position", "flags", "said"),
    [
        (["counted", "cope"], {}, "both fill the attend slot"),
        (["counted", "forgetting"], {}, "both fill the attend slot"),
        ("counted", {"cross_attend": True, "only_cross": True}, "acts in self-attention"),
        (
            {"name": "counted", "gates": "values"},
            {"attn_value_dim_head": 16},
            "counted_gates=True needs values as wide as the keys",
        ),
        (
            {"name": "counted", "gates": "own"},
            {"attn_qk_norm": True, "attn_qk_norm_dim_scale": True},
            "counted_gates=True does not go together with attn_qk_norm_dim_scale",
        ),
        (
            {"name": "counted", "weighted": True},
            {"integrate_layers": True, "depth": 4},
            "position 'counted' does not go together with qkv_receive_diff_residuals",
        ),
    ],
    ids=str,
)
def test_it_is_refused_where_it_makes_no_sense(position, flags, said):
    with pytest.raises(FlagError) as caught:
        xcope.Decoder(**SIZE | flags, position=position)
    assert said in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_it_runs_in_every_dtype(one, dtype):
    model, x = model_of([one, "alibi"]).to(dtype), tokens()
    found = model(x)
    with seam.logits_kept(model):
        held = model(x)
    assert found.dtype == held.dtype == dtype
    near = {"atol": 1e-6, "rtol": 1e-6} if dtype is torch.float64 else {"atol": 0.1, "rtol": 0.1}
    torch.testing.assert_close(found, held, **near)
    _, cache = model(x[:, :9], return_intermediates=True)
    last, _ = model(x[:, :10], cache=cache, return_intermediates=True)
    torch.testing.assert_close(last[:, -1], found[:, 9], **near)


def test_it_runs_under_autocast(one):
    model, x = model_of(one), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(x)
    torch.testing.assert_close(found.float(), model(x), atol=0.1, rtol=0.1)


def test_a_number_that_is_not_finite_reaches_only_rows_that_see_it(one):
    model, x = model_of(one), tokens(1, 8) % 19
    with torch.no_grad():
        model.token_emb.emb.weight[19] = torch.nan
    x[0, 5] = 19
    logits = model(x)
    assert logits[:, :5].isfinite().all()
    assert logits[:, 5:].isnan().all()


def test_it_is_copied_and_exported_and_takes_no_rows(one):
    model, x = model_of(one), tokens()
    close(copy.deepcopy(model)(x), model(x))
    length = torch.export.Dim("n", min=2, max=60)
    program = torch.export.export(model, (x,), dynamic_shapes=({1: length},)).module()
    close(program(tokens(2, 20)), model(tokens(2, 20)))
    assert model(x[:0]).shape == (0, 14, 20)


def test_it_compiles(one):
    torch._dynamo.reset()  # else what is compiled already is compared with first
    model, x = model_of(one), tokens()
    close(torch.compile(model, backend="aot_eager")(x), model(x))
