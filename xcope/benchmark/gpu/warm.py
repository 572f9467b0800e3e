"""What takes long to compile, compiled beside other cases before it is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

from xcope.benchmark.gpu.compare import Compared
from xcope.benchmark.measure import Work


@dataclass(frozen=True)
class Warm:
    """A case that compares nothing: what Inductor and Triton compile for it stays on disk.

    What fails here fails again where it is measured, and is told there.

    Args:
        name: of what is measured.
        make: makes it, in whichever process.
    """

    name: str
    make: Callable[[], Work]
    part: ClassVar[str] = "warm"
    backend: ClassVar[str] = ""
    dtype: ClassVar[str] = ""

    @property
    def family(self) -> str:
        """Each goes alone."""
        return self.name

    def compared(self) -> Iterator[Compared]:
        """Nothing."""
        with suppress(Exception):
            self.make()()
        yield from ()
