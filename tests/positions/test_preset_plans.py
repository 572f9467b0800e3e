"""Presets become plans of layers: in Python, YAML and sweeps, with names and errors for people.

tests/integrations/test_presets.py holds each to transformers.
"""

import json
from itertools import pairwise

import pytest
import torch
import yaml

import xcope
from xcope import Decoder, cli, describe
from xcope.cli.schemes import of_preset
from xcope.compare.run.plan import as_text, plan
from xcope.config import ConfigError, load_config
from xcope.errors import FlagError
from xcope.positions import parse, presets

SMALL = {"phi3": {"short_factor": None, "long_factor": None}}
"""What a small model needs where the released sizes fit one width alone."""
CONFIG = {
    "model": {"dim": 16, "depth": 2, "heads": 2, "position": "none"},
    "task": {"name": "selective_copy", "tokens": 3, "blanks": 9},
    "train": {"steps": 1, "batch_size": 4, "device": "cpu"},
}


def names(position):
    """Of the schemes of each layer."""
    return [[one.name for one in layer[0]] for layer in parse(position).layers]


def test_smollm3_has_no_rotary_in_every_fourth_layer_the_last_of_36_among_them():
    decoder = Decoder(dim=16, depth=36, heads=2, position={"preset": "smollm3"})
    parts = [
        attention.attend.parts for attention in decoder.modules() if hasattr(attention, "to_q")
    ]
    without = [layer for layer, (part,) in enumerate(parts) if part.rotation is None]
    assert without == [3, 7, 11, 15, 19, 23, 27, 31, 35]


def test_gemma3_divides_angles_only_where_there_is_no_window():
    *local, last = parse({"preset": "gemma3"}).layers
    assert names({"preset": "gemma3"}) == [["rotary", "window"]] * 5 + [["rotary_linear"]]
    assert {(one.base, one.interpolation_factor) for ((one, _),) in local} == {(1e4, 1.0)}
    ((linear,),) = last
    assert (linear.base, linear.factor) == (1e6, 8.0)


def test_gpt_oss_scales_rotary_in_windows_too_and_does_not_round_the_ramp():
    (windowed,), (whole,) = parse({"preset": "gpt_oss"}).layers
    assert [one.name for one in windowed] == ["rotary_yarn", "window", "sink"]
    assert [one.name for one in whole] == ["rotary_yarn", "sink"]
    assert windowed[0] == whole[0]
    assert not whole[0].truncate


@pytest.mark.parametrize("name", presets())
def test_each_preset_runs_in_a_small_decoder(name):
    position = {"preset": name, **SMALL.get(name, {})}
    decoder = Decoder(dim=8, depth=6, heads=2, attn_dim_head=8, ff_mult=1, position=position)
    x = torch.randn(1, 5, 8)
    assert decoder(x).shape == x.shape
    assert decoder.plan.label() == presets()[name](**SMALL.get(name, {})).label()
    assert decoder.plan == parse(presets()[name](**SMALL.get(name, {})).position())


@pytest.mark.parametrize("name", presets())
def test_each_preset_says_whose_it_is_and_what_its_sizes_mean(name):
    kind = presets()[name]
    assert kind.title
    assert any(f" {year}," in kind.source for year in range(2019, 2027))
    documented = "".join(base.__doc__ or "" for base in kind.__mro__)
    assert [option for option in kind.options() if f"{option}:" not in documented] == []


# -- names -----------------------------------------------------------------------------------------


def test_a_plan_goes_by_the_name_of_its_preset_until_something_changes():
    assert parse({"preset": "gemma3", "window": 64}).label() == "gemma3(window=64)"
    assert parse(["absolute", {"preset": "bloom"}]).label() == "absolute+alibi"
    turned = {"dim": 16, "depth": 4, "heads": 2, "position": {"preset": "smollm3"}}
    assert Decoder(**turned).plan.label() == "smollm3"
    assert Decoder(**turned, rotary_random_max=64).plan.label().startswith("layers(rotary(")


def test_as_text_names_a_preset_as_its_label_does():
    for position in ({"preset": "gemma3"}, {"preset": "gemma3", "window": 64}):
        assert as_text(position) == parse(position).label()


@pytest.mark.parametrize(
    ("position", "words"),
    [
        ({"preset": "gema3"}, "'gema3' is not a preset: .*did you mean 'gemma3'"),
        ({"preset": "gemma3", "windw": 3}, "no option 'windw': .*did you mean 'window'"),
        ({"preset": "cope"}, r"'cope' is not a preset: .*; write \{name: cope\}"),
        ("gemma3", r"'gemma3' is not a scheme: .*; write \{preset: gemma3\}"),
        ({"name": "gemma3"}, r"'gemma3' is not a scheme: .*; write \{preset: gemma3\}"),
        ({"preset": "gemma3", "name": "cope"}, "'gemma3' has no option 'name'"),
        ({"preset": 3}, "preset=3 is no name: choose among 'bloom'"),
        ({"preset": "gemma3", "window": "64"}, "gemma3_window='64' is not of type int"),
        ({"preset": "gemma3", "every": 0}, "gemma3_every=0 is not allowed: it must be"),
        ({"presets": "gemma3"}, "lacks 'name': .*did you mean 'preset'"),
        ({"layers": [{"preset": "gemma3"}, "cope"]}, "preset 'gemma3', of layers, within 'layers'"),
        ({"heads": [{"preset": "gemma3"}, "cope"]}, "a split within 'heads'"),
        ([{"preset": "mistral"}, "rotary"], "'rotary' and 'rotary' both fill the rotation slot"),
    ],
)
def test_a_wrong_preset_is_refused_with_what_to_write(position, words):
    with pytest.raises(FlagError, match=words):
        parse(position)


def test_what_a_preset_lays_down_may_stand_beside_others():
    assert names(["absolute", {"preset": "bloom"}]) == [["absolute", "alibi"]]
    assert names({"layers": [{"preset": "qwen3"}, "cope"]}) == [["rotary"], ["cope"]]
    assert names([{"preset": "command_a"}, "sink"])[-1] == ["sink"]


def test_sizes_that_fit_one_width_alone_are_told_by_the_presets_own_option():
    with pytest.raises(
        FlagError, match=r"preset 'phi3': .*\{preset: phi3, short_factor: …\}"
    ) as told:
        Decoder(dim=16, depth=2, heads=2, position={"preset": "phi3"})
    assert told.value.flag == "phi3_short_factor"


def test_a_decoder_that_is_too_shallow_is_told_how_to_have_the_preset():
    with pytest.raises(FlagError, match=r"write \{preset: gemma3, every: 2\}"):
        Decoder(dim=16, depth=2, heads=2, position={"preset": "gemma3"})
    decoder = Decoder(dim=16, depth=2, heads=2, position={"preset": "gemma3", "every": 2})
    assert len(decoder.plan.layers) == 2


# -- YAML ------------------------------------------------------------------------------------------


def written(folder, **model):
    file = folder / "x.yaml"
    file.write_text(yaml.safe_dump({**CONFIG, "model": CONFIG["model"] | model}))
    return file


def test_xcope_config_prints_what_a_preset_stands_for_and_loads_back(tmp_path, capsys):
    file = written(tmp_path, position={"preset": "gemma3", "window": 8, "every": 2})
    assert cli.run(cli.xcope, ["config", str(file)], prog="xcope") == 0
    out = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(out)
    assert load_config(tmp_path / "again.yaml", data=False) == load_config(file, data=False)
    stood_for = out.split("# gemma3(every=2, window=8), Gemma 3 4B to 27B (Google 2025, ")[1]
    block = [line.strip().removeprefix("#") for line in stood_for.splitlines()[1:4]]
    resolved = yaml.safe_load("\n".join(block))
    assert parse(resolved) == parse({"preset": "gemma3", "window": 8, "every": 2})


def test_a_sweep_runs_presets_beside_schemes(tmp_path):
    mine = {"preset": "smollm3", "every": 2}
    config = {**CONFIG, "sweep": {"model.position": ["cope", mine, {"preset": "qwen3"}]}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    runs = plan(load_config(tmp_path / "x.yaml", sweep=True, data=False), tmp_path / "out")
    assert [run.scheme for run in runs] == ["cope", "smollm3(every=2)", "qwen3"]
    assert all("layers" not in run.name for run in runs)


@pytest.mark.parametrize(
    ("position", "words"),
    [
        ({"preset": "gema3"}, "model.position: .*did you mean 'gemma3'"),
        ({"preset": "gemma3", "window": 0}, "model.position.window: gemma3_window=0 is not"),
        ({"preset": "gemma3", "window": 10**9}, "model.position.window: .*at most"),
        ({"preset": "gemma3", "every": "2"}, "model.position.every: "),
    ],
)
def test_a_config_says_where_its_preset_is_wrong(tmp_path, position, words):
    with pytest.raises(ConfigError, match=words):
        load_config(written(tmp_path, position=position), data=False)


def test_xcope_schemes_lists_presets_and_tells_of_one(capsys):
    assert cli.run(cli.xcope, ["schemes"], prog="xcope") == 0
    listed = capsys.readouterr().out
    titles = [line for before, line in pairwise(listed.splitlines()) if not before]
    assert titles[: len(titles) - 2] == [one.value for one in xcope.schemes().families()]
    assert titles[-2].startswith("presets of released models")
    for name, kind in presets().items():
        told = of_preset(name, describe.of_preset(kind))
        assert f"{name}: {kind.title}" in told
        assert f"{{preset: {name}}}" in told
        assert all(option in told for option in kind.options())
        lines = told.rpartition("It stands for\n")[2]
        assert parse(yaml.safe_load(lines)) == parse({"preset": name})
    assert cli.run(cli.xcope, ["schemes", name], prog="xcope") == 0
    assert capsys.readouterr().out.rstrip().endswith(told)


def test_presets_are_plain_data():
    for kind in presets().values():
        json.dumps(kind().position())
