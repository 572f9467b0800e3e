"""Run a model once and keep what its attention computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from xcope.inspect.recording import recorded
from xcope.inspect.traced import Trace
from xcope.modules import AutoregressiveWrapper, Decoder, TransformerWrapper
from xcope.ops.inputs import require


@torch.no_grad()
def trace(
    model: TransformerWrapper | AutoregressiveWrapper,
    ids: Tensor,
    mask: Tensor | None = None,
    *,
    labels: Sequence[Any] | None = None,
) -> Trace:
    """Gates, positions, biases and attention of every self-attention layer.

    The model runs once, in evaluation mode, with its logits materialised: (b h n n) for each
    layer are held in memory.

    Args:
        model: any scheme, also several in one stack.
        ids: tokens, (b n) or (n), int64.
        mask: bool, as ``ids``; False where padded.
        labels: how the tokens are called, as ``ids``; None: by their number.
            `xcope.inspect.token_labels` asks a task.

    Raises:
        FlagError: a model, ids, mask or labels that do not fit.
    """
    if isinstance(model, AutoregressiveWrapper):
        model = model.net
    _check_model(model)
    ids = torch.as_tensor(ids)
    if ids.ndim == 1:
        ids, mask = ids[None], None if mask is None else mask[None]
        labels = None if labels is None else [tuple(labels)]
    _check_ids(ids, mask, model.num_tokens)
    called = _labels(labels, ids)
    device = next(model.parameters()).device
    with _evaluating(model), recorded(model) as layers:
        model(ids.to(device), mask=None if mask is None else mask.to(device))
    return Trace(ids.cpu(), called, tuple(layers))


def _check_model(model: Any) -> None:
    require(
        isinstance(model, TransformerWrapper) and isinstance(model.attn_layers, Decoder),
        "model",
        f"model must be xcope's TransformerWrapper with its Decoder, not a {type(model).__name__}",
    )
    every = getattr(model, "memory_tokens_interspersed_every", None)
    require(
        every is None,
        "memory_tokens_interspersed_every",
        f"memory_tokens_interspersed_every={every}: a model that strews memories among its tokens "
        "cannot be traced",
    )


def _check_ids(ids: Tensor, mask: Tensor | None, num_tokens: int) -> None:
    require(
        ids.ndim == 2 and ids.numel() > 0 and not ids.is_floating_point(),
        "ids",
        f"ids must be whole numbers (b n) or (n), but are {ids.dtype} {tuple(ids.shape)}",
    )
    least, most = int(ids.min()), int(ids.max())
    require(
        least >= 0 and most < num_tokens,
        "ids",
        f"ids must be tokens 0 … {num_tokens - 1}, but go from {least} to {most}",
    )
    require(
        mask is None or (mask.dtype == torch.bool and mask.shape == ids.shape),
        "mask",
        f"mask must be bool and have the shape of ids, {tuple(ids.shape)}",
    )


def _labels(labels: Any, ids: Tensor) -> tuple[tuple[str, ...], ...]:
    if labels is None:
        return tuple(tuple(map(str, row)) for row in ids.tolist())
    rows = tuple(tuple(row) for row in labels)
    require(
        [len(row) for row in rows] == [ids.shape[1]] * len(ids),
        "labels",
        f"labels must be as many as the tokens, {tuple(ids.shape)}",
    )
    return rows


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within; then every module is as it was."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
