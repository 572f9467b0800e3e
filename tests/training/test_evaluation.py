"""Metrics are what their names say, counted over all scored tokens of all batches."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcope.errors import FlagError
from xcope.modules import TransformerWrapper
from xcope.tasks import IGNORE, Batch, Task, task
from xcope.training import evaluate


class Guess(nn.Module):
    """Says token + 1 everywhere, with fixed confidence."""

    def __init__(self, num_tokens: int, max_table_len: int | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.num_tokens = num_tokens
        self.max_table_len = max_table_len
        self.modes: list[bool] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.modes.append(self.training or torch.is_grad_enabled())
        return self.scale * F.one_hot((tokens + 1) % self.num_tokens, self.num_tokens).float()


@dataclass(frozen=True, kw_only=True)
class Fixed(Task):
    """Two sequences of three tokens; batch ``index`` of split ``b`` has one more error."""

    name: ClassVar[str] = "fixed"
    paper: ClassVar[str] = "-"
    metric: ClassVar[str] = "bits_per_byte"

    num_tokens = 4
    splits = ("a", "b")

    def seq_len(self, split: str) -> int:
        return {"train": 3, "a": 3, "b": 30}[split]

    def sample(self, split: str, batch_size: int, generator: torch.Generator) -> Batch:
        tokens = torch.tensor([[0, 1, 2], [1, 2, 3]])
        right, wrong = (tokens + 1) % 4, tokens
        targets = {"a": right, "b": torch.stack([right[0], wrong[1]])}[split].clone()
        targets[0, 0] = IGNORE
        return Batch(tokens, targets)

    def encode(self, text: str) -> list[int]:
        return [int(digit) for digit in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(map(str, tokens))


def measure(model: nn.Module, task: Task, **options: Any) -> dict[str, dict[str, float]]:
    chosen = {"batches": 3, "batch_size": 2, "seed": 0, **options}
    return evaluate(cast(TransformerWrapper, model), task, **chosen)


def test_metrics_by_hand():
    results = measure(Guess(4), Fixed())
    right = math.log(3 + math.e**2) - 2
    wrong = math.log(3 + math.e**2)
    assert list(results) == ["a", "b"]
    assert results["a"]["error"] == results["a"]["sequence_error"] == 0
    assert results["a"]["loss"] == pytest.approx(right, rel=1e-6)
    assert results["b"]["error"] == pytest.approx(3 / 5)
    assert results["b"]["sequence_error"] == pytest.approx(1 / 2)
    assert results["b"]["loss"] == pytest.approx((2 * right + 3 * wrong) / 5, rel=1e-6)
    assert results["b"]["bits_per_byte"] == results["b"]["loss"] / math.log(2)


def test_bits_per_byte_only_where_tokens_are_bytes():
    counting = task("counting", {"variables": 1, "length": 12})
    (first, *_) = measure(Guess(counting.num_tokens), counting).values()
    assert set(first) == {"loss", "error", "sequence_error"}


def test_evaluation_is_repeatable_and_depends_on_its_seed():
    copy = task("selective_copy", {"tokens": 3, "blanks": 3})
    model = Guess(copy.num_tokens)
    assert measure(model, copy) == measure(model, copy)
    assert measure(model, copy) != measure(model, copy, seed=1)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_measured_in_evaluation_mode_and_given_back_as_it_was(training: bool):
    model = Guess(4).train(training)
    measure(model, Fixed())
    assert not any(model.modes)
    assert model.training is training


def test_splits_can_be_chosen():
    assert list(measure(Guess(4), Fixed(), splits=["b"])) == ["b"]
    with pytest.raises(FlagError, match=r"no test split 'aa'.*'a' and 'b'.*did you mean 'a'"):
        measure(Guess(4), Fixed(), splits=["aa"])


def test_sequences_beyond_a_table_of_positions_are_refused_before_any_work():
    model = Guess(4, max_table_len=10)
    with pytest.raises(FlagError, match=r"'b'.*30 tokens.*ends at 10.*max_seq_len"):
        measure(model, Fixed())
    assert model.modes == []
    assert list(measure(model, Fixed(), splits=["a"])) == ["a"]
