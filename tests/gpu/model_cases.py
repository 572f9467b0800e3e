"""Small decoders: the CPU's logits, and the same greedy text with the cache and without."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from benchmarks.gpu.compare import Compared, compared
from benchmarks.schemes.workloads import position
from xcope.modules import AutoregressiveWrapper, Decoder, TransformerWrapper

TOKENS, N = 40, 100
PROMPT, NEW = 9, 24
SCHEMES = ("cope", "cope_rotary", "rotary", "alibi", "fire")


@dataclass(frozen=True, kw_only=True)
class ModelCase:
    """A decoder of two layers under a scheme, float32."""

    scheme: str
    device: str = "cuda"
    backend: str = "auto"
    dtype: ClassVar[str] = "float32"
    part: ClassVar[str] = "models"

    @property
    def name(self) -> str:
        """See `Case`."""
        return f"decoder, {self.scheme}"

    @property
    def family(self) -> str:
        """Kernels differ from scheme to scheme."""
        return self.scheme

    def compared(self) -> Iterator[Compared]:
        """See `Case`; of texts the error is the share of tokens that differ, and 0 its bar."""
        model = decoder(self.scheme)
        tokens = torch.randint(TOKENS, (2, N), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            exact, plain = copy.deepcopy(model).double()(tokens), model(tokens)
            model = model.to(self.device)
            mine = model(tokens.to(self.device)).cpu()
        yield from compared(self, {"logits": mine}, {"logits": plain}, {"logits": exact})
        cached, full = (greedy(model, tokens[:, :PROMPT].to(self.device), c) for c in (True, False))
        yield Compared(
            part=self.part,
            case=self.name,
            backend=self.backend,
            dtype=self.dtype,
            tensor="greedy text with the cache",
            error=float((cached != full).double().mean()),
            plain=0.0,
            bar=0.0,
        )


def decoder(scheme: str) -> TransformerWrapper:
    """Always the same weights; where a scheme begins with zeros, others, as zeros go unseen."""
    torch.manual_seed(0)
    layers = Decoder(dim=64, depth=2, heads=4, attn_dim_head=16, position=position(scheme))
    model = TransformerWrapper(num_tokens=TOKENS, max_seq_len=N, attn_layers=layers)
    with torch.no_grad():
        for parameter in model.position_parameters():
            if not parameter.any():
                parameter.normal_()
    model.eval()
    return model


def greedy(model: TransformerWrapper, prompt: Tensor, cache: bool) -> Tensor:
    """The likeliest continuation of prompts (b n), (b new)."""
    writer = AutoregressiveWrapper(model)
    text: Tensor = writer.generate(prompt, NEW, temperature=0.0, cache_kv=cache)
    return text


def model_cases(device: str) -> list[ModelCase]:
    """A handful of schemes."""
    return [ModelCase(scheme=scheme, device=device) for scheme in SCHEMES]
