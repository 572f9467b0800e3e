"""One writer: the folder of a run, or of a comparison, is written by one process at a time.

Two files in the folder say whether it is taken.

- ``.lock`` holds the kernel's lock. It goes with its process, however that ends, and reaches other
  machines on NFSv4 and whatever else shares its locks.
- ``.writer.json`` names the process, for people, with a count that it raises every `BEAT` seconds.
  Where locks end at the machine (NFS without lockd, Lustre's ``localflock``), a count that moves
  says that its writer lives; one that stands still for `PATIENCE` seconds is taken over. A writer
  that was only asleep finds out at its next beat, and stops.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import socket
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock
import psutil

from xcope import files
from xcope.training.errors import RunError

BEAT = 10.0
"""Seconds between two signs of life."""
PATIENCE = 45.0
"""Seconds without one after which a writer on another machine counts as dead."""
LOCK, WRITER = ".lock", ".writer.json"
NAMES = frozenset({LOCK, WRITER, f".{WRITER}.new"})
"""Files that a folder without a run may hold."""
UNSUPPORTED = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})
"""What file systems without locks answer."""


@contextmanager
def only_writer(folder: Path, refused: type[RunError] = RunError) -> Iterator[Writer]:
    """Context in which no other process writes to ``folder``, which exists.

    Args:
        refused: the error to raise.

    Raises:
        RunError: another process does; the message names it.
    """
    with ExitStack() as stack:
        locked = True
        try:
            # released with its process; the file stays, as removing it would split those who wait
            lock = filelock.FileLock(folder / LOCK, timeout=0, fallback_to_soft=False)
            stack.enter_context(lock)
        except filelock.Timeout:
            raise refused(in_use(folder, _read(folder))) from None
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            locked = False
        found = _read(folder)
        if found and _lives(folder, found, locked):
            raise refused(in_use(folder, found))
        writer = Writer(folder)
        stack.callback(writer.release)
        yield writer


def in_use(folder: Path, record: dict[str, Any] | None) -> str:
    """Who writes to the folder, and what to do about it."""
    who = "another process"
    if record:
        who = f"process {record.get('process')} on {record.get('machine')}"
        since, command = record.get("since"), record.get("command")
        who += f", since {since}" + (f" ({command:.200})" if command else "")
    return (
        f"another run or comparison is running in {folder}: {who}. Wait until it ends, stop it, or "
        "choose another folder"
    )


class Writer:
    """The record of who writes to a folder, kept fresh by a thread until `release`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lost: str = ""
        """Who took the folder over, in words; empty as long as it is ours."""
        self._record: dict[str, Any] = {
            "id": uuid.uuid4().hex,
            "process": os.getpid(),
            "started": psutil.Process().create_time(),
            "machine": socket.gethostname(),
            "boot": _boot(),
            "since": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            "command": shlex.join(sys.argv)[:500],
            "beat": 0,
        }
        self._write()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise `RunError` if another process has taken the folder over."""
        if self.lost:
            raise RunError(f"this process was taken for dead, and stops: {self.lost}")

    def release(self) -> None:
        """Take the record away."""
        self._done.set()
        self._thread.join()
        if not self.lost:
            (self.folder / WRITER).unlink(missing_ok=True)

    def _keep_beating(self) -> None:
        while not self._done.wait(BEAT):
            # a disk that is full, or a server that is away, for a while: the next beat may succeed
            with suppress(OSError):
                found = _read(self.folder)
                if found and found.get("id") != self._record["id"]:
                    self.lost = in_use(self.folder, found)
                    return
                self._record["beat"] += 1
                self._write()

    def _write(self) -> None:
        beside = self.folder / f".{WRITER}.new"
        beside.write_text(json.dumps(self._record), encoding="utf-8")
        beside.replace(self.folder / WRITER)


def _read(folder: Path) -> dict[str, Any] | None:
    """The record; None where there is none, or none that can be read."""
    try:
        record = files.parse_json(files.read_text(folder / WRITER, 2**16))
    except (FileNotFoundError, files.UnreadableError):
        return None
    return record if isinstance(record, dict) else None


def _lives(folder: Path, record: dict[str, Any], locked: bool) -> bool:
    """Whether the process of a record that was found may still write.

    Args:
        locked: the kernel has given us its lock, which no living process of this machine has then.
    """
    if record.get("boot") == _boot():
        return not locked and _runs(record)
    return _beats(folder, record)


def _runs(record: dict[str, Any]) -> bool:
    """Whether a process of this machine runs; another one may have its number by now."""
    try:
        process = psutil.Process(int(record["process"]))
        same: bool = abs(process.create_time() - float(record["started"])) < 2
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return True
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def _beats(folder: Path, record: dict[str, Any]) -> bool:
    """Whether a writer on another machine gives a sign of life within `PATIENCE`."""
    warnings.warn(
        f"{in_use(folder, record)}. It may be dead: waiting for a sign of life, {PATIENCE:.0f} "
        "seconds at most",
        stacklevel=6,
    )
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        time.sleep(min(1.0, PATIENCE / 10))
        found = _read(folder)
        if found is None:
            return False
        if (found.get("id"), found.get("beat")) != (record.get("id"), record.get("beat")):
            return True
    return False


def _boot() -> str:
    """What tells this machine, since it was started, from all others."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return f"{socket.gethostname()} {psutil.boot_time():.0f}"
