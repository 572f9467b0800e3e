"""Small models with something to see: tables and gates that are not zero."""

import pytest
import torch

import xcope

VOCABULARY = 20


@pytest.fixture
def make():
    """``make("cope", attn_kv_heads=2, …)``: a decoder in its wrapper, weights drawn from a seed."""

    def model(position, wrapper=None, **flags):
        torch.manual_seed(1)
        size = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8}
        decoder = xcope.Decoder(**(size | flags), position=position)
        made = xcope.TransformerWrapper(
            num_tokens=VOCABULARY, max_seq_len=64, attn_layers=decoder, **(wrapper or {})
        )
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if name.endswith("cope.pos_emb"):
                    parameter.normal_()
                if name.endswith(("to_q.weight", "to_k.weight")):
                    parameter.mul_(4)  # so that gates differ
        return made.eval()

    return model


@pytest.fixture
def ids():
    """Two texts of 24 tokens."""
    return torch.randint(VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(2))
