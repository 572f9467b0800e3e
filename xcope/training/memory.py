"""How much memory training takes at its peak."""

from __future__ import annotations

from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")


class PeakMemory:
    """The peak since it was made, over what was held then.

    On a CPU it is the resident memory of the process without mapped files (the code of libraries,
    which comes in while it is first used): truest in a process that has done nothing before, since
    memory that an earlier run gave back may be used again unseen. Linux alone tells it. On a GPU it
    is what PyTorch allocated.

    Args:
        device: where the model is trained.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._start: int | None = torch.cuda.memory_allocated(device)
        else:
            _forget_peak()
            self._start = _resident("RssAnon")

    def bytes(self) -> int | None:
        """The peak; None where the system does not tell."""
        if self._device.type == "cuda":
            peak: int | None = torch.cuda.max_memory_allocated(self._device)
        else:
            peak = _resident("VmHWM", without="RssFile")
        return None if peak is None or self._start is None else max(0, peak - self._start)


def _forget_peak() -> None:
    """Let Linux count the peak of resident memory (VmHWM) from now on."""
    try:
        RESET.write_text("5", encoding="utf-8")
    except OSError:
        return  # what was higher before will be counted


def _resident(kind: str, without: str | None = None) -> int | None:
    """Bytes that the kernel counts for this process; None where it does not tell."""
    try:
        lines = STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in _numbers(lines)}
    if kind not in kilobytes:
        return None
    return 1024 * (kilobytes[kind] - (kilobytes.get(without, 0) if without else 0))


def _numbers(lines: list[str]) -> list[tuple[str, str, str]]:
    return [line.partition(":") for line in lines if line.endswith(" kB")]
