"""The contract with x-transformers: what is relied on is there, and its loss is a clear error."""

import ast
import copy
import importlib.metadata
import pathlib
import tomllib

import pytest
import torch
from packaging.specifiers import SpecifierSet

import xcope
from xcope.integrations.x_transformers import revert
from xcope.modules import seam

ROOT = pathlib.Path(__file__).parents[2]


def test_installed_version_is_supported_and_pyproject_says_the_same():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (stated,) = (d for d in project["dependencies"] if d.startswith("x-transformers"))
    assert SpecifierSet(stated.removeprefix("x-transformers")) == SpecifierSet(seam.SUPPORTED)
    assert importlib.metadata.version("x-transformers") in SpecifierSet(seam.SUPPORTED)


def test_only_the_seam_and_what_converts_its_models_import_x_transformers():
    importers = set()
    for path in (ROOT / "xcope").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if any(name.split(".")[0] == "x_transformers" for name in names):
                importers.add(path.relative_to(ROOT).as_posix())
    assert importers == {"xcope/modules/seam.py", "xcope/integrations/x_transformers.py"}


@pytest.mark.parametrize("attribute", ["rotary_pos_emb", "attn_heads", "residual_attn"])
def test_a_moved_attribute_of_the_layers_names_the_supported_versions(attribute):
    layers = xcope.Decoder(dim=16, depth=1, heads=2, attn_dim_head=8)
    delattr(layers, attribute)
    with pytest.raises(seam.SeamError, match=rf"no {attribute}.*{seam.SUPPORTED}"):
        seam.check_layers(layers)


def test_a_moved_keyword_names_the_supported_versions(monkeypatch):
    layers = xcope.Decoder(dim=16, depth=1, heads=2, attn_dim_head=8)
    monkeypatch.setattr(seam.Attend, "forward", lambda self, q, k, v: q)
    with pytest.raises(seam.SeamError, match=rf"has no flash_pack_seq_kwargs.*{seam.SUPPORTED}"):
        seam.check_layers(layers)


@pytest.mark.parametrize("attribute", ["scale", "cope", "selective"])
def test_a_moved_attribute_of_attend_names_the_supported_versions(attribute):
    layers = xcope.Decoder(dim=16, depth=1, heads=2, attn_dim_head=8)
    (attention,) = seam.self_attentions(layers)
    del vars(attention.attend)[attribute]
    with pytest.raises(seam.SeamError, match=rf"Attend has no {attribute}"):
        seam.check_layers(layers)


def test_a_moved_attribute_of_the_wrapper_names_the_supported_versions():
    model = xcope.TransformerWrapper(
        num_tokens=4, max_seq_len=4, attn_layers=xcope.Decoder(dim=16, depth=1, heads=2)
    )
    del model.pos_emb
    with pytest.raises(seam.SeamError, match="no pos_emb"):
        seam.check_wrapper(model)


def test_self_attentions_are_found_inside_wrappers_and_beside_cross_attention():
    layers = xcope.Decoder(
        dim=16,
        depth=2,
        heads=2,
        attn_dim_head=8,
        cross_attend=True,
        use_layerscale=True,
        shift_tokens=1,
        position="cope",
    )
    found = seam.self_attentions(layers)
    assert len(found) == 2
    assert all(isinstance(attention.attend, seam.SchemeAttend) for attention in found)
    cross = [m for m in layers.modules() if type(m).__name__ == "Attention" and m not in found]
    assert len(cross) == 2
    assert not any(isinstance(attention.attend, seam.SchemeAttend) for attention in cross)


@pytest.mark.parametrize("unit_offset", [False, True])
@pytest.mark.parametrize("weights", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_a_fused_layer_norm_is_that_of_x_transformers(unit_offset, weights, given, autocast):
    theirs = seam.LayerNorm(16, unit_offset).to(weights)
    torch.nn.init.normal_(theirs.gamma)
    ours = copy.deepcopy(theirs)
    ours.__class__ = seam.FusedLayerNorm
    x = torch.randn(2, 3, 16, dtype=given)
    found = []
    for norm in (theirs, ours):
        mine = x.clone().requires_grad_()
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
            out = norm(mine)
        (out.to(torch.float64) * torch.linspace(-1, 1, 16, dtype=torch.float64)).sum().backward()
        found.append((out, mine.grad, norm.gamma.grad))
    widest = {torch.float16: 2e-3, torch.bfloat16: 2e-2}
    tolerance = max(widest.get(weights, 1e-6), widest.get(given, 1e-6))
    for their, our in zip(*found, strict=True):
        torch.testing.assert_close(our, their, atol=4 * tolerance, rtol=tolerance)


def test_what_stands_in_for_modules_of_x_transformers_is_given_back():
    """Whatever stands in: with the same parameters, and no other."""
    flags = {"shift_tokens": 1, "orthog_residual": True}
    flags |= {"attn_gate_values": True, "attn_gate_values_rank": 4}
    layers = xcope.Decoder(dim=16, depth=1, heads=2, attn_dim_head=8, **flags)
    assert {*seam._OURS_OF.values()} <= {*map(type, layers.modules())}
    assert {*seam._OURS_OF}.isdisjoint(map(type, layers.modules()))
    keys = list(layers.state_dict())
    revert(layers)
    assert {*seam._OURS_OF} <= {*map(type, layers.modules())}
    assert {*seam._OURS_OF.values()}.isdisjoint(map(type, layers.modules()))
    assert list(layers.state_dict()) == keys
