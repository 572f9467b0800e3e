"""scripts/train.py under a launcher: two processes share each batch and end where one does."""

import json
import signal
import socket
import subprocess

import pytest


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture
def start_two(start_script):
    """Start one script in two processes that know of each other, as a launcher does."""

    def start(*arguments: object) -> list[subprocess.Popen[str]]:
        common = {
            "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(),
            "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        ranks = [{"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
        return [start_script("train", *arguments, **common, **rank) for rank in ranks]

    return start


def test_two_processes_train_stop_and_go_on_as_one(
    script, start_two, wait_for_steps, tiny_yaml, tmp_path
):
    run = tmp_path / "two"
    processes = start_two(tiny_yaml, "train.steps=120", "--out", run)
    wait_for_steps(processes[0], run / "metrics.jsonl", 1)
    # one of them gets the signal, both stop after the same step
    processes[1].send_signal(signal.SIGINT)
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [130, 130], errors
    step = json.loads((run / "checkpoint" / "state.json").read_text())["state"]["step"]
    assert 0 < step < 120
    assert script("train", "--resume", run).code == 0
    assert script("train", tiny_yaml, "train.steps=120", "--out", tmp_path / "one").code == 0
    one, two = (
        json.loads((tmp_path / name / "results.json").read_text())["splits"]["in_distribution"]
        for name in ("one", "two")
    )
    assert two["loss"] == pytest.approx(one["loss"], rel=0.01)
