"""Cases side by side: one that ends its process, or never ends, takes no other with it."""

import os
import time
from dataclasses import dataclass

from benchmarks.gpu.compare import Compared
from benchmarks.gpu.processes import side_by_side


@dataclass(frozen=True)
class Told:
    """A case that does what its name says."""

    name: str
    family: str = "one"
    part: str = "cope"
    backend: str = "tiled"
    dtype: str = "float32"

    def compared(self):
        if self.name == "ends":
            os._exit(7)
        if self.name == "raises":
            raise ValueError("no such thing")
        if self.name == "sleeps":
            time.sleep(60)
        yield Compared(
            part=self.part,
            case=self.name,
            backend=self.backend,
            dtype=self.dtype,
            tensor="out",
            error=0.0,
            plain=0.0,
            bar=1.0,
        )


def told(*names, jobs, seconds):
    cases = [Told(name, family=f"family {index % 2}") for index, name in enumerate(names)]
    found = [one for results in side_by_side(cases, jobs, seconds) for one in results]
    assert sorted(one.case for one in found) == sorted(names)
    return {one.case: one.failure for one in found}


def test_a_process_that_ends_is_replaced():
    found = told("ends", "raises", "a", "b", "c", jobs=2, seconds=60)
    assert found.pop("ends") == "its process ended with 7"
    assert found.pop("raises") == "ValueError: no such thing"
    assert set(found.values()) == {""}


def test_what_does_not_end_in_time_has_failed():
    assert told("sleeps", "a", jobs=1, seconds=0.5) == dict.fromkeys(
        ("sleeps", "a"), "not done after 0 s"
    )


def test_in_this_process():
    assert told("raises", "a", jobs=0, seconds=1) == {
        "raises": "ValueError: no such thing",
        "a": "",
    }
