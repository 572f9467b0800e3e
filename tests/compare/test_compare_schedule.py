"""Which runs train when: no place is idle before the end, and a run that is held up is the same."""

import json
import math
import os
import signal
import threading
import time
from dataclasses import replace
from io import StringIO
from multiprocessing import Pipe
from types import SimpleNamespace

import psutil
import pytest
from compare_runs import outcome
from rich.console import Console

from xcope.compare import plan
from xcope.compare.run import pool, worker
from xcope.compare.run.display import Lines
from xcope.compare.run.schedule import LEAST, SHARE, Schedule, work
from xcope.compare.run.worker import Go, Held, Hold
from xcope.config import load_config
from xcope.training import RunInterruptedError, train

STEPS = 100
QUICKSTART = {"none": 26, "absolute": 26, "rotary": 28, "alibi": 33, "cope": 42}


def simulated(seconds: dict[str, float], jobs: int) -> tuple[float, int]:
    """When the last run ends, and the most that were in memory at once, if each reports a step."""
    now = 0.0
    runs = []
    for name in seconds:
        run = outcome(name.split("-")[0], 0, error=0.1).run
        train = run.config.train.model_copy(update={"steps": STEPS})
        config = run.config.model_copy(update={"train": train})
        runs.append(replace(run, config=config, folder=run.folder.with_name(name)))
    schedule = Schedule(runs, jobs, lambda: now)
    done, busy, begun, most = dict.fromkeys(seconds, 0.0), {}, set(), 0
    while len(begun) < len(runs) or begun - {n for n, share in done.items() if share >= STEPS}:
        while run := schedule.next():
            busy[run.name] = run
            begun.add(run.name)
            schedule.moved(run, int(done[run.name]))
        ahead = min((math.floor(done[n]) + 1 - done[n]) * seconds[n] / STEPS for n in busy)
        now += ahead
        for name, run in list(busy.items()):
            done[name] += ahead * STEPS / seconds[name] + 1e-9
            schedule.moved(run, int(done[name]))
            if done[name] >= STEPS:
                schedule.ended(run)
                del busy[name]
        if run := schedule.makes_room():
            schedule.held(run)
            del busy[run.name]
        most = max(most, sum(done[name] < STEPS for name in begun))
    return now, most


@pytest.mark.parametrize(
    ("seconds", "jobs"),
    [
        (QUICKSTART, 2),
        (dict.fromkeys(["none-a", "none-b", "none-c"], 60), 2),
        (dict.fromkeys([f"rotary-{i}" for i in range(5)], 60), 2),
        (dict.fromkeys([f"rotary-{i}" for i in range(17)], 60), 16),
        ({"none-a": 300, **dict.fromkeys([f"none-{i}" for i in range(5)], 60)}, 2),
        ({f"cope-{i}": 20 + 7 * i for i in range(7)}, 3),
        (dict.fromkeys([f"none-{i}" for i in range(40)], 60), 3),
    ],
)
def test_all_places_are_busy_until_the_end(seconds, jobs):
    """The least that any schedule takes is the longest run, or the mean of all places."""
    least = max(*seconds.values(), sum(seconds.values()) / jobs)
    # runs that are alike take a step each to be told apart; then ends differ by what is not saved
    late = max(LEAST, 2 * SHARE * max(seconds.values()))
    end, most = simulated(seconds, jobs)
    assert least - 1e-6 <= end <= least + late
    assert most <= 2 * jobs - 1


def test_the_longest_run_begins_first(tmp_path, made):
    keys = ["sweep.model.position=[none, alibi, cope]", "sweep.train.seed=[0]"]
    runs = plan(load_config(made.config, keys, sweep=True), tmp_path)
    schedule = Schedule(runs, 3)
    assert [schedule.next().scheme for _ in runs] == ["cope", "alibi", "none"]
    assert schedule.next() is None
    longer = load_config(made.config, ["train.steps=60", *keys], sweep=True)
    assert work(plan(longer, tmp_path)[0].config) == 10 * work(runs[0].config)


def test_nothing_is_held_up_that_ends_soon_anyway():
    end, most = simulated({f"none-{i}": 1.5 for i in range(3)}, 2)
    assert (round(end, 1), most) == (3.0, 2)


class Parent(threading.Thread):
    """Asks a run to wait as soon as it does steps, and lets it go on later, or hangs up."""

    def __init__(self, connection, seconds: float, go_on: bool) -> None:
        super().__init__(daemon=True)
        self.connection, self.seconds, self.goes_on = connection, seconds, go_on
        self.held = False

    def run(self) -> None:
        self.connection.send(Hold())
        while not isinstance(self.connection.recv(), Held):
            pass
        self.held = True
        time.sleep(self.seconds)
        if not self.goes_on:
            self.connection.close()
            return
        self.connection.send(Go())
        while self.connection.poll(None):
            try:
                self.connection.recv()
            except EOFError:
                return


def trained(run, folder, monkeypatch, seconds: float, go_on: bool) -> Parent:
    """Train a run that is held up after its first step."""
    monkeypatch.setattr(worker, "PERIOD", 0.0)
    ours, theirs = Pipe()
    parent = Parent(ours, seconds, go_on)
    parent.start()
    try:
        train(run.config, folder, resume=True, reporter=worker._Report(theirs))
    finally:
        theirs.close()
        parent.join()
    return parent


def same_as(made, run, folder) -> bool:
    """Whether weights, moments and results are those of the run that nobody held up."""
    names = [
        *(p.relative_to(folder) for p in folder.glob("checkpoint/*.safetensors")),
        "results.json",
    ]
    theirs = made.out / "runs" / run.name
    assert len(names) > 1
    return all((folder / name).read_bytes() == (theirs / name).read_bytes() for name in names)


def test_a_run_that_is_held_up_is_the_same_and_its_seconds_are_its_own(
    made, config, tmp_path, monkeypatch
):
    run = plan(config, tmp_path)[2]
    parent = trained(run, tmp_path / "run", monkeypatch, 1.5, go_on=True)
    assert parent.held
    assert same_as(made, run, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "timing.json").read_text())["seconds"] < 1.5


def test_a_run_that_is_held_up_saves_a_checkpoint_when_its_parent_hangs_up(
    made, config, tmp_path, monkeypatch
):
    run = plan(config, tmp_path)[2]
    with pytest.raises(RunInterruptedError, match="checkpoint after step 1 is in"):
        trained(run, tmp_path / "run", monkeypatch, 0.0, go_on=False)
    train(run.config, tmp_path / "run", resume=True)
    assert same_as(made, run, tmp_path / "run")


def test_no_run_waits_where_memory_has_no_room_for_another(config, tmp_path, monkeypatch):
    one = pool.Worker(plan(config, tmp_path)[0], 1, tmp_path / "logs")
    one.process = SimpleNamespace(pid=os.getpid())
    memory = SimpleNamespace(available=psutil.Process().memory_info().rss)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    one.hold()
    assert not one.asked
    memory.available *= 4
    one.hold()
    assert one.asked
    assert isinstance(one._theirs.recv(), Hold)


class Eager(Schedule):
    """Holds up the run of seed 1, once, as soon as it does steps."""

    tried = False

    def makes_room(self):
        name = "none-seed1"
        if self.tried or name not in self.busy or not self._courses[name].step:
            return None
        self.tried = True
        return self._courses[name].run


class Killing(Lines):
    """Kills the process of a run as soon as it waits."""

    def waits(self, run) -> None:
        super().waits(run)
        here = {one.name: one.pid for one in pool.multiprocessing.active_children()}
        os.kill(here[run.name], signal.SIGKILL)


def test_a_process_that_dies_while_it_waits_fails_its_run_alone(made, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "Schedule", Eager)
    keys = ["train.steps=300", "sweep.model.position=[none]", "sweep.train.seed=[0, 1, 2]"]
    runs, text = plan(load_config(made.config, keys, sweep=True), tmp_path), StringIO()
    shown = Killing(Console(file=text), runs)
    failed = pool.run_all(runs, jobs=2, threads=1, logs=tmp_path / "logs", display=shown)
    assert list(failed) == ["none-seed1"]
    assert "SIGKILL" in failed["none-seed1"]
    assert [run.complete for run in runs] == [True, False, True]
    assert text.getvalue().count("none-seed1: waits") == 1
    assert not any(said in text.getvalue() for said in ("seed0: waits", "goes on"))
