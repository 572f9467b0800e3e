"""Shared settings: one thread, as tests may run beside each other, and repeatable examples."""

import gc
import importlib
import os
from collections import Counter
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ON_A_CARD = Path(__file__).parent / "gpu"
COMPARE = "tests/compare/"

# one browser for all tests that look at a page
pytest_plugins = ["browser_fixture"]

settings.register_profile("xcope", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("xcope")

for _device in (torch.cuda, torch.xpu):
    if not _device.is_available():
        # where there is no card a seed is kept for one, with the stack as text: that takes a
        # millisecond, ten thousand times
        _device.manual_seed_all = lambda seed: None

# Processes are forked from one that imports what the first to start any asks for; what the others
# need it has, too, or each of their processes would import it for seconds.
_preload = forkserver.set_forkserver_preload
forkserver.set_forkserver_preload = lambda asked: _preload([*asked, "xcope.compare.run.worker"])


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


def stays_together(file):
    """A file, or a folder: its tests run on one core, and what they share is made once.

    The files on comparisons share one.
    """
    return COMPARE if file.startswith(COMPARE) else file


def pytest_collection_modifyitems(config, items):
    """Side by side, begin with what takes long, so that no core is idle at the end."""
    if hasattr(config, "workerinput"):
        own = [stays_together(item.nodeid.partition("::")[0]) for item in items]
        tests, long = Counter(own), {COMPARE}
        long |= {
            file for file, item in zip(own, items, strict=True) if item.get_closest_marker("long")
        }
        order = sorted(range(len(items)), key=lambda at: (own[at] not in long, -tests[own[at]]))
        items[:] = [items[at] for at in order]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Hand out what stays together."""
    scheduling = importlib.import_module("xdist.scheduler").LoadFileScheduling(config, log)
    scheduling._split_scope = lambda nodeid: stays_together(nodeid.partition("::")[0])
    return scheduling


def pytest_collection_finish():
    """Have what was imported not searched for garbage again and again."""
    gc.collect()
    gc.freeze()
