"""Each Triton kernel of CoPE by itself, in each of the tiles that it may be cut into."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from xcope.benchmark.cope.workloads import MAX_POS
from xcope.benchmark.gpu.figures import Figure, Figures, dtype_name
from xcope.benchmark.gpu.measure import Timing, timings
from xcope.benchmark.gpu.workloads import Bench, flash
from xcope.benchmark.measure import Work
from xcope.ops import fallback
from xcope.ops.cope import CopeInputs, gpu

FLASH = "SDPA flash, forward"


def kernels(bench: Bench) -> Figures:
    """Beside flash attention's forward, without bars: where the time of CoPE goes, and tuning."""
    if not fallback.INSTALLED or (bench.device.type != "cuda" and not gpu.interpreted()):
        return
    shape = bench.scale.shape(bench.scale.n)
    for case, max_pos, few_gates in (
        ("saturated at once", 1, False),
        (f"max_pos {MAX_POS}", MAX_POS, False),
        ("gates near 0", MAX_POS, True),
    ):
        given = [t.detach() for t in bench.tensors(shape, max_pos, few_gates)]
        makers: dict[str, Callable[[], Work]] = {FLASH: partial(partial, flash, *given)}
        found = timings(bench.device, makers | _kernels(given), bench.scale.slow)
        for name, mine in found.items():
            if name != FLASH:
                yield Figure(part="kernels", name=f"{name}, {case}", over=FLASH, shape=str(shape),
                             n=shape.n, dtype=dtype_name(bench), mine=mine,
                             other=found.get(FLASH, Timing()))  # fmt: skip


def _kernels(given: list[Tensor]) -> dict[str, Callable[[], Work]]:
    """By name and tiles: what makes the launch of one kernel, all before it done."""
    from xcope.ops.cope.gpu import launch as triton  # noqa: PLC0415, Triton may be missing
    from xcope.ops.cope.gpu import tuning  # noqa: PLC0415, Triton may be missing

    q, k, v, table = given
    inputs = CopeInputs(q=q, k=k, v=v, pos_emb=table, scale=q.shape[-1] ** -0.5)
    launch = tuning.launch
    launches: dict[str, Any] = {}

    def watched(name: str, tiles: Any, grid: Any, arguments: dict[str, Any]) -> None:
        launches[name] = (tiles, grid, arguments)
        launch(name, tiles, grid, arguments)

    with mock.patch.object(triton, "launch", watched):
        saved = triton.forward(inputs)
        triton.backward(torch.ones_like(saved.out), saved, inputs)
    return {
        f"{name}, {one}": partial(partial, launch, name, (one,), *rest)
        for name, (tiles, *rest) in launches.items()
        for one in tiles
    }
