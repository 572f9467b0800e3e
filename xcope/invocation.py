"""How this process was started, so that what it tells people to type works where they are."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
"""Those of a clone; a wheel has none."""


def program() -> str:
    """``xcope``, or ``python -m xcope`` where that was typed."""
    as_module = Path(sys.argv[0]).parts[-2:] == ("xcope", "__main__.py")
    return "python -m xcope" if as_module else "xcope"


def command(name: str) -> str:
    """``xcope train``, or ``python scripts/train.py`` where a script of a clone was started."""
    started = Path(sys.argv[0])
    beside = started.with_name(f"{name}.py") if started.suffix == ".py" else started
    if beside.is_file() and started.resolve().parent == SCRIPTS:
        return f"python {shlex.quote(str(beside))}"
    return f"{program()} {name}"


def typed() -> list[str]:
    """The words with which this process was started."""
    if Path(sys.argv[0]).suffix == ".py" and program() == "xcope":
        return ["python", *sys.argv]
    return [*program().split(), *sys.argv[1:]]
