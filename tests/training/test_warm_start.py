"""A run that begins with the weights of another: what fits, what it says, what it leaves."""

import json
import shutil
from pathlib import Path

import pytest
import schemes
import torch
from training_runs import TINY, At, MakeConfig, assert_same_run, press_ctrl_c, weights

from xcope.config import ConfigError, build_model, build_task, load_config
from xcope.training import RunInterruptedError, load_run, train
from xcope.training.warm import check_start, warm_start


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A run with rotary positions, whose every weight has moved."""
    folder = tmp_path_factory.mktemp("source")
    file = folder / "tiny.yaml"
    file.write_text(json.dumps(TINY))
    train(load_config(file, ["model.depth=2"]), folder / "run")
    return folder / "run"


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(ids)


def begun(tiny: MakeConfig, source: Path, *overrides: str):
    """The model of a config as it begins with the weights of ``source``, and what it says."""
    config = tiny("model.depth=2", f"train.init_from={source}", *overrides)
    torch.manual_seed(1)
    model = build_model(config)
    check_start(config)
    return model, warm_start(model, config)


IDS = torch.randint(6, (2, 10), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("extra", ["", ", per_head: true", ", soft_onehot: true, max_pos: 5"])
def test_fresh_tables_beside_rotary_leave_the_outputs_unchanged(tiny, source, extra):
    model, said = begun(tiny, source, f"model.position=[rotary, {{name: cope{extra}}}]")
    torch.testing.assert_close(
        logits(model, IDS), logits(load_run(source)[1], IDS), atol=1e-6, rtol=0
    )
    assert {name.rpartition(".")[2] for name in said.new} == {"pos_emb"}
    assert not said.dropped
    assert not said.in_part
    assert "new: attn_layers.layers.{0,2}.1.attend.cope.pos_emb" in "\n".join(said.lines())


def test_rotary_to_cope_is_the_model_without_positions(tiny, source):
    model, _ = begun(tiny, source, "model.position=cope")
    bare, _ = begun(tiny, source, "model.position=none")
    torch.testing.assert_close(logits(model, IDS), logits(bare, IDS), atol=1e-6, rtol=0)
    assert (logits(bare, IDS) - logits(load_run(source)[1], IDS)).abs().max() > 1e-3


@pytest.mark.parametrize("scheme", schemes.NAMES)
def test_every_scheme_takes_over_all_weights_that_are_no_positions(tiny, source, scheme):
    model, said = begun(tiny, source, f"model.position={json.dumps(schemes.position(scheme))}")
    theirs = weights(source)
    state = model.state_dict()
    own = {id(parameter) for parameter in model.position_parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) in own:
            assert name in said.new
        else:
            assert torch.equal(parameter, theirs[name])
            assert name in said.taken
    assert said.taken
    assert {*said.taken, *said.new} <= state.keys()


@pytest.mark.parametrize(("then", "now"), [(20, 7), (7, 20)])
def test_a_table_of_places_takes_over_the_rows_that_fit(tiny, tmp_path, then, now):
    size = "model.position=absolute"
    train(tiny(size, f"model.max_seq_len={then + 10}"), tmp_path / "one")
    model, said = begun(
        tiny, tmp_path / "one", size, f"model.max_seq_len={now + 10}", "model.depth=1"
    )
    (name,) = said.in_part
    old, new = weights(tmp_path / "one")[name], model.state_dict()[name]
    rows = min(then, now) + 10
    assert torch.equal(new[:rows], old[:rows])
    torch.manual_seed(1)
    fresh = build_model(tiny(size, f"model.max_seq_len={now + 10}")).state_dict()[name]
    assert torch.equal(new[rows:], fresh[rows:])


def test_a_longer_table_of_cope_gives_what_the_shorter_gave(tiny, tmp_path):
    """Counts beyond a table share its last entry."""
    cope = "model.position={{name: cope, max_pos: {}, per_head: {}}}"
    for per_head in ("false", "true"):
        train(tiny(cope.format(3, per_head)), tmp_path / per_head)
        model, said = begun(tiny, tmp_path / per_head, cope.format(9, per_head), "model.depth=1")
        old = load_run(tmp_path / per_head)[1]
        assert float(next(iter(old.position_parameters())).detach().abs().max()) > 1e-3
        torch.testing.assert_close(logits(model, IDS), logits(old, IDS), atol=1e-6, rtol=0)
        assert len(said.in_part) == 1
    shorter, said = begun(tiny, tmp_path / "false", cope.format(2, "false"), "model.depth=1")
    (name,) = said.in_part
    assert torch.equal(shorter.state_dict()[name], weights(tmp_path / "false")[name][:2])


def test_depth_may_change(tiny, source):
    deeper, said = begun(tiny, source, "model.depth=3")
    assert {name.split(".")[2] for name in said.new} == {"4", "5"}
    assert torch.equal(
        deeper.state_dict()["attn_layers.layers.3.1.ff.2.weight"],
        weights(source)["attn_layers.layers.3.1.ff.2.weight"],
    )
    _, said = begun(tiny, source, "model.depth=1")
    assert {name.split(".")[2] for name in said.dropped} == {"2", "3"}
    assert not said.new


def test_another_vocabulary_begins_afresh_and_is_told(tiny, source):
    _, said = begun(tiny, source, "task.values=9")
    assert said.new.keys() == said.dropped.keys() == {"token_emb.emb.weight", "to_logits.weight"}
    _, said = begun(tiny, source, "task={name: parity}")
    assert "task.name=selective_copy" in "\n".join(said.lines())


def test_weights_that_two_modules_share_are_taken_once(tiny, tmp_path):
    train(tiny("model.tie_embedding=true"), tmp_path / "tied")
    tied = ("model.tie_embedding=true", "model.depth=1")
    model, said = begun(tiny, tmp_path / "tied", *tied, "model.position=cope")
    assert said.dropped.keys() == {"attn_layers.rotary_pos_emb.inv_freq"}
    assert torch.equal(
        model.token_emb.emb.weight, weights(tmp_path / "tied")["token_emb.emb.weight"]
    )


def test_a_run_says_and_keeps_what_it_took_over_and_goes_on_without_its_source(
    tiny, source, tmp_path
):
    shutil.copytree(source, tmp_path / "source")
    config = tiny("model.depth=2", "model.position=cope", f"train.init_from={tmp_path / 'source'}")
    reporter = At(0, press_ctrl_c)
    train(config, tmp_path / "whole", reporter=reporter)
    kept = json.loads((tmp_path / "whole" / "init_from.json").read_text())
    assert kept["run"] == str(tmp_path / "source")
    assert kept["step"] == 12
    assert len(kept["taken"]) > 20
    assert len(kept["new"]) == 2
    assert "begin as in" in reporter.notes[0]
    with pytest.raises(RunInterruptedError):
        train(config, tmp_path / "cut", reporter=At(7, press_ctrl_c))
    shutil.rmtree(tmp_path / "source")
    train(load_config(tmp_path / "cut" / "config.yaml"), tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_the_path_begins_at_the_file_and_an_unfinished_run_gives_its_checkpoint(tiny, tmp_path):
    with pytest.raises(RunInterruptedError):
        train(tiny(), tmp_path / "cut", reporter=At(7, press_ctrl_c))
    file = tmp_path / "next.yaml"
    file.write_text("extends: tiny.yaml\ntrain: {init_from: cut, steps: 1, lr: 1.0e-30}\n")
    config = load_config(file)
    assert config.train.init_from == str(tmp_path / "cut")
    train(config, tmp_path / "next")
    then, now = weights(tmp_path / "cut"), weights(tmp_path / "next")
    assert all(torch.equal(then[name], now[name]) for name in then)


@pytest.mark.parametrize("wrong", ["nothing", "empty", "damaged", "unfit"])
def test_what_cannot_be_begun_with_is_told_before_anything_is_trained(
    tiny, source, tmp_path, wrong
):
    shutil.copytree(source, tmp_path / "damaged")
    (tmp_path / "damaged" / "checkpoint" / "model.safetensors").write_bytes(b"nothing")
    (tmp_path / "empty").mkdir()
    from_run = source if wrong == "unfit" else tmp_path / wrong
    tiny()
    file = tmp_path / "next.yaml"
    file.write_text(
        f"extends: tiny.yaml\nmodel: {{dim: {32 if wrong == 'unfit' else 16}}}\n"
        f"train:\n  init_from: {from_run}\n"
    )
    words = {
        "nothing": "there is no folder",
        "empty": "there is no checkpoint",
        "damaged": "cannot be read",
        "unfit": r"no weight of .* its token_emb.emb.weight is \(6 16\), this model's \(6 32\)",
    }
    with pytest.raises(ConfigError, match=words[wrong]) as caught:
        train(load_config(file), tmp_path / "run")
    assert (caught.value.line, caught.value.key) == (4, "train.init_from")
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_cleared_to_begin_with_itself(tiny, tmp_path):
    train(tiny(), tmp_path / "run")
    config = tiny(f"train.init_from={tmp_path / 'run'}", "train.seed=3")
    with pytest.raises(ConfigError, match="is cleared for the new run"):
        train(config, tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "results.json").exists()


def test_the_source_is_only_read_and_none_of_its_code_is_run(tiny, source, tmp_path):
    shutil.copytree(source, tmp_path / "other")
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')\n")
    with (tmp_path / "other" / "config.yaml").open("a") as config:
        config.write(f"import: [{tmp_path / 'evil.py'}]\n")
    _, said = begun(tiny, tmp_path / "other")
    assert said.taken
    assert build_task(tiny()).num_tokens == 6
