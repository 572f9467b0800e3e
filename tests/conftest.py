"""Shared settings: one thread, as tests may run beside each other, and repeatable examples."""

import gc
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import settings

TESTS = Path(__file__).parent
COMPARE, ON_A_CARD = TESTS / "compare", TESTS / "gpu"

# one browser for all tests that look at a page
pytest_plugins = ["browser_fixture"]

settings.register_profile("xcope", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("xcope")

for _device in (torch.cuda, torch.xpu):
    if not _device.is_available():
        # where there is no card a seed is kept for one, with the stack as text: that takes a
        # millisecond, ten thousand times
        _device.manual_seed_all = lambda seed: None


@pytest.fixture(autouse=True)
def _one_thread_and_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def pytest_configure(config):
    """Have Triton's kernels interpreted, unless nothing is asked for but what runs on a card.

    It is read when Triton is imported, which is when its kernels are first wanted.
    """
    asked = [Path(str(arg).partition("::")[0]).resolve() for arg in config.args]
    if not all(path.is_relative_to(ON_A_CARD) for path in asked):
        os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(config, items):
    """Side by side, begin with what takes long, so that no core is idle at the end.

    Each file is on one core: what it makes once is made once. So is the folder whose files share a
    comparison.
    """
    if not hasattr(config, "workerinput"):
        return
    groups = {item.path: item.path for item in items}
    groups |= {path: path.parent for path in groups if path.parent == COMPARE}
    tests = Counter(groups[item.path] for item in items)
    for item in items:
        item.add_marker(pytest.mark.xdist_group(groups[item.path].relative_to(TESTS).as_posix()))
    items.sort(key=lambda item: (not item.get_closest_marker("long"), -tests[groups[item.path]]))


def pytest_collection_finish():
    """Have what was imported not searched for garbage again and again."""
    gc.collect()
    gc.freeze()
