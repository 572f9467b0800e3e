"""Metrics are what their names say, counted over all scored tokens of all batches."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import xcope
from xcope.errors import FlagError
from xcope.modules import TransformerWrapper
from xcope.tasks import IGNORE, Batch, Task, task
from xcope.training import RunFolder, evaluate
from xcope.training.evaluation import MOST_PAIRS, tally
from xcope.training.metrics import Tally


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


class Recorder(Guess):
    """Remembers the shape of what it is given."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__(num_tokens)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.shapes.append(tuple(tokens.shape))
        return super().forward(tokens)


def test_long_sequences_are_measured_a_few_at_a_time():
    one = task("flip_flop", {"instructions": 128, "stretch": 8})
    model = Recorder(one.num_tokens)
    results = measure(model, one, batches=2, batch_size=70, splits=one.length_splits)
    assert model.shapes[:4] == [(64, 256), (6, 256)] * 2
    assert model.shapes[4:8] == [(16, 512)] * 4
    assert set(model.shapes[-140:]) == {(1, 2048)}
    assert all(b * n * n <= MOST_PAIRS for b, n in model.shapes)
    rows = dict.fromkeys((256, 512, 1024, 2048), 0)
    for b, n in model.shapes:
        rows[n] += b
    assert set(rows.values()) == {140}, "each split has all its sequences"
    whole = Tally()
    for index in range(2):
        batch = one.batch("longer_8x", 70, 0, index)
        with torch.no_grad():
            whole.add(model(batch.tokens), batch.targets)
    for metric, value in whole.metrics(one).items():
        assert results["longer_8x"][metric] == pytest.approx(value, rel=1e-6)


def curve(model: nn.Module, task: Task, split: str, batches: int = 1) -> dict[str, Any]:
    sums = tally(cast(TransformerWrapper, model), task, batches=batches, batch_size=2, seed=0)
    return sums[split].by_position(task)


def test_the_curve_over_positions_is_that_of_the_targets():
    right = (math.log(3 + math.e**2) - 2) / math.log(2)
    wrong = math.log(3 + math.e**2) / math.log(2)
    found = curve(Guess(4), Fixed(), "b", batches=3)
    assert found["metric"] == "bits_per_byte"
    assert found["edges"] == [0, 1, 2, 3]
    # the first place is scored in the second sequence alone, where all is wrong
    assert found["values"] == pytest.approx([wrong, (right + wrong) / 2, (right + wrong) / 2])


def test_places_that_are_not_scored_have_no_value():
    one = task("parity", {"length": 5})
    found = curve(Guess(one.num_tokens), one, "in_distribution")
    assert found["metric"] == "error"
    assert found["edges"] == list(range(11))
    batch = one.batch("in_distribution", 2, 0, 0)
    assert found["values"][1::2] == [None] * 5
    for place in range(0, 10, 2):
        wrong = (batch.tokens[:, place] + 1) % 6 != batch.targets[:, place]
        assert found["values"][place] == wrong.double().mean()


def test_long_curves_have_at_most_64_bins_as_wide_as_each_other():
    one = task("parity", {"length": 75})
    found = curve(Guess(one.num_tokens), one, "in_distribution")
    assert found["edges"] == [*range(0, 150, 3), 150]
    assert len(found["values"]) == 50
    batch = one.batch("in_distribution", 2, 0, 0)
    wrong = (batch.targets != IGNORE) & ((batch.tokens + 1) % 6 != batch.targets)
    assert found["values"][1] == wrong[:, 3:6].sum() / (batch.targets[:, 3:6] != IGNORE).sum()
    long = curve(Guess(one.num_tokens), one, "longer_8x")
    assert long["edges"] == [*range(0, 1200, 19), 1200]
    assert len(long["values"]) == len(long["edges"]) - 1 == 64


def test_results_of_runs_without_curves_can_still_be_read(tmp_path: Path):
    (tmp_path / "results.json").write_text('{"splits": {}, "params": 7, "steps": 3}')
    (tmp_path / "timing.json").write_text('{"seconds": 1.5}')
    result = RunFolder(tmp_path).read_result()
    assert result is not None
    assert (result.params, result.by_position) == (7, {})


def test_places_drawn_in_evaluation_are_repeatable_and_take_no_random_numbers_from_training():
    copy = task("copy", {"length": 4, "stretch": 2})
    where = {"name": "rotary", "random_max": 20, "random_at_test": True}
    model = xcope.TransformerWrapper(
        num_tokens=copy.num_tokens,
        max_seq_len=20,
        attn_layers=xcope.Decoder(dim=16, depth=1, heads=2, attn_dim_head=8, position=where),
    )
    before = torch.get_rng_state()
    first = measure(model, copy)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert measure(model, copy) == first
    with pytest.raises(FlagError, match=r"rotary_random_max is 20: choose shorter splits"):
        measure(model, task("copy", {"length": 4, "stretch": 8}))
