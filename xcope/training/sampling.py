"""Text from a trained model, one token at a time."""

from __future__ import annotations

import torch

from xcope.errors import FlagError
from xcope.modules import AutoregressiveWrapper, TransformerWrapper
from xcope.tasks import IGNORE, Task

MOST = 200
"""Tokens that are generated unless a number is asked for, at most."""


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
    """
    _check(prompt, tokens, temperature, top_k)
    limit = model.max_table_len
    device = next(model.parameters()).device
    torch.manual_seed(seed)
    new = AutoregressiveWrapper(model).generate(
        torch.tensor([prompt], device=device),
        tokens,
        temperature=temperature,
        filter_logits_fn="top_k",
        filter_kwargs={"k": top_k or model.num_tokens},
        cache_kv=limit is None or len(prompt) + tokens - 1 <= limit,
    )
    return list(map(int, new[0]))


def example_prompt(task: Task, seed: int = 0) -> list[int]:
    """The beginning of a test sequence: until an answer is asked for, at least a quarter of it."""
    batch = task.batch(task.splits[0], 1, seed, 0)
    first_answer = int((batch.targets[0] != IGNORE).nonzero()[0])
    length = max(first_answer + 1, batch.tokens.shape[1] // 4)
    return batch.tokens[0, :length].tolist()


def rest_of_sequence(task: Task, prompt: list[int]) -> int:
    """Tokens until a test sequence of the task would end after ``prompt``: 1 … `MOST`."""
    return max(1, min(MOST, task.seq_len(task.splits[0]) - len(prompt)))


def _check(prompt: list[int], tokens: int, temperature: float, top_k: int | None) -> None:
    if not prompt:
        raise FlagError("prompt", "the prompt is empty: give at least one token")
    if tokens < 1:
        raise FlagError("tokens", f"tokens={tokens} is not allowed: at least 1")
    if not 0 <= temperature < float("inf"):
        raise FlagError("temperature", f"temperature={temperature} is not allowed: 0 or more")
    if top_k is not None and top_k < 1:
        raise FlagError("top_k", f"top_k={top_k} is not allowed: at least 1")
