"""A run folder has one writer: a second is refused by name, and a dead one is in nobody's way."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import pytest
import yaml
from training_runs import TINY, At, MakeConfig, assert_same_weights

from xcope.compare import CompareError, compare
from xcope.config import load_config
from xcope.training import RunError, lock, train

REPO = Path(__file__).parents[2]
LONG = {**TINY, "train": {**TINY["train"], "steps": 100_000, "checkpoint_every": 2, "log_every": 1}}
HERE = rf"process {os.getpid()} on {socket.gethostname()}, since \d{{4}}-"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a script in a process of its own, and wait for the file that shows that it works."""
    started = []

    def run(name: str, *arguments: object, until: Path) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, REPO / "scripts" / name, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=tmp_path,
        )
        started.append(process)
        end = time.monotonic() + 60
        while not until.exists():
            assert process.poll() is None, "it ended too early"
            assert time.monotonic() < end
            time.sleep(0.02)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


def test_a_second_is_refused_in_every_way_and_the_first_may_be_killed(
    start, tiny: MakeConfig, tmp_path: Path
):
    run = tmp_path / "out" / "runs" / "rotary-seed0"
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(LONG))
    first = start("train.py", "long.yaml", "--out", run, until=run / "checkpoint" / "state.json")
    named = rf"process {first.pid} on {socket.gethostname()}, since .*scripts/train.py long.yaml"
    config = load_config(tmp_path / "long.yaml")
    for how in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(RunError, match=named):
            train(config, run, **how)
    # a comparison that has this run among its own reports it as failed, and leaves it alone
    (tmp_path / "out" / "config.yaml").write_text("")
    swept = {**LONG, "sweep": {"model.position": ["rotary"]}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(swept))
    compared = compare(load_config(tmp_path / "sweep.yaml", sweep=True), tmp_path / "out", jobs=1)
    assert f"process {first.pid}" in compared.failed[0].reason
    os.kill(first.pid, signal.SIGSTOP)
    with pytest.raises(RunError, match=named):
        train(config, run, resume=True)
    first.kill()
    first.wait()
    assert (run / lock.WRITER).exists(), "the record of the dead is still there"
    stop = At(10**9, lambda: None)
    shorter = json.loads((run / "checkpoint" / "state.json").read_text())["state"]["step"]

    class Enough(Exception):  # noqa: N818
        pass

    def enough(step: int, loss: float) -> None:
        stop.seen.append(step)
        raise Enough

    stop.step = enough  # type: ignore[method-assign]
    with pytest.raises(Enough):
        train(config, run, resume=True, reporter=stop)
    assert stop.seen[0] == shorter + 1, "it goes on from the last checkpoint"
    assert not (run / lock.WRITER).exists()


def test_a_comparison_keeps_all_others_out_of_its_folder(start, tmp_path: Path):
    out = tmp_path / "out"
    swept = {**LONG, "sweep": {"model.position": ["rotary", "none"]}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(swept))
    first = start(
        "compare.py", "sweep.yaml", "--out", out, "--jobs", 1,
        until=out / "runs" / "rotary-seed0" / "metrics.jsonl",
    )  # fmt: skip
    config = load_config(tmp_path / "sweep.yaml", sweep=True)
    for overwrite in (False, True):
        with pytest.raises(CompareError, match=rf"process {first.pid} on .*compare.py sweep.yaml"):
            compare(config, out, overwrite=overwrite)
    run = load_config(tmp_path / "sweep.yaml", ["sweep=null", "model.position=rotary"])
    for how in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(RunError, match=rf"process {first.pid} on"):
            train(run, out, **how)
        with pytest.raises(RunError, match=r"process \d+ on"):
            train(run, out / "runs" / "rotary-seed0", **how)
    assert (out / "config.yaml").is_file()


def test_two_threads_of_a_process_are_two_writers(tiny: MakeConfig, tmp_path: Path):
    (tmp_path / "run").mkdir()
    refusals = []

    def second() -> None:
        try:
            with lock.only_writer(tmp_path / "run"):
                pass
        except RunError as error:
            refusals.append(str(error))

    with lock.only_writer(tmp_path / "run"):
        with pytest.raises(RunError, match=HERE):
            train(tiny(), tmp_path / "run")
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(refusals) == 1
    train(tiny(), tmp_path / "run")


def test_a_finished_run_and_a_failed_one_leave_the_folder_free(tiny: MakeConfig, tmp_path: Path):
    class Crash(Exception):  # noqa: N818
        pass

    def crash() -> None:
        raise Crash

    with pytest.raises(Crash):
        train(tiny(), tmp_path / "run", reporter=At(6, crash))
    train(tiny(), tmp_path / "run", resume=True)
    train(tiny(), tmp_path / "whole")
    assert_same_weights(tmp_path / "run", tmp_path / "whole")
    assert not (tmp_path / "run" / lock.WRITER).exists()


def record(folder: Path, **changed: object) -> None:
    """A record as another process left it."""
    folder.mkdir(exist_ok=True)
    known = {"id": "x", "process": 7, "machine": "far", "boot": "other", "since": "then", "beat": 3}
    (folder / "new").write_text(json.dumps(known | changed))
    (folder / "new").replace(folder / lock.WRITER)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.5)
    monkeypatch.setattr(lock, "BEAT", 0.05)


@pytest.mark.usefixtures("hurried")
@pytest.mark.filterwarnings("ignore:another run")
def test_a_writer_on_another_machine_is_watched_for_signs_of_life(tmp_path: Path):
    """Where locks end at the machine: ours is granted, and the record tells of the other."""
    record(tmp_path)
    beats = threading.Event()

    def beat() -> None:
        for count in range(4, 1000):
            if beats.wait(0.1):
                return
            record(tmp_path, beat=count)

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(RunError, match="process 7 on far, since then"), lock.only_writer(tmp_path):
        pass
    beats.set()
    thread.join()
    with lock.only_writer(tmp_path):
        pass


@pytest.mark.usefixtures("hurried")
def test_a_writer_that_was_taken_for_dead_stops(tiny: MakeConfig, tmp_path: Path):
    def overtaken() -> None:
        record(tmp_path / "run")
        time.sleep(0.3)

    with pytest.raises(RunError, match=r"taken for dead.*process 7 on far"):
        train(tiny(), tmp_path / "run", reporter=At(6, overtaken))
    assert json.loads((tmp_path / "run" / lock.WRITER).read_text())["process"] == 7


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_the_file_system_has_no_locks_the_record_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
):
    def unsupported(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(filelock, "FileLock", unsupported)
    with lock.only_writer(tmp_path):
        with pytest.raises(RunError, match=HERE), lock.only_writer(tmp_path):
            pass
        left = json.loads((tmp_path / lock.WRITER).read_text())
    reused = {**left, "started": left["started"] - 1000}  # another process has the number now
    gone = {**left, "process": 2**22 + 1}
    for dead in (reused, gone):
        record(tmp_path, **dead)
        with lock.only_writer(tmp_path):
            pass


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff" * 9, "[" * 5000])
def test_a_record_that_was_cut_does_not_block(tmp_path: Path, content: str):
    (tmp_path / lock.WRITER).write_text(content, encoding="latin-1")
    with lock.only_writer(tmp_path):
        pass
    assert [file.name for file in tmp_path.iterdir()] == [lock.LOCK]
