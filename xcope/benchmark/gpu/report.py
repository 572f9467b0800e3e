"""What a check found as a picture and a README that says how, beside its CSV files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xcope.benchmark.gpu.compare import FACTOR, FLOORS, Compared
from xcope.benchmark.gpu.figures import Figure, milliseconds
from xcope.benchmark.gpu.measure import versions
from xcope.benchmark.gpu.plots import plot_curve
from xcope.benchmark.gpu.record import Record, worst
from xcope.benchmark.tables import table
from xcope.environment import device_name, processor

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
"""Their titles."""


def write(record: Record) -> None:
    """README.md, and benchmark.png where there is a curve."""
    curve = [one for one in record.figures if one.part == "curve"]
    if curve:
        plot_curve(curve, record.out / "benchmark.png")
    blocks = [*_head(record), *_verdict(record), *_correctness(record), *_benchmark(record)]
    (record.out / "README.md").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def _head(record: Record) -> Iterator[str]:
    yield f"# A check of {device_name(record.device)}"
    yield f"```bash\n{record.command}\n```"
    if record.quick:
        yield QUICK_RUN
    named = dict.fromkeys((device_name(record.device), processor()))
    took = f"The run took {record.seconds / 60:.1f} minutes."
    yield f"{'; '.join(named)}; {versions()}. {took}"


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
                        map(_case, _by_case(found)))  # fmt: skip
    failures = [one for one in record.failures if not one.failure]
    if failures:
        yield "Tensors that are not within the bar:"
        yield "\n".join(f"- {one}" for one in failures)


def _by_case(found: Sequence[Compared]) -> list[Compared]:
    """The worst tensor of each."""
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
                map(_figure, found),
            )  # fmt: skip
        if found and part == "curve":
            yield "![Time and peak memory against n](benchmark.png)"


def _figure(one: Figure) -> list[str]:
    mine, over = (one.name, one.over) if not one.inverse else (one.over, one.name)
    first, second = (one.mine, one.other) if not one.inverse else (one.other, one.mine)
    peaks = ("–" if x.mebibytes is None else f"{x.mebibytes:.0f}" for x in (first, second))
    ratio = "–" if one.ratio is None else f"{one.ratio:.2f}"
    verdict = one.verdict.replace("NOT MET", "**NOT MET**")
    times = (milliseconds(first.seconds), milliseconds(second.seconds))
    return [mine, over, one.shape, one.dtype, *times, ratio, one.bound, *peaks, verdict]
