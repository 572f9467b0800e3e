"""Text from a trained model, one token at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from xcope.errors import FlagError
from xcope.modules import AutoregressiveWrapper, TransformerWrapper
from xcope.tasks import IGNORE, Task
from xcope.training.errors import BrokenModelError
from xcope.training.evaluation import broken_weights

MOST = 200
"""Tokens that are generated unless a number is asked for, at most."""
MOST_ASKED_FOR = 2**20
COLDEST, HOTTEST = 1e-30, 1e30
"""Temperatures beyond these are taken for 0 and for the hottest: float32 cannot divide by them."""
SEEDS = range(-(2**63), 2**64)
"""What PyTorch's generators take."""


def sample(
    model: TransformerWrapper,
    prompt: list[int],
    tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> list[int]:
    """Continue ``prompt`` by ``tokens`` tokens.

    The keys and values of earlier tokens are cached. Only where a table of learned absolute
    positions is too short for prompt and answer, a window slides over the text without a cache.

    Args:
        temperature: 0 takes the likeliest token; 1 draws as the model was trained to.
        top_k: draw among so many of the likeliest tokens; None: among all.
        seed: of the draws.

    Returns:
        The new tokens.

    Raises:
        FlagError: an empty prompt, one that the table is too short for, or a bad number.
        BrokenModelError: logits are not finite.
    """
    _check(prompt, tokens, temperature, top_k, seed)
    temperature = 0.0 if temperature < COLDEST else min(temperature, HOTTEST)
    limit = model.max_table_len
    device = next(model.parameters()).device
    torch.manual_seed(seed)
    with _finite_logits(model):
        new = AutoregressiveWrapper(model).generate(
            torch.tensor([prompt], device=device),
            tokens,
            temperature=temperature,
            filter_logits_fn=_likeliest,
            filter_kwargs={"k": min(top_k or model.num_tokens, model.num_tokens)},
            cache_kv=limit is None or len(prompt) + tokens - 1 <= limit,
        )
    return list(map(int, new[0]))


def _likeliest(logits: Tensor, k: int) -> Tensor:
    """Logits (b num_tokens) minus the largest of their row, -inf for all but the k largest.

    None is above 0, so that none overflows when it is divided by a low temperature.
    """
    # what is broken is told at the end; until then there must be something to draw from
    values, ids = logits.nan_to_num().topk(k)
    return torch.full_like(logits, -torch.inf).scatter(1, ids, values - values[:, :1])


@contextmanager
def _finite_logits(model: nn.Module) -> Iterator[None]:
    """Raise `BrokenModelError` at the end if the model gave logits that are not finite."""
    finite: list[Tensor] = []  # on the device, so that no token waits for the check

    def watch(module: nn.Module, inputs: Any, out: Any) -> None:
        logits = out[0] if isinstance(out, tuple) else out
        finite.append(logits.isfinite().all())

    hook = model.register_forward_hook(watch)
    try:
        yield
    finally:
        hook.remove()
    if not torch.stack(finite).all():
        raise BrokenModelError(
            "the model is broken: its logits are not finite. "
            + (broken_weights(model) or "Its weights are finite")
        )


def example_prompt(task: Task, seed: int = 0) -> list[int]:
    """The beginning of a test sequence: until an answer is asked for, at least a quarter of it."""
    batch = task.batch(task.splits[0], 1, seed, 0)
    first_answer = int((batch.targets[0] != IGNORE).nonzero()[0])
    length = max(first_answer + 1, batch.tokens.shape[1] // 4)
    return batch.tokens[0, :length].tolist()


def rest_of_sequence(task: Task, prompt: list[int]) -> int:
    """Tokens until a test sequence of the task would end after ``prompt``: 1 … `MOST`."""
    return max(1, min(MOST, task.seq_len(task.splits[0]) - len(prompt)))


def _check(
    prompt: list[int], tokens: int, temperature: float, top_k: int | None, seed: int
) -> None:
    if not prompt:
        raise FlagError("prompt", "the prompt is empty: give at least one token")
    if not 1 <= tokens <= MOST_ASKED_FOR:
        raise FlagError("tokens", f"tokens={tokens} is not allowed: 1 to {MOST_ASKED_FOR:,}")
    if not 0 <= temperature < float("inf"):
        raise FlagError("temperature", f"temperature={temperature} is not allowed: 0 or more")
    if top_k is not None and top_k < 1:
        raise FlagError("top_k", f"top_k={top_k} is not allowed: at least 1")
    if seed not in SEEDS:
        raise FlagError("seed", f"seed={seed} is not allowed: {SEEDS[0]} … {SEEDS[-1]}")
