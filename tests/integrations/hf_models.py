"""Small models of transformers around our decoders, for the tests beside this file."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
from schemes import NAMES, position
from transformers import logging as transformers_logging

from xcope.integrations.transformers import XCopeConfig, XCopeForCausalLM

transformers_logging.disable_progress_bar()

TOKENS, LENGTH = 20, 48
SPLITS = {
    "layers": {"layers": ["rotary", "none"]},
    "heads": {"heads": ["cope", "rotary"]},
    "both": ["absolute", "cope"],
}
EVERY = [*NAMES, *SPLITS]
"""Every scheme, and schemes split by layers and heads."""


def model_of(name, **flags):
    """A model whose every parameter acts."""
    torch.manual_seed(0)
    sizes = {"dim": 32, "depth": 2, "heads": 2, "ff_mult": 1}
    where = SPLITS[name] if name in SPLITS else position(name)
    config = XCopeConfig(num_tokens=TOKENS, max_seq_len=LENGTH, position=where, **sizes | flags)
    model = XCopeForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.requires_grad_()


def tokens(n=9, b=2):
    return torch.randint(TOKENS, (b, n), generator=torch.Generator().manual_seed(n))


def same(ours, truth, **tolerance):
    torch.testing.assert_close(ours, truth, **tolerance or {"atol": 2e-5, "rtol": 1e-4})
