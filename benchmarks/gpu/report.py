"""What a check of a GPU found: printed and on disk as soon as it is there, then a README."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.gpu.compare import FACTOR, FLOORS, Compared
from benchmarks.gpu.figures import Figure, milliseconds
from benchmarks.measure import Timing
from benchmarks.report import MILLISECONDS, plot_lengths
from xcope.environment import TIMED, device_name, memory, processor, versions
from xcope.markdown import code_block, page, table, write_csv

COMPARED = ("part", "case", "backend", "dtype", "tensor", "error", "plain_error",
            "flash_error", "bar", "ok",
            "failure")  # fmt: skip
MEASURED = (
    *("part", "name", "over", "shape", "n", "dtype", "milliseconds", "over_milliseconds", "ratio"),
    *("limit", "verdict", "mebibytes", "over_mebibytes", "error"),
)


class OutOfTimeError(Exception):
    """The minutes are over; nothing new begins."""


@dataclass
class Record:
    """All that a check found.

    Args:
        out: the folder for its files.
        command: what to type to run it again.
        device: where it runs.
        parts: what was asked for.
        quick: whether the shapes are too small to judge costs by.
        minutes: nothing new begins after these.

    Attributes:
        unfinished: the reasons why something is missing.
    """

    out: Path
    command: str
    device: torch.device
    parts: Sequence[str]
    quick: bool
    minutes: float
    compared: list[Compared] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return time.monotonic() - self.begun

    @property
    def failures(self) -> list[Compared]:
        """The tensors that are not correct."""
        return [one for one in self.compared if not one.ok]

    @property
    def missed(self) -> list[Figure]:
        """The figures whose bar is not met."""
        return [one for one in self.figures if not one.met]

    def say(self, text: object) -> None:
        """Print a line, with the seconds since the beginning."""
        print(f"[{self.seconds:6.1f} s] {text}", flush=True)

    def compare(self, found: Sequence[Compared]) -> None:
        """Keep the tensors of a case, and print the worst.

        Raises:
            OutOfTimeError: the minutes are over.
        """
        if found:
            self.say(worst(found))
            self.compared += found
            write_csv(self.out / "correctness.csv", COMPARED, map(_csv_of_tensor, self.compared))
            self._check_time()

    def measure(self, figure: Figure) -> None:
        """Keep and print a figure.

        Raises:
            OutOfTimeError: the minutes are over.
        """
        self.say(figure)
        self.figures.append(figure)
        write_csv(self.out / "benchmark.csv", MEASURED, map(_csv_of_figure, self.figures))
        self._check_time()

    def leave(self, reason: str) -> None:
        """Keep and print why something is missing."""
        self.say(reason)
        self.unfinished.append(reason)

    def _check_time(self) -> None:
        if self.seconds > 60 * self.minutes:
            raise OutOfTimeError(f"stopped after {self.minutes:g} minutes")


def worst(found: Sequence[Compared]) -> Compared:
    """The tensor of a case that failed, or comes nearest to its bar."""

    def share(one: Compared) -> float:
        if one.error is None or not one.bar or one.error != one.error:  # no number at all
            return 0.0 if one.ok else float("inf")
        return one.error / one.bar

    return max(found, key=share)


def _csv_of_tensor(one: Compared) -> list[object]:
    errors = (None if x is None else f"{x:.3e}" for x in (one.error, one.plain, one.flash, one.bar))
    head = (one.part, one.case, one.backend, one.dtype, one.tensor)
    return [*head, *errors, one.ok, one.failure]


def _csv_of_figure(one: Figure) -> list[object]:
    def ms(timing: Timing) -> str | None:
        return None if timing.seconds is None else f"{MILLISECONDS * timing.seconds:.4g}"

    def mib(timing: Timing) -> str | None:
        return None if timing.mebibytes is None else f"{timing.mebibytes:.1f}"

    ratio = None if one.ratio is None else f"{one.ratio:.3f}"
    return [
        *(one.part, one.name, one.over, one.shape, one.n, one.dtype),
        *(ms(one.mine), ms(one.other), ratio, one.bound if one.has_bar else None, one.verdict),
        *(mib(one.mine), mib(one.other), one.error),
    ]


# -- the report --------------------------------------------------------------------------------

QUICK_RUN = "**A quick run: whether it works, not what it costs.**"

PARTS = {
    "cope": "CoPE attention",
    "flex": "Attention with an index bias",
    "models": "Small decoders",
    "bars": "Bars",
    "biases": "Index biases",
    "curve": "Time and memory against n",
    "kernels": "Kernel by kernel",
    "more": "Other heads, another dtype, every scheme",
}
"""What the command line calls a part → its title."""


def folder_name(device: torch.device) -> str:
    """For a folder: ``h100-80gb-hbm3``, or ``cpu``."""
    if device.type != "cuda":
        return device.type
    words = re.findall(r"[a-z0-9]+", torch.cuda.get_device_name(device).lower())
    return "-".join(word for word in words if word not in ("nvidia", "geforce"))


def packages() -> str:
    """The versions of what the figures depend on."""
    found = versions((*TIMED, "triton"))
    return found if torch.version.cuda is None else f"{found}, CUDA {torch.version.cuda}"


def write(record: Record) -> None:
    """README.md, and benchmark.png where there is a curve."""
    curve = [one for one in record.figures if one.part == "curve"]
    if curve:
        names = dict.fromkeys(one.name for one in curve)
        points = {
            name: [(o.n, o.mine.seconds, o.mine.mebibytes) for o in curve if o.name == name]
            for name in names
        }
        plot_lengths(points, record.out / "benchmark.png", "peak memory beside the inputs, MiB")
    blocks = [*_head(record), *_verdict(record), *_correctness(record), *_benchmark(record)]
    (record.out / "README.md").write_text(page(blocks), encoding="utf-8")


def _head(record: Record) -> Iterator[str]:
    yield f"# A check of {device_name(record.device)}"
    yield code_block(record.command, "bash")
    if record.quick:
        yield QUICK_RUN
    named = dict.fromkeys((device_name(record.device), processor()))
    took = f"The run took {record.seconds / 60:.1f} minutes."
    yield f"{'; '.join(named)}, {memory()}; {packages()}. {took}"


def _verdict(record: Record) -> Iterator[str]:
    """The whole in a few lines."""
    lines = []
    if record.compared:
        cases = {(one.part, one.case, one.dtype, one.backend) for one in record.compared}
        lines.append(
            f"Correctness: {len(cases)} cases, {len(record.compared)} tensors, "
            f"{_count(record.failures, 'is not', 'are not')} within the bar."
        )
    asked = [one for one in record.figures if one.has_bar]
    if asked:
        lines.append(
            f"Cost: {len(asked)} bars, {_count(record.missed, 'is not', 'are not')} met"
            + (" (a missed bar of cost is no error)." if record.missed else ".")
        )
    if record.unfinished:
        lines.append(f"**Not all of it ran: {'; '.join(record.unfinished)}.**")
    yield "\n".join(f"- {line}" for line in lines)


def _count(found: Sequence[object], one: str, many: str) -> str:
    number = f"**{len(found)}**" if found else "0"
    return f"{number} {one if len(found) == 1 else many}"


def _correctness(record: Record) -> Iterator[str]:
    if not record.compared:
        return
    yield "## Correctness"
    floors = ", ".join(f"{value:g} in {dtype}" for dtype, value in FLOORS.items())
    yield (
        "Output and all gradients against the definition in float64, computed from the same "
        "numbers: ‖x − x₆₄‖ / ‖x₆₄‖. *Plain* is the error that the definition itself "
        f'(`backend="reference"`) makes in the same dtype. The bar is {FACTOR} times that, and '
        f"at least {floors}. Each row has the tensor that comes nearest to its bar; "
        "[correctness.csv](correctness.csv) has all."
    )
    for part in ("cope", "flex", "models"):
        found = [one for one in record.compared if one.part == part]
        if found:
            yield f"### {PARTS[part]}"
            yield table(("", "backend", "dtype", "tensor", "error", "plain", "flash", "bar", ""),
                        map(_case, _by_case(found)), "-r")  # fmt: skip
    failures = [one for one in record.failures if not one.failure]
    if failures:
        yield "Tensors that are not within the bar:"
        yield "\n".join(f"- {one}" for one in failures)


def _by_case(found: Sequence[Compared]) -> list[Compared]:
    """The worst tensor of each case."""
    cases: dict[tuple[str, str, str], list[Compared]] = {}
    for one in found:
        cases.setdefault((one.case, one.backend, one.dtype), []).append(one)
    return [worst(tensors) for tensors in cases.values()]


def _case(one: Compared) -> list[str]:
    numbers = ("–" if x is None else f"{x:.1e}" for x in (one.error, one.plain, one.flash, one.bar))
    verdict = "met" if one.ok else f"**NOT MET** {one.failure}".rstrip()
    return [one.case, one.backend, one.dtype, one.tensor or "–", *numbers, verdict]


def _benchmark(record: Record) -> Iterator[str]:
    if not record.figures:
        return
    yield "## Cost"
    if record.quick:
        yield QUICK_RUN
    yield (
        "Milliseconds: medians of runs in turn in one process, by CUDA events, after a warm-up. "
        "Memory: allocated at the peak beyond what was allocated before, so without the inputs. "
        "q, k, v and the table are random and causal attention is computed; gates are about 0.5, "
        "or near 0 (q = 1 + 0.2 randn, k = −1 + 0.2 randn), where the count never saturates. "
        "*SDPA flash* is `torch.nn.functional.scaled_dot_product_attention` restricted to flash "
        "attention, without positions. [benchmark.csv](benchmark.csv) has all figures."
    )
    for part in ("bars", "biases", "curve", "kernels", "more"):
        found = [one for one in record.figures if one.part == part]
        if found:
            yield f"### {PARTS[part]}"
            yield table(
                ("", "over", "shape", "dtype", "ms", "over, ms", "ratio", "bar", "MiB",
                 "over, MiB", ""),
                map(_row_of_figure, found),
                "-r",
            )  # fmt: skip
        if found and part == "curve":
            yield "![Time and peak memory against n](benchmark.png)"


def _row_of_figure(one: Figure) -> list[str]:
    mine, over = (one.name, one.over) if not one.inverse else (one.over, one.name)
    first, second = (one.mine, one.other) if not one.inverse else (one.other, one.mine)
    peaks = ("–" if x.mebibytes is None else f"{x.mebibytes:.0f}" for x in (first, second))
    ratio = "–" if one.ratio is None else f"{one.ratio:.2f}"
    verdict = one.verdict.replace("NOT MET", "**NOT MET**")
    times = (milliseconds(first.seconds), milliseconds(second.seconds))
    return [mine, over, one.shape, one.dtype, *times, ratio, one.bound, *peaks, verdict]
