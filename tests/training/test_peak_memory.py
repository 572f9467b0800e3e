"""Memory of training: what its peak counts, and what is kept from step to step."""

import json
import multiprocessing
import platform
import resource

import pytest
import torch

from xcope.config import TrainConfig
from xcope.training import device, train
from xcope.training.device import PeakMemory

MB = 1_000_000


def take(megabytes: int) -> None:
    torch.ones(megabytes * MB // 4)


def measured(before: int, during: int) -> tuple[int | None, int]:
    """Peak while ``during`` MB are taken in a process that holds ``before`` MB, and these bytes."""
    held = torch.ones(before * MB // 4)
    take(300)  # a peak of the past
    peak = PeakMemory(torch.device("cpu"))
    take(during)
    return peak.bytes(), held.nbytes


@pytest.mark.skipif(not device.STATUS.exists(), reason="Linux alone tells the peak")
@pytest.mark.parametrize(("before", "during"), [(0, 50), (100, 200)])
def test_the_peak_is_what_was_taken_since(before, during):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    with context.Pool(1) as pool:  # a process that computed nothing
        taken, held = pool.apply(measured, (before, during))
    assert held == before * MB
    assert taken == pytest.approx(during * MB, abs=8 * MB)


def pages_mapped_again() -> int:
    """How many, while the same memory is taken and freed five times."""
    pages = []
    for _ in range(7):
        held = [torch.ones(3 * MB // 4) for _ in range(60)]
        del held
        pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    return pages[-1] - pages[1]


def pages_in_training(environment: dict[str, str]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
            patch.delenv(name, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        with device.accelerated(TrainConfig(device="cpu")):
            return pages_mapped_again()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory of another C library")
def test_training_keeps_what_a_step_frees_unless_the_environment_has_its_own_wish():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    with context.Pool(1, maxtasksperchild=1) as pool:
        theirs, ours = pool.map(
            pages_in_training, [{"MALLOC_TRIM_THRESHOLD_": "100000"}, {}], chunksize=1
        )
    assert theirs > 1000
    assert ours < theirs / 20


def test_where_the_system_does_not_tell_there_is_no_peak(monkeypatch, tmp_path):
    monkeypatch.setattr(device, "STATUS", tmp_path / "status")
    monkeypatch.setattr(device, "RESET", tmp_path / "none" / "clear_refs")
    assert PeakMemory(torch.device("cpu")).bytes() is None
    (tmp_path / "status").write_text("Name:\tpython\nVmPeak:\t 10 kB\n")
    assert PeakMemory(torch.device("cpu")).bytes() is None


def test_on_a_gpu_it_is_what_pytorch_allocated(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", asked.append)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 350)
    device = torch.device("cuda", 0)
    assert PeakMemory(device).bytes() == 250
    assert asked == [device]


@pytest.mark.skipif(not device.STATUS.exists(), reason="Linux alone tells the peak")
def test_a_run_notes_its_peak_beside_its_time(tiny, tmp_path):
    train(tiny(), tmp_path / "run")
    timing = json.loads((tmp_path / "run" / "timing.json").read_text())
    assert timing["peak_bytes"] >= 0
    assert "peak_bytes" not in json.loads((tmp_path / "run" / "results.json").read_text())


def test_measuring_again_does_not_take_evaluation_for_training(tiny, tmp_path):
    """A process that does no step has no peak to tell."""
    train(tiny(), tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    train(tiny(), tmp_path / "run", resume=True)
    assert json.loads((tmp_path / "run" / "timing.json").read_text())["peak_bytes"] is None


def test_a_run_is_measured_on_the_splits_that_are_asked_for(tiny, tmp_path):
    result = train(tiny("evaluate.splits=[dense]"), tmp_path / "run")
    assert list(result.splits) == ["dense"]
