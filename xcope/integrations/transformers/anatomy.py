"""What a model of transformers is like inside, seen by running it on five tokens.

Nothing is known of its class: which modules attend, with how many heads and how wide, whether that
is softmax(scale · q·k) v and nothing else, and what its rotary positions look like where they turn
by nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from xcope.errors import FlagError
from xcope.integrations.transformers.layer import NAME, arguments, watching


@contextmanager
def _as_in_evaluation(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def anatomy_of(model: Any) -> dict[str, Any]:
    """Run the model on a few tokens, by its own attention and by ours, and note what is seen.

    Raises:
        FlagError: its attention is not what ours computes.
    """
    kind, config = type(model).__name__, model.config
    own = config.get_text_config()._attn_implementation
    crosses = ("is_encoder_decoder", "add_cross_attention")
    if any(getattr(config, name, False) for name in crosses):
        raise FlagError(
            "model",
            f"{kind} has cross attention, where no token stands at the place of another: xcope's "
            "schemes are for decoders alone",
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise FlagError(
            "model",
            f"{kind} has weights on the meta device: load them first, positions are added to a "
            "model that runs",
        )
    tokens = torch.arange(1, 6, device=model.device) % config.get_text_config().vocab_size
    configs = {id(config): config, id(config.get_text_config()): config.get_text_config()}
    before = {key: one._attn_implementation for key, one in configs.items()}
    calls: list[dict[str, Any]] = []
    token = watching.set(calls)
    try:
        with _as_in_evaluation(model):
            for one in configs.values():
                one._attn_implementation = NAME
            ours = _logits(model, tokens)
            for key, one in configs.items():
                one._attn_implementation = before[key]
            with _inputs_noted(calls):
                theirs = _logits(model, tokens)
    except FlagError as error:
        raise FlagError(error.flag, f"{kind}: {error}") from error
    except Exception as error:
        raise FlagError(
            "model",
            f"{kind} does not run on five token ids with an attention implementation of its "
            f"user's: {type(error).__name__}: {error}",
        ) from error
    finally:
        watching.reset(token)
        for key, one in configs.items():
            one._attn_implementation = before[key]
    if not calls:
        raise FlagError(
            "model",
            f"{kind} does not take its attention from transformers' AttentionInterface, so that "
            "nothing can be set there",
        )
    _check_same(model, ours, theirs)
    names = {id(module): name for name, module in model.base_model.named_modules()}
    layers = {names[id(call["module"])]: _geometry(model, call) for call in calls}
    return {"attn_implementation": own, "keep_absolute": True, "layers": layers}


def _logits(model: Any, tokens: Tensor) -> Tensor:
    out = model(input_ids=tokens[None], use_cache=False)
    found: Tensor = out.logits if "logits" in out else out[0]
    return found.float()


def _check_same(model: Any, ours: Tensor, theirs: Tensor) -> None:
    """Raise a `FlagError` if the model's attention computes something that ours does not."""
    error = float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))
    if not error < (0.1 if model.dtype.itemsize < 4 else 1e-3):
        raise FlagError(
            "model",
            f"{type(model).__name__} attends in a way of its own: with softmax(scale · q·k) v its "
            f"outputs differ by {error:.1%}, so that no scheme can be added to that",
        )


@contextmanager
def _inputs_noted(calls: list[dict[str, Any]]) -> Iterator[None]:
    """Within, what the modules of ``calls`` are given is noted there."""
    handles = []
    for call in calls:

        def note(module: nn.Module, args: Any, kwargs: Any, call: dict[str, Any] = call) -> None:
            call["given"] = dict(zip(arguments(module), args, strict=False)) | kwargs

        handles.append(call["module"].register_forward_pre_hook(note, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _geometry(model: Any, call: dict[str, Any]) -> dict[str, Any]:
    """What has to be known of an attention module, as JSON can hold it."""
    given = call.get("given", {})
    return {
        "heads": call["q"][1],
        "kv_heads": call["k"][1],
        "dim_head": call["q"][3],
        "dim_value": call["v"][3],
        "dim": model.config.get_text_config().hidden_size,
        "rotary": _rotary(model, call["module"], given.get("position_embeddings")),
        "position": None,
        "keep_rotary": True,
    }


def _rotary(model: Any, module: nn.Module, embeddings: Any) -> dict[str, Any] | None:
    """How a module turns its queries and keys; None: it is not told how to.

    ``still`` holds the numbers that turn by nothing: those of the first place.
    """
    if embeddings is None:
        return None
    tensors = [embeddings] if isinstance(embeddings, Tensor) else list(embeddings)
    first = [t.reshape(-1, *t.shape[-2:])[:, 0].flatten() for t in tensors]
    alike = all(bool((numbers == numbers[0]).all()) for numbers in first)
    config = model.config.get_text_config()
    apart = hasattr(config, "qk_rope_head_dim")  # the last channels turn, not the first
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [parameters, *(p for p in parameters.values() if isinstance(p, dict))]
    bases = {p["rope_theta"] for p in kinds if "rope_theta" in p}
    return {
        "still": [complex(numbers[0]).real for numbers in first] if alike else None,
        "dim": tensors[0].shape[-1],
        "base": bases.pop() if len(bases) == 1 else None,
        "layout": None if apart else _layout(module),
    }


def _layout(module: nn.Module) -> str | None:
    """Which channels turn together in a class, as its file's ``rotate_half`` has them."""
    rotate_half = getattr(inspect.getmodule(type(module)), "rotate_half", None)
    if rotate_half is None:
        return None
    order = rotate_half(torch.arange(1.0, 5.0)).tolist()
    known = {(-3.0, -4.0, 1.0, 2.0): "half_split", (-2.0, 1.0, -4.0, 3.0): "interleaved"}
    return known.get(tuple(order))
