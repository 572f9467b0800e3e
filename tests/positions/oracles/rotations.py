"""What the tests of rotations share: modules by name, and Hugging Face's Llama beside them."""

import torch
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from xcope.positions import Geometry, scheme

D, HEADS = 16, 4
GEOMETRY = Geometry(dim=HEADS * D, heads=HEADS, dim_head=D)


def module(name, **options):
    return scheme(name, options).build(GEOMETRY)


def queries_and_keys(n, kv_heads=HEADS, d=D, dtype=torch.float32):
    return torch.randn(2, HEADS, n, d, dtype=dtype), torch.randn(2, kv_heads, n, d, dtype=dtype)


def llama(q, k, pos, max_len=4096, **rope_parameters):
    """q and k as Llama's layers turn them; a fresh model, as dynamic scaling has a memory."""
    config = LlamaConfig(
        hidden_size=HEADS * D,
        num_attention_heads=HEADS,
        head_dim=D,
        max_position_embeddings=max_len,
        rope_parameters={"rope_theta": 10000.0, **rope_parameters},
    )
    cos, sin = LlamaRotaryEmbedding(config)(q, pos.expand(q.shape[0], -1))
    return apply_rotary_pos_emb(q, k, cos, sin)


def logits(rotation, q, k, q_pos, k_pos):
    """q·k after the rotation, (b h i j); query head a reads key head a // (h / hk)."""
    q, k = rotation.rotate(q, k, q_pos, k_pos)
    return q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).mT


def assert_depends_on_places_alone(rotation):
    """Cached as uncached, rows with places of their own, and the same distances elsewhere."""
    q, k = queries_and_keys(20, kv_heads=2)
    pos = torch.arange(20)
    whole = logits(rotation, q, k, pos, pos)
    tail = logits(rotation, q[:, :, -3:], k, pos[-3:], pos)
    torch.testing.assert_close(tail, whole[:, :, -3:], rtol=1e-4, atol=1e-4)

    rows = torch.stack([pos, 3 * pos + 7])
    together = logits(rotation, q, k, rows, rows)
    for row in range(2):
        alone = logits(rotation, q[row, None], k[row, None], rows[row], rows[row])
        torch.testing.assert_close(together[row, None], alone, rtol=1e-4, atol=1e-4)

    further = logits(rotation, q, k, pos + 100, pos + 100)
    torch.testing.assert_close(further, whole, rtol=1e-3, atol=1e-3)
