"""Files: paths expanded, text read within bounds, and files replaced as a whole or not at all."""

from __future__ import annotations

import json
import os
import re
import stat
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xcope.errors import FlagError

MOST_BYTES = 2**28
"""Of a file that is read, unless a smaller bound is given."""
VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


class UnknownPathError(FlagError):
    """A path with a user or a variable that is not there."""


class UnreadableError(ValueError):
    """A file that cannot be used; the message goes on from the file's name: ``is a folder``."""


def expanded(path: str | Path) -> Path:
    """The path with ``~``, ``~user``, ``$NAME`` and ``${NAME}`` replaced.

    A shell does not replace them inside quotes or after ``=``, and no shell sees a YAML file.

    Raises:
        UnknownPathError: a user or a variable that is not known, or no path at all.
    """
    text = str(path)
    if "\0" in text:
        raise UnknownPathError("path", f"{text!r} is no path: it holds a zero byte")
    if "$" in text and not os.path.lexists(text):
        text = VARIABLE.sub(_value, text)
    if text.startswith("~"):
        home = os.path.expanduser(text)
        if home == text:
            user = text.split("/")[0]
            raise UnknownPathError(
                "path", f"{text!r}: there is no home folder {user!r}; './{text}' means the name"
            )
        text = home
    return Path(text)


def located(path: str | Path, folder: str | Path = ".") -> Path:
    """The absolute path that ``path`` means in ``folder``: expanded, and ``a/../b`` as ``b``.

    Raises:
        UnknownPathError: see `expanded`; also an empty text.
    """
    if not str(path):
        raise UnknownPathError("path", "an empty text is no path; '.' is the folder itself")
    there = os.path.lexists(os.path.join(folder, path)) if "\0" not in str(path) else False
    joined = os.path.join(os.path.abspath(folder), path if there else expanded(path))
    short = os.path.normpath(joined)
    # beyond a link to a folder, '..' is the parent of what it leads to
    return Path(short if os.path.realpath(short) == os.path.realpath(joined) else joined)


@dataclass(frozen=True, eq=False)
class IsPath:
    """In the annotation of a key of a config: its value is a path, or a list of them.

    Written in a YAML file, a relative path begins at that file's folder, as ``extends`` does; on
    the command line at the working folder. The config that is read holds it in full.

        corpus: Annotated[str, IsPath()] | None = None

    Args:
        or_name: a name may stand instead, of a tokenizer, say, or a module: a text is then a path
            only if it begins as one (``/``, ``./``, ``../``, ``~``, ``$``), ends in one of
            ``suffixes``, or if there is such a file or folder.
        suffixes: ``(".json",)``.
        names: texts that are never a path.
        keys: of a mapping that may stand instead, which of its values are paths.
        unless: in a mapping: the key beside which this one is no path.
    """

    or_name: bool = False
    suffixes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    keys: Mapping[str, IsPath] = field(default_factory=dict)
    unless: str | None = None

    @staticmethod
    def of(*annotations: Any) -> IsPath | None:
        """What an annotation says, also inside another; None where none names a path."""
        for one in annotations:
            inner = (*getattr(one, "__metadata__", ()), *typing.get_args(one))
            found = one if isinstance(one, IsPath) else IsPath.of(*inner)
            if found is not None:
                return found
        return None

    @classmethod
    def from_plain(cls, said: Mapping[str, Any]) -> IsPath:
        """What ``dataclasses.asdict`` made of it, also after JSON."""
        keys = {key: cls.from_plain(inner) for key, inner in said["keys"].items()}
        return cls(
            said["or_name"], tuple(said["suffixes"]), tuple(said["names"]), keys, said["unless"]
        )

    def located(self, text: str, folder: str | Path = ".") -> str:
        """The path in full, or the name as it stands.

        Raises:
            UnknownPathError: see `located`.
        """
        if text in self.names or (self.or_name and not self._is_path(text, folder)):
            return text
        return str(located(text, folder))

    def _is_path(self, text: str, folder: str | Path) -> bool:
        if "://" in text:
            return False
        begins = text in (".", "..") or text.startswith(("/", "./", "../", "~", "$"))
        ends = bool(self.suffixes) and text.endswith(self.suffixes)
        return begins or ends or ("\0" not in text and os.path.lexists(os.path.join(folder, text)))


def _value(name: re.Match[str]) -> str:
    variable = name[1] or name[2]
    if variable not in os.environ:
        raise UnknownPathError(
            "path", f"{name.string!r}: there is no environment variable {variable!r}; set it"
        )
    return os.environ[variable]


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a file.

    Args:
        most: bytes that are read; a larger file is refused.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableError: it is no file, or too large.
    """
    try:
        kind = os.stat(path).st_mode
        if not stat.S_ISREG(kind):
            raise UnreadableError(
                "cannot be read: "
                + ("Is a directory" if stat.S_ISDIR(kind) else "it is no regular file")
            )
        with open(path, "rb") as file:
            content = file.read(most + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror}") from error
    if len(content) > most:
        raise UnreadableError(f"is too large: at most {most:,} bytes are read")
    return content


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """The text of a UTF-8 file, without a byte order mark, with ``\\n`` as its line ends.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableError: see `read_bytes`; it is not UTF-8.
    """
    content = read_bytes(path, most)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UnreadableError(
            f"is not UTF-8 text (byte 0x{content[error.start]:02x} in line {line}): save it as "
            "UTF-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str) -> Any:
    """The value of JSON text.

    Raises:
        UnreadableError: no JSON, nested too deeply, or a number with thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise UnreadableError("is damaged: lists and mappings are nested too deeply") from None
    except ValueError as error:
        raise UnreadableError(f"is damaged: {error}") from None


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace the file at ``path`` by ``text`` in one step: written beside it, then renamed."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_text`."""
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_bytes(content)
        fsync(beside)
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)  # a full disk needs the space
        raise
    fsync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace the file at ``path`` by ``value`` as indented JSON in one step."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
