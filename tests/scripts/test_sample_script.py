"""scripts/sample.py: every task's prompt goes in, and its continuation comes out."""

import pytest

from xcope.config import build_task
from xcope.tasks import tasks
from xcope.training import example_prompt, load_run

SMALL = {
    "flip_flop": "{name: flip_flop, instructions: 8}",
    "counting": "{name: counting, length: 12}",
    "selective_copy": "{name: selective_copy, tokens: 3, blanks: 3}",
    "text": "{name: text, length: 24, corpus: CORPUS}",
}


@pytest.fixture
def corpus(tmp_path):
    """A file of text for the text task."""
    file = tmp_path / "corpus.py"
    file.write_text("def f(x):\n    return x + 1\n" * 50)
    return file


@pytest.mark.parametrize("name", sorted(tasks()))
def test_every_task_can_be_sampled(script, tiny_yaml, tmp_path, corpus, name):
    option = SMALL.get(name, name).replace("CORPUS", str(corpus))
    run = tmp_path / "run"
    assert script("train", tiny_yaml, f"task={option}", "--out", run).code == 0
    first = script("sample", run)
    assert first.code == 0
    assert script("sample", run).out == first.out
    # what is printed without a prompt can be given as one
    task = build_task(load_run(run)[0])
    prompt = task.decode(example_prompt(task))
    assert first.out.startswith(prompt)
    ended = script("sample", run, "--prompt", prompt, "--tokens", 5, "--seed", 1)
    assert ended.code == 0
    assert ended.out.startswith(prompt)
    if name not in ("text", "indexing"):  # bytes, not words
        assert len(ended.out.split()) == len(prompt.split()) + 5


def test_the_seed_decides_and_temperature_zero_does_not_need_one(script, tiny_yaml, tmp_path):
    script("train", tiny_yaml, "--out", tmp_path / "x")

    def draw(*options: object) -> str:
        return script("sample", tmp_path / "x", "--prompt", ". |", "--tokens", 30, *options).out

    assert draw("--seed", 1) != draw("--seed", 2)
    assert draw("--seed", 1, "--temperature", 0) == draw("--seed", 2, "--temperature", 0)
    assert draw("--seed", 1, "--top-k", 1) == draw("--temperature", 0)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--prompt", "hello"), "'hello'"),
        (("--prompt", ""), "prompt is empty"),
        (("--prompt", " ".join(["."] * 14)), "max_seq_len=13"),
        (("--tokens", 0), "tokens=0"),
        (("--tokens", "many"), "--tokens"),
        (("--temperature", -1), "temperature=-1"),
        (("--top-k", 0), "top_k=0"),
    ],
)
def test_mistakes_end_in_one_line(script, user_error, tiny_yaml, tmp_path, options, part):
    script("train", tiny_yaml, "model.position=absolute", "--out", tmp_path / "x")
    user_error(script("sample", tmp_path / "x", *options), part)
