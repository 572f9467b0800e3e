"""What `XCopeForCausalLM` keeps of earlier tokens, in a ``DynamicCache`` of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from xcope.errors import FlagError


class LayerCache(CacheLayerMixin):  # type: ignore[misc]
    """What one attention layer keeps of the tokens so far, in a ``DynamicCache``.

    ``keys`` and ``values``, and ``more``: what its schemes remember of each token. All are
    (rows … tokens width), and rows may be several for each of the batch (residual streams).
    """

    is_sliding = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, kept: Sequence[Tensor | None], rows: int, length: int) -> None:
        super().__init__()
        self.keep(kept, rows, length)

    @property
    def kept(self) -> tuple[Tensor | None, ...]:
        """As x-transformers' cache has it."""
        return self.keys, self.values, *self.more

    def keep(self, kept: Sequence[Tensor | None], rows: int, length: int) -> None:
        """Hold these instead, of ``rows`` texts of ``length`` tokens."""
        self.keys, self.values, *more = kept
        self.more = tuple(more)
        self.rows, self.length, self.is_initialized = rows, length, True

    def _change(self, change: Callable[[Tensor], Tensor], rows: int, length: int) -> None:
        self.keep([None if t is None else change(t) for t in self.kept], rows, length)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Never: `XCopeForCausalLM.forward` makes the layers."""
        raise NotImplementedError

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Never: attention itself puts what is cached and what is new together."""
        raise NotImplementedError

    def get_seq_length(self) -> int:
        """Tokens so far, padding included."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that ``query_length`` new tokens meet, and where these begin."""
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; transformers counts them below 0."""
        left = max(self.length - abs(tokens_to_remove), 0)
        self._change(lambda t: t[..., :left, :], self.rows, left)

    def reset(self) -> None:
        """Forget all tokens."""
        self.crop(self.length)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on with these rows, (b) int64."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row so many times."""
        self.batch_select_indices(torch.arange(self.rows).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Go on with these rows: their numbers, or a bool for each."""
        chosen = torch.arange(self.rows, device=indices.device)[indices]

        def select(t: Tensor) -> Tensor:
            streams = t.view(self.rows, -1, *t.shape[1:])
            return streams.index_select(0, chosen.to(t.device)).flatten(0, 1)

        self._change(select, len(chosen), self.length)

    def offload(self) -> None:
        """Move to the CPU."""
        self._change(lambda t: t.cpu(), self.rows, self.length)


def keep(
    cache: Cache | None, kept: Sequence[Sequence[Tensor | None]], rows: int, length: int
) -> Cache:
    """The cache, a new one if there is none, with what the layers keep now."""
    cache = DynamicCache() if cache is None else cache
    if len(cache.layers) == len(kept) and all(isinstance(one, LayerCache) for one in cache.layers):
        for layer, tensors in zip(cache.layers, kept, strict=True):
            layer.keep(tensors, rows, length)
    else:
        cache.layers = [LayerCache(tensors, rows, length) for tensors in kept]
    return cache


def layers_of(cache: Cache | None) -> list[LayerCache]:
    """What a cache holds of our layers; none if it is empty.

    Raises:
        FlagError: a cache of another kind, or of another model.
    """
    if cache is None:
        return []
    own = isinstance(cache, DynamicCache)
    layers = cache.layers if own else []
    if layers and all(isinstance(layer, LayerCache) for layer in layers):
        return list(layers)
    if not own or cache.get_seq_length() or cache.offloading:
        raise FlagError(
            "cache",
            f"cache={type(cache).__name__} is not taken: give an empty DynamicCache, which is not "
            "offloaded, or what an earlier call of this model gave",
        )
    return []
