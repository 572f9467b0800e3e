"""A plain decoder as nanoGPT writes it, without positions.

One product makes q, k and v, one of PyTorch's attention kernels does the rest, and no flags are
looked at. Its parameters are those of our decoder with ``position="none"``.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Attention and feed-forward, each after a layer norm and added to its input."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim, bias=False)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.mlp_norm = nn.LayerNorm(dim, bias=False)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(b n dim) → (b n dim)."""
        attended = x + self.attend(self.attention_norm(x))
        return attended + self.mlp(self.mlp_norm(attended))  # type: ignore[no-any-return]

    def attend(self, x: Tensor) -> Tensor:
        """Causal attention, (b n dim) → (b n dim)."""
        b, n, dim = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(out.transpose(1, 2).reshape(b, n, dim))  # type: ignore[no-any-return]


class PlainDecoder(nn.Module):
    """Tokens (b n) → logits (b n tokens).

    Args:
        tokens: how many kinds there are.
        dim: width of the residual stream.
        depth: blocks.
        heads: of each, dim / heads wide.
    """

    def __init__(self, tokens: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, dim)
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, bias=False)
        self.to_logits = nn.Linear(dim, tokens, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of the token that follows each."""
        x = self.blocks(self.embedding(x))
        return self.to_logits(self.norm(x))  # type: ignore[no-any-return]
