"""Task and model from a config, a mapping or a file."""

import json
import random
from pathlib import Path

import pytest
import torch
import yaml
from schemes import NAMES, position

from xcope.config import ConfigError, build_model, build_task, load_config
from xcope.positions import scheme, schemes

MAPPING = {
    "model": {"dim": 16, "depth": 1, "heads": 2, "position": "cope"},
    "task": {"name": "flip_flop", "instructions": 4},
}


@pytest.mark.parametrize("name", NAMES)
def test_the_model_of_every_scheme_takes_the_tasks_longest_sequences(base, name):
    config = load_config(base, [f"model.position={json.dumps(position(name))}"])
    task, model = build_task(config), build_model(config)
    tokens = task.batch("sparse", 2, seed=0, index=0).tokens
    logits = model(tokens)
    assert logits.shape == (2, task.max_seq_len, task.num_tokens)
    assert logits.isfinite().all()


def test_a_file_a_mapping_and_a_config_give_the_same_model(write):
    path = write("m.yaml", yaml.safe_dump(MAPPING))
    weights = []
    for config in (path, str(path), MAPPING, load_config(path)):
        torch.manual_seed(0)
        weights.append(build_model(config).state_dict())
        assert build_task(config).max_seq_len == 8
    for other in weights[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in weights[0].items())


def test_flags_reach_decoder_and_wrapper(base):
    names = build_model(
        load_config(base, ["model.attn_qk_norm=true", "model.num_memory_tokens=3"])
    ).state_dict()
    assert names["memory_tokens"].shape == (3, 16)
    assert build_model(load_config(base, ["model.dim_head=4"])).state_dict()[
        "attn_layers.layers.0.1.to_q.weight"
    ].shape == (2 * 4, 16)


def test_a_flag_per_layer_is_a_list(base):
    overrides = ["model.position=null", "model.depth=2", "model.attn_use_cope=[false, true]"]
    with_table = [
        name
        for name in build_model(load_config(base, overrides)).state_dict()
        if name.endswith("cope.pos_emb")
    ]
    assert len(with_table) == 1


def test_errors_of_a_mapping_name_the_key():
    model = MAPPING["model"] | {"positon": "cope"}
    with pytest.raises(ConfigError, match=r"^config: model\.positon: unknown key") as error:
        build_model(MAPPING | {"model": model})
    assert error.value.line is None


def test_checking_leaves_the_random_numbers_alone(base):
    torch.manual_seed(0)
    random.seed(0)
    before = (torch.get_rng_state(), random.getstate())
    load_config(base, ["model.position=absolute", "model.layer_dropout=0.5"])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_a_large_model_is_checked_without_its_weights(base):
    config = load_config(base, ["model.dim=65536", "model.depth=64", "model.heads=64"])
    assert config.model.dim_head == 1024


CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name", NAMES)
def test_each_scheme_has_a_file_with_all_its_options(write, name):
    text = f"extends: [models/tiny.yaml, schemes/{name}.yaml]\ntask: flip_flop\n"
    config = load_config(write("s.yaml", text))
    written = config.model.position
    options = {} if isinstance(written, str) else {k: v for k, v in written.items() if k != "name"}
    # how places are drawn is the same for all schemes that read them
    every = schemes()[name].options().keys()
    assert every - {"random_float", "random_at_test"} <= options.keys() <= every
    # what must be said, as nobody could guess it, has a value to be replaced
    assert scheme(name, options).given().keys() <= {
        "trained_len",
        "original_max_position_embeddings",
    }


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("models/*.yaml")), ids=lambda file: file.stem)
def test_each_model_file_is_a_model(write, file):
    text = f"extends: models/{file.name}\nmodel: {{position: cope}}\ntask: flip_flop\n"
    assert load_config(write("m.yaml", text)).model.depth >= 1
