"""The error that a config's author reads: where, which key, what was given, what is allowed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mark:
    """Where a key was written: a file and a line (counted from 1), or no file at all.

    Args:
        source: a file's path as a person would type it, ``"command line"`` or ``"config"`` (a
            mapping made in Python).
        line: None where lines mean nothing.
    """

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


COMMAND_LINE = Mark("command line")


class ConfigError(Exception):
    """A config that cannot be used.

    ``str(error)`` is one line: ``configs/x.yaml:12: model.positon: unknown key 'positon'; …``.

    Args:
        message: what was given and what is allowed.
        key: dotted path of the key, empty where the file as a whole is meant.
        mark: where it was written.
    """

    def __init__(self, message: str, key: str = "", mark: Mark | None = None) -> None:
        super().__init__(message, key, mark)
        self.message = " ".join(message.split())
        self.key = key
        self.mark = mark

    @property
    def file(self) -> str | None:
        """The file (or ``"command line"``) to look into."""
        return self.mark.source if self.mark else None

    @property
    def line(self) -> int | None:
        """The line of the key in `file`, counted from 1."""
        return self.mark.line if self.mark else None

    def __str__(self) -> str:
        where = [str(self.mark)] if self.mark else []
        return ": ".join([*where, *([self.key] if self.key else []), self.message])


Path = tuple[str | int, ...]
"""Keys and list indices from the root of a config: ``("model", "position", 0, "name")``."""


def dotted(path: Path) -> str:
    """``model.position[0].name``: a path as people write it."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")
