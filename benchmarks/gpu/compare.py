"""Errors against float64, beside those that the plain definition makes in the same dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from benchmarks.measure import reason

Named = Mapping[str, Tensor]

FLOORS = {"float32": 2e-5, "float16": 1e-3, "bfloat16": 5e-3}
"""Errors up to these, by dtype, are always allowed."""
FACTOR = 4
"""Allowed beyond: so many times the error of the definition, or of PyTorch's flash attention.

Where a gradient is what is left of a sum, one order of summing rounds so much worse than another.
"""
NOTHING = 1e-6
"""A gradient this much smaller than the largest is 0 by its formula, and held to the largest."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One tensor of one case.

    Args:
        part: of the check, as its command line calls it.
        case: what was computed.
        backend: who computed it.
        dtype: of the inputs.
        tensor: ``out``, or whose gradient it is.
        error: ‖x − x₆₄‖ / ‖x₆₄‖, None where there is no x.
        plain: the same for the definition in this dtype, which rounds once, at the end.
        flash: the same for flash attention without positions, whose products round, too.
        bar: the largest ``error`` that is allowed.
        failure: why there is no x.
    """

    part: str
    case: str
    backend: str
    dtype: str
    tensor: str = ""
    error: float | None = None
    plain: float | None = None
    flash: float | None = None
    bar: float | None = None
    failure: str = ""

    @property
    def ok(self) -> bool:
        """Whether the error keeps to its bar; NaN does not."""
        return self.error is not None and self.bar is not None and self.error <= self.bar

    def __str__(self) -> str:
        head = f"{self.case}, {self.dtype}, {self.backend}"
        if self.failure:
            return f"{head}: FAILED: {self.failure}"
        usual = "" if self.flash is None else f", flash {self.flash:.1e}"
        numbers = f"{self.error:.1e} (plain {self.plain:.1e}{usual}, bar {self.bar:.1e})"
        return f"{head}: {self.tensor} {numbers}{'' if self.ok else ' NOT MET'}"


class Case(Protocol):
    """Something to compute and compare; it can be pickled."""

    @property
    def part(self) -> str:
        """See `Compared`."""

    @property
    def name(self) -> str:
        """The case of `Compared`."""

    @property
    def backend(self) -> str:
        """See `Compared`."""

    @property
    def dtype(self) -> str:
        """See `Compared`."""

    @property
    def family(self) -> str:
        """Cases of one family need the same compiled kernels."""

    def compared(self) -> Iterator[Compared]:
        """Compute it, and yield its tensors."""


def failed(case: Case, failure: str) -> Compared:
    """A case that has no results, and why."""
    return Compared(
        part=case.part, case=case.name, backend=case.backend, dtype=case.dtype, failure=failure
    )


def attempt(case: Case) -> list[Compared]:
    """Compute a case; an exception makes it a failed one."""
    try:
        return list(case.compared())
    except Exception as error:
        return [failed(case, reason(error))]


def held_to_float64(
    case: Case,
    run: Callable[[str, Named], Named],
    given: Named,
    flash: Mapping[str, float] | None = None,
) -> list[Compared]:
    """Hold a backend, and beside it the definition in the same dtype, to float64.

    Args:
        case: whose backend and dtype it is.
        run: backend and inputs → results by name.
        given: the inputs, floating point; float64 is computed from the very same numbers.
        flash: see `Compared`, by name.
    """
    exact = run("reference", {name: t.double() for name, t in given.items()})
    plain, mine = run("reference", given), run(case.backend, given)
    return compared(case, mine, plain, exact, flash or {})


def compared(
    case: Case, mine: Named, plain: Named, exact: Named, flash: Mapping[str, float] | None = None
) -> list[Compared]:
    """The errors of ``mine`` beside those of ``plain`` and ``flash``, by name."""
    flash = flash or {}
    largest = max(float(t.norm()) for t in exact.values())
    found = []
    for name, true in exact.items():
        size = float(true.norm())
        size = size if size > NOTHING * largest else largest
        error, usual = (float((x[name].double() - true).norm()) / size for x in (mine, plain))
        found.append(
            Compared(
                part=case.part,
                case=case.name,
                backend=case.backend,
                dtype=case.dtype,
                tensor=name,
                error=error,
                plain=usual,
                flash=flash.get(name),
                bar=max(FACTOR * max(usual, flash.get(name, 0.0)), FLOORS[case.dtype]),
            )
        )
    return found


def output_and_gradients(attention: Callable[..., Tensor], given: Named) -> dict[str, Tensor]:
    """``out``, and the gradient to each input under its name.

    Args:
        attention: takes the inputs by name; (b h i dv) out.
        given: the inputs, and ``dout`` (b h i dv), the gradient to the output.
    """
    leaves = {n: t.detach().requires_grad_() for n, t in given.items() if n != "dout"}
    out = attention(**leaves)
    dout = given["dout"].to(out.dtype)
    grads = torch.autograd.grad(
        out, list(leaves.values()), dout, allow_unused=True, materialize_grads=True
    )
    return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}
