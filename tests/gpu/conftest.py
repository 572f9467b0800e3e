"""What only a card can show; `scripts/gpu_check.py` runs these tests, and reports their numbers.

`pytest tests/gpu` by itself compiles Triton's kernels; beside other tests they are interpreted.
"""

import os

import pytest
import torch

from benchmarks.gpu.compare import attempt


@pytest.fixture
def gpu_check(pytestconfig):
    """The check that these tests run for; None where pytest was called by itself."""
    return pytestconfig.pluginmanager.get_plugin("gpu_check")


@pytest.fixture(autouse=True)
def _on_a_card(gpu_check):
    """A check says itself where it runs; a quick one does without a card."""
    if gpu_check is None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if gpu_check is None and os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton's kernels are interpreted here: run pytest tests/gpu by itself")


@pytest.fixture
def compared(gpu_check):
    """``compared(case)``: its tensors; a check had them computed side by side."""
    return attempt if gpu_check is None else gpu_check.results
