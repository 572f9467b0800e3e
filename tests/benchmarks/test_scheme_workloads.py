"""What is measured of a scheme is the scheme: all of it, and the same on both sides."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import xcope
from benchmarks.schemes import costs, workloads
from benchmarks.schemes.naive import BLOCK, NAIVE, works
from benchmarks.schemes.workloads import TOKENS, Layer, Plain, Scale, memory, position, rivals
from xcope.config import ConfigError
from xcope.modules import seam
from xcope.positions import AttendModule, Scheme, Slot, registry

N = 48
NAMES = list(xcope.schemes())


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_of_a_scheme_gets_its_gradient(name):
    """Those that a whole decoder of the scheme has beside its plain ones."""
    layer = Layer(name, N)
    gradients = [g for part in layer.gradients() for g in part]
    given = [*layer.given, *layer.given_before]
    assert [g.shape for g in gradients] == [t.shape for t in given]
    assert all(g.isfinite().all() for g in gradients)
    assert all(g.abs().sum() > 0 for g in gradients[:3])

    def shapes(chosen):
        decoder = xcope.Decoder(
            dim=workloads.DIM, depth=1, heads=workloads.HEADS, position=chosen, verbose=False
        )
        model = xcope.TransformerWrapper(num_tokens=4, max_seq_len=N, attn_layers=decoder)
        return sorted(tuple(parameter.shape) for parameter in model.parameters())

    own = sorted(tuple(t.shape) for t in given if isinstance(t, torch.nn.Parameter))
    assert sorted([*shapes("none"), *own]) == shapes(position(name))


def test_no_positions_are_plain_attention():
    (gradients,) = Layer("none", N).gradients()
    torch.testing.assert_close(gradients, Plain(N).gradients())


def test_positions_change_attention():
    (gradients,) = Layer("rotary", N).gradients()
    assert (gradients[0] - Plain(N).gradients()[0]).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("name", "reads"), [("forgetting", True), ("cope_absolute", True), ("rotary", False)]
)
def test_embeddings_take_part_where_a_scheme_reads_them(name, reads):
    layer = Layer(name, N)
    read = [t for t in (*layer.given, *layer.given_before) if t.shape == (1, N, workloads.DIM)]
    assert len(read) == len(layer.x) == reads


@pytest.mark.parametrize("name", [n for n in NAMES if xcope.schemes()[n].counterpart()])
@torch.no_grad()
def test_the_rivals_compute_the_same(name):
    pair = rivals(name, N)
    tokens = torch.randint(TOKENS, (1, N))
    torch.testing.assert_close(pair.ours(tokens), pair.theirs(tokens), atol=1e-4, rtol=1e-4)
    attend = seam.self_attentions(pair.theirs.attn_layers)[0].attend
    assert attend.flash == pair.flash


def test_schemes_that_x_transformers_lacks_have_no_rival():
    assert rivals("fire", N) is None


def test_memory_is_that_of_the_scheme():
    # many tokens: what a process takes once must not weigh
    plain, rotary = memory(None, 4096, 1), memory("rotary", 4096, 1)
    assert plain < rotary < 1.5 * plain


def test_a_scheme_without_options_in_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(workloads, "LIBRARY", tmp_path)
    with pytest.raises(ConfigError, match=r"rotary\.yaml: there is no such file"):
        position("rotary")
    (tmp_path / "schemes").mkdir()
    (tmp_path / "schemes" / "rotary.yaml").write_text("model: {dim: 8}\n")
    with pytest.raises(ConfigError, match=r"model\.position: expected a scheme"):
        position("rotary")


class Weighed(AttendModule):
    """a_h (q·g) w: gates' keys of their own, and what each token says of itself."""

    gate_keys = "own"
    remembers = True

    def __init__(self, dim, heads):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.full((heads,), 0.3))
        self.weigh = torch.nn.Linear(dim, heads)

    def remember(self, x):
        return self.weigh(x).mT

    def forward(self, q, logits, seen, inputs):
        return self.slope[:, None, None] * (q @ inputs.gate_k.mT) * inputs.remembered[:, :, None]


@dataclass(frozen=True, kw_only=True)
class WeighedScheme(Scheme):
    """``position: weighed``."""

    name: ClassVar[str] = "weighed"
    title: ClassVar[str] = "Weighed"
    slot: ClassVar[Slot | None] = Slot.ATTEND
    paper: ClassVar[str] = "none"
    formula: ClassVar[str] = "q·k + a (q·g) w"
    oracle: ClassVar[str] = "formula"

    def build(self, geometry):
        """The module of one layer."""
        return Weighed(geometry.dim, geometry.heads)


def test_a_scheme_of_ones_own_is_measured_like_any_other(tmp_path, monkeypatch):
    """It is registered and has its options in a file; nothing else knows of it."""
    monkeypatch.setattr(registry, "_SCHEMES", {**registry._SCHEMES, "weighed": WeighedScheme})
    monkeypatch.setattr(workloads, "LIBRARY", tmp_path)
    (tmp_path / "schemes").mkdir()
    (tmp_path / "schemes" / "weighed.yaml").write_text("model: {position: weighed}\n")
    layer = Layer("weighed", N)
    (gradients,) = layer.gradients()
    shapes = [tuple(t.shape) for t in layer.given]
    heads = (1, workloads.HEADS, N, workloads.DIM_HEAD)
    assert shapes[:5] == [heads, heads, heads, (1, N, workloads.DIM), heads]
    assert sorted(shapes[5:]) == [(8,), (8,), (8, workloads.DIM)]
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients)

    monkeypatch.setattr(costs, "memory", lambda name, n, threads: 100 if name is None else 130)
    (cost,) = costs.costs(["weighed"], Scale(n=16, repeats=1, slow=1), threads=1)
    assert (cost.scheme, cost.memory, cost.upstream) == ("weighed", 1.3, None)
    assert cost.time > 0


@pytest.mark.parametrize("name", NAIVE)
def test_naive_versions_compute_the_same(name):
    theirs, ours = works(name, 2 * BLOCK, 2, 16)
    for mine, naive in zip(ours(), theirs(), strict=True):
        torch.testing.assert_close(mine, naive, atol=1e-4, rtol=1e-3)
