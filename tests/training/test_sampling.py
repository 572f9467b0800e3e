"""Generation continues a prompt as the model says, for every task."""

import pytest
import torch
from training_runs import MakeConfig

from xcope.config import build_model, build_task
from xcope.errors import FlagError
from xcope.modules import TransformerWrapper
from xcope.tasks import task, tasks
from xcope.training import example_prompt, rest_of_sequence, sample


def greedy(model: TransformerWrapper, prompt: list[int], tokens: int) -> list[int]:
    model.eval()
    text = list(prompt)
    for _ in range(tokens):
        window = text[-(model.max_table_len or len(text)) :]
        text.append(int(model(torch.tensor([window]))[0, -1].argmax()))
    return text[len(prompt) :]


@pytest.mark.parametrize("position", ["rotary", "cope", "absolute"])
def test_at_temperature_zero_the_likeliest_tokens_follow(tiny: MakeConfig, position: str):
    model = build_model(tiny(f"model.position={position}"))
    # 40 tokens are more than the table of learned absolute positions holds
    for tokens in (5, 40):
        new = sample(model, [0, 2, 3], tokens, temperature=0)
        assert new == greedy(model, [0, 2, 3], tokens)


def test_draws_follow_the_seed(tiny: MakeConfig):
    model = build_model(tiny())
    first = sample(model, [0, 2], 30, seed=1)
    assert sample(model, [0, 2], 30, seed=1) == first
    assert sample(model, [0, 2], 30, seed=2) != first


def test_top_k_limits_the_draw(tiny: MakeConfig):
    model = build_model(tiny())
    assert sample(model, [0, 2], 20, top_k=1) == greedy(model, [0, 2], 20)
    assert sample(model, [0, 2], 20, top_k=1000, seed=3) == sample(model, [0, 2], 20, seed=3)


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"prompt": []}, "prompt"),
        ({"tokens": 0}, "tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k"),
    ],
)
def test_bad_numbers_are_refused_by_name(tiny: MakeConfig, change: dict, flag: str):
    arguments = {"prompt": [0], "tokens": 3, **change}
    with pytest.raises(FlagError) as error:
        sample(build_model(tiny()), **arguments)
    assert error.value.flag == flag


def test_a_prompt_beyond_the_table_is_refused(tiny: MakeConfig):
    config = tiny("model.position=absolute")
    length = build_task(config).max_seq_len
    with pytest.raises(FlagError, match="prompt"):
        sample(build_model(config), [0] * (length + 1), 1)
    assert len(sample(build_model(config), [0] * length, 1)) == 1


@pytest.mark.parametrize("name", sorted(tasks()))
def test_every_task_has_an_example_prompt_that_can_be_typed(name: str):
    one = task(name, {})
    prompt = example_prompt(one)
    assert 1 <= len(prompt) < one.seq_len(one.splits[0])
    assert example_prompt(one, 0) == prompt
    assert 1 <= rest_of_sequence(one, prompt) <= 200
    assert one.encode(one.decode(prompt)) == prompt or name == "text"
