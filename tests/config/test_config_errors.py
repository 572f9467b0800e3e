"""What a config's author reads: file, line, key, what was given, what is allowed, what is near."""

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xcope.config import ConfigError, load_config
from xcope.config.yaml_tree import write_text

# The file that a case edits is BASE of conftest.py; the line of each of its keys:
# 1 model: 2 dim 3 depth 4 heads 5 position, 6 task: 7 name 8 tokens 9 blanks, 10 train: 11 steps
EXACT = [
    pytest.param(
        "train:",
        "trian:",
        "base.yaml:10: trian: unknown key 'trian'; allowed: 'model', 'task', 'train', 'evaluate', "
        "'out', 'sweep', 'tune', 'import' and 'baseline'; did you mean 'train'?",
        id="unknown section",
    ),
    pytest.param(
        "train:",
        "lr: 1\ntrain:",
        "base.yaml:10: lr: unknown key 'lr'; allowed: 'model', 'task', 'train', 'evaluate', "
        "'out', 'sweep', 'tune', 'import' and 'baseline'; did you mean 'train.lr'?",
        id="key of another section",
    ),
    pytest.param(
        "position: none",
        "positon: none",
        "base.yaml:5: model.positon: unknown key 'positon'; allowed: 'dim', 'depth', 'heads', "
        "'dim_head', 'max_seq_len' and 'position' and the flags of Decoder and "
        "TransformerWrapper; did you mean 'position'?",
        id="unknown model key",
    ),
    pytest.param(
        "steps: 10",
        "stesp: 10",
        "base.yaml:11: train.stesp: unknown key 'stesp'; allowed: 'steps', 'batch_size', 'lr', "
        "'position_lr_scale', 'betas', 'weight_decay', 'warmup', 'clip', 'seed', 'precision', "
        "'log_every', "
        "'checkpoint_every', 'device', 'track', 'track_project', 'init_from' and 'longer'; "
        "did you mean 'steps'?",
        id="unknown train key",
    ),
    pytest.param(
        "train:",
        "evaluate: {batch: 1}\ntrain:",
        "base.yaml:10: evaluate.batch: unknown key 'batch'; allowed: 'batches', 'batch_size', "
        "'seed' and 'splits'; did you mean 'batches'?",
        id="unknown evaluate key",
    ),
    pytest.param(
        "blanks: 4",
        "blank: 4",
        "base.yaml:9: task.blank: task 'selective_copy' has no option 'blank': it takes 'tokens', "
        "'blanks', 'dense_blanks', 'sparse_blanks' and 'values'; did you mean 'blanks'?",
        id="unknown task option",
    ),
    pytest.param(
        "steps: 10",
        "steps: ten",
        "base.yaml:11: train.steps: expected a whole number of at least 1, got 'ten'",
        id="word for a number",
    ),
    pytest.param(
        "steps: 10",
        "steps: '10'",
        "base.yaml:11: train.steps: expected a whole number of at least 1, got '10'",
        id="quoted number",
    ),
    pytest.param(
        "steps: 10",
        "steps: true",
        "base.yaml:11: train.steps: expected a whole number of at least 1, got true",
        id="true for a number",
    ),
    pytest.param(
        "steps: 10",
        "steps: 10.5",
        "base.yaml:11: train.steps: expected a whole number of at least 1, got 10.5",
        id="half a step",
    ),
    pytest.param(
        "steps: 10",
        "betas: [0.9, 1.0]",
        "base.yaml:11: train.betas: expected a list of 2, each a number of at least 0 and below 1, "
        "got [0.9, 1.0]",
        id="betas out of range",
    ),
    pytest.param(
        "steps: 10",
        "betas: [0.9]",
        "base.yaml:11: train.betas: expected a list of 2, each a number of at least 0 and below 1, "
        "got [0.9]",
        id="one beta",
    ),
    pytest.param(
        "steps: 10",
        "precision: bf61",
        "base.yaml:11: train.precision: expected one of 'no', 'bf16' and 'fp16', got 'bf61'; did "
        "you mean 'bf16'?",
        id="unknown precision",
    ),
    pytest.param(
        "steps: 10",
        "clip: 0",
        "base.yaml:11: train.clip: expected a number above 0 or null, got 0",
        id="clip at zero",
    ),
    pytest.param(
        "train:\n  steps: 10",
        "train: 10",
        "base.yaml:10: train: expected a mapping of keys and values, got 10",
        id="number for a section",
    ),
    pytest.param(
        "train:",
        "out: [a]\ntrain:",
        "base.yaml:10: out: expected text or null, got ['a']",
        id="list for a folder",
    ),
    pytest.param(
        "position: none",
        "position: 3",
        "base.yaml:5: model.position: expected a scheme's name, a mapping of name and options, or "
        "a list of these, got 3",
        id="number for a position",
    ),
    pytest.param(
        "  dim: 16\n",
        "",
        "base.yaml:1: model.dim: is missing: expected a whole number of at least 1",
        id="no dim",
    ),
    pytest.param(
        "train:",
        "model: {}\ntrain:",
        "base.yaml:10: key 'model' stands twice (first at base.yaml:1)",
        id="section twice",
    ),
]

PARTS = [
    # what task, scheme and decoder refuse: the place, and what the message must name
    pytest.param(
        "position: none",
        "position: [absolute, sinusoidal]",
        "base.yaml:5: model.position: ",
        ["two schemes at once", "'absolute'", "'sinusoidal'"],
        id="two schemes for one slot",
    ),
    pytest.param(
        "position: none",
        "position: {layers: [none, {name: cope, max_poss: 3}]}",
        "base.yaml:5: model.position.layers[1].max_poss: ",
        ["'cope'", "did you mean 'max_pos'?"],
        id="an option within layers",
    ),
    pytest.param(
        "position: none",
        "position: cope\n  rotary_pos_emb: true",
        "base.yaml:6: model.rotary_pos_emb: ",
        ["two schemes at once", "cope", "rotary_pos_emb"],
        id="a scheme and the switch of another",
    ),
    pytest.param(
        "position: none",
        "position: cope\n  rel_pos_bias: true",
        "base.yaml:6: model.rel_pos_bias: ",
        ["two schemes at once", "cope", "rel_pos_bias"],
        id="a scheme and x-transformers' own",
    ),
    pytest.param(
        "position: none",
        "position: rotary\n  cope_max_pos: 64",
        "base.yaml:6: model.cope_max_pos: ",
        ["cope_max_pos=64", "'cope'", "not chosen", "'rotary'"],
        id="option of a scheme that is not chosen",
    ),
    pytest.param(
        "position: none",
        "position: {name: cope, max_pos: 8}\n  cope_max_pos: 64",
        "base.yaml:5: model.position.max_pos: ",
        ["cope_max_pos=64", "'max_pos': 8", "drop one"],
        id="an option in two spellings",
    ),
    pytest.param(
        "position: none",
        "position: roatry",
        "base.yaml:5: model.position: ",
        ["'roatry'", "'alibi'", "'none'", "did you mean 'rotary'?"],
        id="unknown scheme",
    ),
    pytest.param(
        "position: none",
        "position:\n    name: cope\n    max_poz: 3",
        "base.yaml:7: model.position.max_poz: ",
        ["'cope'", "'max_poz'", "'talking_heads'", "did you mean 'max_pos'?"],
        id="unknown option of a scheme",
    ),
    pytest.param(
        "position: none",
        "position: {max_pos: 3}",
        "base.yaml:5: model.position: ",
        ["'max_pos': 3", "name"],
        id="options without a scheme",
    ),
    pytest.param(
        "position: none",
        "position:\n    name: cope\n    max_pos: 0",
        "base.yaml:7: model.position.max_pos: ",
        ["cope_max_pos=0", "at least 1"],
        id="max_pos 0",
    ),
    pytest.param(
        "position: none",
        "position: cope\n  cope_max_pos: 0",
        "base.yaml:6: model.cope_max_pos: ",
        ["cope_max_pos=0", "at least 1"],
        id="max_pos 0 as a flag",
    ),
    pytest.param(
        "position: none",
        "position:\n    - absolute\n    - name: cope\n      max_pos: 0",
        "base.yaml:8: model.position[1].max_pos: ",
        ["cope_max_pos=0", "at least 1"],
        id="max_pos 0 in a list",
    ),
    pytest.param(
        "position: none",
        "position: {name: cope_rotary, max_pos: -1}",
        "base.yaml:5: model.position.max_pos: ",
        ["cope_max_pos=-1", "at least 1"],
        id="option of a combination",
    ),
    pytest.param(
        "position: none",
        "position: {name: cope, max_pos: many}",
        "base.yaml:5: model.position.max_pos: ",
        ["'many'", "int"],
        id="word for an option",
    ),
    pytest.param(
        "  position: none\n",
        "",
        "base.yaml:1: model: ",
        ["no position is named", "'none'", "'rotary'"],
        id="no position",
    ),
    pytest.param(
        "name: selective_copy",
        "name: selectiv_copy",
        "base.yaml:7: task.name: ",
        ["'selectiv_copy'", "'counting'", "did you mean 'selective_copy'?"],
        id="unknown task",
    ),
    pytest.param(
        "task:\n  name: selective_copy\n  tokens: 2\n  blanks: 4\n",
        "task: flipflop\n",
        "base.yaml:6: task: ",
        ["'flipflop'", "'counting'", "did you mean 'flip_flop'?"],
        id="unknown task as a word",
    ),
    pytest.param(
        "tokens: 2",
        "tokens: -2",
        "base.yaml:8: task.tokens: ",
        ["-2", "at least 1"],
        id="negative length",
    ),
    pytest.param(
        "tokens: 2",
        "tokens: two",
        "base.yaml:8: task.tokens: ",
        ["'two'", "whole number"],
        id="word for a task option",
    ),
    pytest.param(
        "heads: 2",
        "heads: 3",
        "base.yaml:4: model.heads: ",
        ["heads=3 does not divide dim=16", "dim_head"],
        id="heads that do not divide dim",
    ),
    pytest.param(
        "heads: 2",
        "heads: 4\n  attn_kv_heads: 3",
        "base.yaml:5: model.attn_kv_heads: ",
        ["attn_kv_heads=3", "heads=4"],
        id="key heads that do not divide heads",
    ),
    pytest.param(
        "position: none",
        "position: absolute\n  max_seq_len: 8",
        "base.yaml:6: model.max_seq_len: ",
        ["max_seq_len=8", "'sparse'", "selective_copy", "13 tokens"],
        id="sequences longer than the table",
    ),
    pytest.param(
        "position: none",
        "position: none\n  dim_head: 8\n  attn_dim_head: 4",
        "base.yaml:7: model.attn_dim_head: ",
        ["dim_head", "drop one"],
        id="two spellings of the head's width",
    ),
    pytest.param(
        "position: none",
        "position: none\n  ff_glu: no",
        "base.yaml:6: model.ff_glu: ",
        ["'no'", "true, false"],
        id="a word that is no boolean",
    ),
    pytest.param(
        "position: none",
        "position: none\n  num_tokens: 9",
        "base.yaml:6: model.num_tokens: ",
        ["unknown key 'num_tokens'"],
        id="what the task settles",
    ),
    pytest.param(
        "position: none",
        "position: none\n  custom_layers: [a, x]",
        "base.yaml:6: model.custom_layers: ",
        ["x-transformers", "invalid layer type x"],
        id="what x-transformers refuses while building",
    ),
    pytest.param(
        "position: none",
        "position: none\n  pre_norm: true\n  recycling: true",
        "base.yaml:7: model.recycling: ",
        ["x-transformers", "`recycle_steps` must be provided"],
        id="what x-transformers refuses while running",
    ),
    pytest.param(
        "position: none",
        "position: none\n  pre_norm: true\n  cross_attend: true",
        "base.yaml:7: model.cross_attend: ",
        ["a Decoder with cross_attend=True needs context: pass it to the call"],
        id="what a config's model is never given",
    ),
    pytest.param(
        "position: none",
        "position: none\n  num_output_heads: 2",
        "base.yaml:6: model.num_output_heads: ",
        ["logits"],
        id="a model that gives no logits",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), EXACT)
def test_message_in_full(base, error, old, new, message):
    edit(base, old, new)
    assert str(error(base)) == message


@pytest.mark.parametrize(("old", "new", "place", "said"), PARTS)
def test_message_of_the_part_at_its_key(base, error, old, new, place, said):
    edit(base, old, new)
    message = str(error(base))
    assert message.startswith(place)
    for words in said:
        assert words in message


@pytest.mark.parametrize(
    "key",
    [
        "model.dim", "model.depth", "model.heads", "model.dim_head", "model.max_seq_len",
        "train.steps", "train.batch_size", "train.log_every", "train.lr",
        "evaluate.batches", "evaluate.batch_size", "task.tokens", "task.blanks",
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_are_above_zero(base, error, key, value):
    caught = error(base, f"{key}={value}")
    assert caught.key == key
    assert str(value) in caught.message


@pytest.mark.parametrize("section", ["model", "task"])
def test_a_missing_section_is_missed_at_the_top_of_the_file(write, error, section):
    text = "task: flip_flop\n" if section == "model" else "model: {dim: 4, depth: 1, heads: 1}\n"
    assert str(error(write("x.yaml", text))) == (
        f"x.yaml:1: {section}: is missing: expected a mapping of keys and values"
    )


def test_an_error_names_the_file_that_was_extended(base, write, error):
    edit(base, "heads: 2", "heads: 3")
    top = write("top.yaml", "extends: base.yaml\ntrain: {steps: 3}\n")
    assert str(error(top)).startswith("base.yaml:4: model.heads: ")


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats(-1, 1) | st.text("ab1:", max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab"), inner, max_size=2),
    max_leaves=3,
)
keys = st.sampled_from(
    ["dim", "depth", "heads", "position", "ff_glu", "attn_kv_heads", "cope_max_pos", "rotary_xpos"]
)


@given(st.dictionaries(keys, junk, max_size=3))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_under_model_is_a_config_or_a_config_error(base, tmp_path, model):
    path = tmp_path / "junk.yaml"
    path.write_text(write_text({"extends": "base.yaml", "model": model}), encoding="utf-8")
    with contextlib.suppress(ConfigError):
        load_config(path)


def edit(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
