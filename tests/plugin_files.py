"""Plugins that tests write: a scheme of the bias slot's definition, a task, a metric, a column."""

from pathlib import Path

SCHEME = '''"""A bias that falls with the distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from xcope.positions import AttendModule, Scheme, Slot, register


class Away(AttendModule):
    def __init__(self, heads, size):
        super().__init__()
        self.slope = nn.Parameter(torch.full((heads,), 1.0 / size))

    def forward(self, q, logits, seen, inputs):
        i, j = logits.shape[-2:]
        back = torch.arange(i)[:, None] + j - i - torch.arange(j)
        return -self.slope[:, None, None] * back.clamp(min=0)


@register
@dataclass(frozen=True, kw_only=True)
class Recency(Scheme):
    """``position: recency``.

    Args:
        size: how far it reaches.
    """

    name: ClassVar[str] = "recency"
    title: ClassVar[str] = "Recency"
    slot: ClassVar[Slot | None] = Slot.ATTEND
    paper: ClassVar[str] = "none"
    formula: ClassVar[str] = "q·k − d/size"
    oracle: ClassVar[str] = "formula"

    size: int = 8

    def build(self, geometry):
        self.require(self.size > 0, "size", "above 0")
        return Away(geometry.heads, self.size)
'''

TASK = '''"""The same token again and again."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from xcope.tasks import Batch, Task, register


@register
@dataclass(frozen=True, kw_only=True)
class Again(Task):
    name: ClassVar[str] = "again"
    paper: ClassVar[str] = "-"
    metric: ClassVar[str] = "error"

    times: int = 5

    @property
    def num_tokens(self):
        return 4

    @property
    def splits(self):
        return ("in_distribution",)

    def seq_len(self, split):
        return self.times

    def sample(self, split, batch_size, generator):
        tokens = torch.randint(4, (batch_size, 1), generator=generator).expand(-1, self.times)
        return Batch(tokens, tokens)

    def encode(self, text):
        return [int(word) for word in text.split()]

    def decode(self, tokens):
        return " ".join(map(str, tokens))
'''

RECORDS = """
from xcope.compare.report import columns
from xcope.training import metrics

metrics.register(metrics.Metric("surprise", lambda answers: answers.losses.amax(dim=-1)))
columns.register(columns.Column("pace", "pace", lambda run: run.steps / run.params))
"""

CONFIG = """
import: {imports}
model: {{dim: 16, depth: 1, heads: 2, position: {{name: recency, size: 4}}}}
task: {{name: again}}
train: {{steps: 4, batch_size: 4, checkpoint_every: 2, device: cpu}}
evaluate: {{batches: 1, batch_size: 4}}
"""


def write(folder: Path, imports: str = "[recency.py, again.py]") -> Path:
    """A folder with both plugins and a config that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recency.py").write_text(SCHEME)
    (folder / "again.py").write_text(TASK)
    (folder / "exp.yaml").write_text(CONFIG.format(imports=imports))
    return folder / "exp.yaml"
