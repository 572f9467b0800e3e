"""What every task promises: shapes, ranges, seeded streams, and prompts that read back."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from xcope.errors import FlagError
from xcope.tasks import IGNORE, Batch, Task, task, tasks
from xcope.tasks.words import WordTask

Build = Callable[..., Task]
WORDS = [name for name, kind in tasks().items() if issubclass(kind, WordTask)]
every_task = pytest.mark.parametrize("name", tasks())


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.tokens, b.tokens) and torch.equal(a.targets, b.targets)


@every_task
def test_batches_have_the_stated_shape_and_vocabulary(name: str, small_task: Build) -> None:
    one = small_task(name)
    assert "train" not in one.splits
    assert one.splits
    for split in ("train", *one.splits):
        batch = one.batch(split, 6, seed=0, index=0)
        assert batch.tokens.shape == batch.targets.shape == (6, one.seq_len(split))
        assert batch.tokens.dtype == batch.targets.dtype == torch.int64
        assert one.seq_len(split) <= one.max_seq_len
        assert batch.tokens.min() >= 0
        assert batch.tokens.max() < one.num_tokens
        scored = batch.targets != IGNORE
        assert scored.any(dim=1).all(), "each sequence is scored somewhere"
        assert batch.targets[scored].min() >= 0
        assert batch.targets[scored].max() < one.num_tokens
    assert one.max_seq_len == max(one.seq_len(s) for s in ("train", *one.splits))


@every_task
def test_targets_are_the_tokens_that_follow(name: str, small_task: Build) -> None:
    one = small_task(name)
    for split in ("train", *one.splits):
        batch = one.batch(split, 8, seed=3, index=1)
        targets, following = batch.targets[:, :-1], batch.tokens[:, 1:]
        scored = targets != IGNORE
        assert torch.equal(targets[scored], following[scored])


@every_task
def test_same_key_same_batch_and_another_key_another(name: str, small_task: Build) -> None:
    one, twin = small_task(name), small_task(name)
    for split in ("train", *one.splits):
        batch = one.batch(split, 16, seed=5, index=9)
        torch.rand(3)  # the global generator plays no part
        assert same(batch, twin.batch(split, 16, seed=5, index=9))
        for other in (one.batch(split, 16, seed=6, index=9), one.batch(split, 16, seed=5, index=8)):
            assert not same(batch, other)
    # seed and index do not run together: (1, 11) is not (11, 1)
    assert not same(one.batch("train", 16, 1, 11), one.batch("train", 16, 11, 1))
    first = one.splits[0]
    assert not same(one.batch("train", 16, 5, 9), one.batch(first, 16, 5, 9)), "test is not train"


@every_task
def test_tokens_decode_and_encode_back(name: str, small_task: Build) -> None:
    one = small_task(name)
    tokens = one.batch(one.splits[-1], 1, seed=0, index=0).tokens[0].tolist()
    text = one.decode(tokens)
    assert isinstance(text, str)
    if name == "text":  # a window may cut a character in two
        tokens = one.encode("größer = '→'")
        text = one.decode(tokens)
        assert text == "größer = '→'"
    assert one.encode(text) == tokens
    assert one.decode(one.encode("")) == ""


@every_task
def test_an_unknown_split_is_named(name: str, small_task: Build) -> None:
    one = small_task(name)
    for call in (lambda: one.seq_len("exam"), lambda: one.batch("exam", 2, 0, 0)):
        with pytest.raises(FlagError, match=r"exam.*train") as caught:
            call()
        assert caught.value.flag == "split"


@pytest.mark.parametrize("name", WORDS)
def test_an_unknown_word_of_a_prompt_is_named(name: str, small_task: Build) -> None:
    with pytest.raises(FlagError, match="hello") as caught:
        small_task(name).encode("hello")
    assert caught.value.flag == "prompt"


def test_a_fresh_process_with_other_threads_draws_the_same(small_task: Build) -> None:
    script = f"""
import torch
torch.set_num_threads({1 if torch.get_num_threads() > 1 else 2})
from xcope.tasks import task
for name in {WORDS}:
    one = task(name)
    print([one.batch(split, 4, 2, 7).tokens.tolist() for split in ("train", *one.splits)])
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    for name, line in zip(WORDS, run.stdout.splitlines(), strict=True):
        one = task(name)
        assert line == str(
            [one.batch(split, 4, 2, 7).tokens.tolist() for split in ("train", *one.splits)]
        )
