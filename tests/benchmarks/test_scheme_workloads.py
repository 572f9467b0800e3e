"""What is measured of a scheme is the scheme: all of it, and the same on both sides."""

import pytest
import torch

import xcope
from benchmarks.schemes import workloads
from benchmarks.schemes.workloads import TOKENS, Layer, Plain, memory, position, rivals
from xcope.config import ConfigError
from xcope.modules import seam

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
    plain, rotary = memory(None, 512, 1), memory("rotary", 512, 1)
    assert plain < rotary < 3 * plain


def test_a_scheme_without_options_in_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(workloads, "LIBRARY", tmp_path)
    with pytest.raises(ConfigError, match=r"rotary\.yaml: there is no such file"):
        position("rotary")
    (tmp_path / "schemes").mkdir()
    (tmp_path / "schemes" / "rotary.yaml").write_text("model: {dim: 8}\n")
    with pytest.raises(ConfigError, match=r"model\.position: expected a scheme"):
        position("rotary")
