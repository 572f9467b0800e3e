"""Shared settings: one thread, as tests may run beside each other, and repeatable examples."""

import os

import pytest
import torch
from hypothesis import settings

# read when Triton is imported, which is when its kernels are first wanted
os.environ.setdefault("TRITON_INTERPRET", "1")

# one browser for all tests that look at a page
pytest_plugins = ["browser_fixture"]

settings.register_profile("xcope", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("xcope")


@pytest.fixture(autouse=True)
def _one_thread_and_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)
