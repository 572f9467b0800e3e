"""What is said of the machine that numbers come from."""

import re

import torch

from xcope import environment
from xcope.environment import TIMED, device_name, memory, noted, processor, versions


def test_the_machine_is_named():
    assert processor()
    assert re.fullmatch(r"[1-9]\d* GiB", memory())
    for part in ("Python", f"torch {torch.__version__}", "numba", "x-transformers"):
        assert part in versions(TIMED)


def test_a_package_that_is_missing_is_told():
    assert versions(("torch", "no-such-package")).endswith(", no-such-package (not installed)")


def test_a_processor_has_a_name_without_proc(monkeypatch):
    def gone(*args, **options):
        raise FileNotFoundError("/proc/cpuinfo")

    monkeypatch.setattr(environment.Path, "read_text", gone)
    monkeypatch.setattr("platform.processor", lambda: "a processor")
    assert device_name(torch.device("cpu")) == "a processor"


def test_what_a_run_notes():
    assert noted(torch.device("cpu")) == {
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
