"""Plugins: schemes, tasks, metrics and columns in files of one's own, run because a config names
them.

A plugin is a Python file or module that registers something when it is imported. Configs name it
under ``import``; an installed package may announce it in the entry points `GROUP`, and is then
imported when it is first wanted.

Whose code runs: what the config names that its user has named. A plugin that a run folder asks for,
or a config that was extended from elsewhere, runs only if the same file with the same content ran
before because its user named it (a record in `store` says so), or after a yes: a question on a
terminal, `trusting` elsewhere.

The module of a file is called ``xcope.plugins.<its name>_<hash of its path>``: a plugin may be
called ``random.py`` without standing in anybody's way, and what is pickled finds it again in
another process.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from xcope import files
from xcope.errors import FlagError
from xcope.registry import undone_if_it_fails

GROUP = "xcope.plugins"
"""Of entry points: ``[project.entry-points."xcope.plugins"]``, ``recency = "my_pkg.recency"``."""
MOST_BYTES = 2**24
"""Of a plugin's file."""
__path__: list[str] = []  # makes the plugins' modules importable below this one


class PluginError(FlagError):
    """A plugin that is missing, fails, or may not run; the message says which, and where."""

    def __init__(self, message: str) -> None:
        super().__init__("import", message)


@dataclass(frozen=True)
class Plugin:
    """A plugin as a run's config names it.

    Args:
        file: its absolute path; None for a module.
        module: its dotted name; None for a file on its own.
        folder: where the module is found if Python does not find it by itself.
        sha256: of what runs: the file, or the module's file after those of its packages.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    file: str | None = None
    module: str | None = None
    folder: str | None = None
    sha256: str = ""

    @property
    def name(self) -> str:
        """What it is known by, wherever copies of it lie: its file, or its module."""
        return self.file or self.module or ""

    @property
    def copy(self) -> str:
        """The name of a copy of its file."""
        return f"{Path(self.name).stem}_{self.sha256[:8]}.py"

    @property
    def written(self) -> dict[str, str]:
        """What a config says of it."""
        said = {"file": self.file, "module": self.module, "folder": self.folder}
        return {key: value for key, value in said.items() if value} | {"sha256": self.sha256}


@dataclass(frozen=True)
class Code:
    """The code of a plugin, as it was read: what is run is what was looked at.

    Args:
        path: of the file.
        source: of a plugin that is a file.
        sha256: see `Plugin`.
    """

    path: Path
    source: bytes
    sha256: str


_loaded: dict[str, Code] = {}
"""`Plugin.name` → the code of it that runs in this process."""


# -- finding -------------------------------------------------------------------------------------


def named(text: str, folder: str | Path = ".") -> Plugin:
    """The plugin that an entry of ``import`` means.

    Args:
        text: a file (it ends in ``.py`` or holds a ``/``), or the dotted name of a module that
            Python finds, or that lies in ``folder`` or the working folder.
        folder: where relative paths begin.

    Raises:
        PluginError: there is none.
    """
    if text.endswith(".py") or os.sep in text:
        try:
            path = files.located(text, folder)
        except files.UnknownPathError as error:
            raise PluginError(str(error)) from error
        if path.is_dir():
            raise PluginError(
                f"{path} is a folder: name a Python file, or a module as my_pkg.tasks"
            )
        if path.suffix != ".py":
            raise PluginError(f"{path} is no Python file: its name must end in .py")
        if (path.parent / "__init__.py").is_file():
            return _in_package(path)
        return Plugin(file=str(path), sha256=_read(path).sha256)
    if not all(part.isidentifier() for part in text.split(".")):
        raise PluginError(f"{text!r} is neither a file (recency.py) nor a module (my_pkg.tasks)")
    for place in (None, os.path.abspath(folder), os.getcwd()):
        code = _find(text, place)
        if code is not None:
            # what Python finds in the working folder it will not find from another one
            here = place or (os.getcwd() if _only_here(text) else None)
            return Plugin(module=text, folder=here, sha256=code.sha256)
    beside = Path(folder, *text.split(".")).with_suffix(".py")
    raise PluginError(
        f"there is no module {text!r}, neither where Python looks (sys.path) nor as {beside}"
    )


def _in_package(path: Path) -> Plugin:
    """A file with a package around it is the module that the package knows it as."""
    names, folder = [path.stem], path.parent
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    module = ".".join(names if names[-1] != "__init__" else names[:-1])
    code = _find(module, str(folder))
    if code is None:
        raise PluginError(f"{path} lies in a package, {module!r}, that cannot be found in {folder}")
    return Plugin(module=module, folder=str(folder), sha256=code.sha256)


def _only_here(module: str) -> bool:
    """Whether Python finds a module only because it was started in the working folder."""
    elsewhere = [place for place in sys.path if os.path.realpath(place) != os.path.realpath("")]
    first = module.split(".", maxsplit=1)[0]
    return importlib.machinery.PathFinder.find_spec(first, elsewhere) is None


def _find(module: str, folder: str | None) -> Code | None:
    """The code of a module and of the packages around it, none of which is run to find it.

    Args:
        folder: where it is looked for; None: where Python looks.
    """
    path = None if folder is None else [folder]
    digest, found, name = hashlib.sha256(), None, ""
    for part in module.split("."):
        name = f"{name}.{part}".lstrip(".")
        # what was installed to be edited is found by finders of its own
        find = (
            importlib.util.find_spec if path is None else importlib.machinery.PathFinder.find_spec
        )
        spec = find(name, path)  # type: ignore[arg-type]
        if spec is None:
            return None
        if spec.origin and spec.has_location and spec.origin.endswith(".py"):
            found = Path(spec.origin)
            digest.update(_read(found).source)
        elif spec.submodule_search_locations is None:
            raise PluginError(f"module {module!r} is not written in Python: {spec.origin}")
        path = list(spec.submodule_search_locations or [])
    return None if found is None else Code(found, b"", digest.hexdigest())


def _read(path: Path) -> Code:
    try:
        source = files.read_bytes(path, MOST_BYTES)
    except FileNotFoundError:
        raise PluginError(f"there is no file {path}") from None
    except files.UnreadableError as error:
        raise PluginError(f"{path} {error}") from None
    return Code(path, source, hashlib.sha256(source).hexdigest())


# -- loading -------------------------------------------------------------------------------------


def load(plugins: Iterable[Plugin], copies: Sequence[Path] = (), *, named: bool = True) -> None:
    """Run plugins that do not run in this process yet.

    A file that is gone, or has changed, is replaced by the copy of it that a run keeps.

    Args:
        copies: folders that may hold copies (`keep`).
        named: whether the user has named them; else see `trusting`.

    Raises:
        PluginError: one is missing, fails, or may not run.
    """
    for plugin in plugins:
        running = {one.sha256 for one in _loaded.values()}
        if plugin.sha256 in running or (code := _code(plugin, copies)).sha256 in running:
            continue
        if not named:
            _ask(plugin, code)
        with undone_if_it_fails():
            _run_module(plugin) if plugin.module else _run_file(plugin, code)
        _loaded[plugin.name] = code
        if named:
            record(plugin, code)


def keep(plugins: Iterable[Plugin], folder: Path) -> None:
    """Write a copy of each file that was loaded to ``folder``."""
    for plugin in plugins:
        code = _loaded.get(plugin.name)
        if plugin.file and code is not None and code.sha256 == plugin.sha256:
            folder.mkdir(exist_ok=True)
            place = folder / plugin.copy
            if not place.is_file() or _read(place).sha256 != code.sha256:
                files.write_bytes(place, code.source)
            record(plugin, Code(place.absolute(), code.source, code.sha256))


def _code(plugin: Plugin, copies: Sequence[Path]) -> Code:
    """What is to run: the file as it was when it was named, else a copy of it, else as it is."""
    now, wrong = None, ""
    try:
        now = _of_module(plugin) if plugin.module else _read(Path(plugin.file or ""))
        if plugin.sha256 in ("", now.sha256):
            return now
    except PluginError as error:
        wrong = str(error)
    for place in (folder / plugin.copy for folder in copies if plugin.file):
        if place.is_file() and (code := _read(place)).sha256 == plugin.sha256:
            if now is not None:
                tell(
                    f"{now.path} has changed since this run began, and the copy that it began with "
                    f"is used: {place}"
                )
            return Code(place.absolute(), code.source, code.sha256)
    if now is None:
        looked = "".join(f", and there is no copy of it in {folder}" for folder in copies)
        raise PluginError(f"{wrong}{looked if plugin.file else ''}: put it back where it was")
    tell(f"{now.path} has changed since this run began, and there is no copy of what it was")
    return now


def _of_module(plugin: Plugin) -> Code:
    code = _find(plugin.module or "", plugin.folder)
    if code is None:
        where = f"in {plugin.folder}" if plugin.folder else "where Python looks (sys.path)"
        raise PluginError(f"there is no module {plugin.module!r} {where}")
    return code


def _run_file(plugin: Plugin, code: Code) -> None:
    name = module_name(plugin.name)
    module = ModuleType(name)
    module.__file__ = str(code.path)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, origin=str(code.path))
    module.__package__ = ""
    module.__dict__["__plugin__"] = plugin.name
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses look their annotations up there
    _findable(os.path.dirname(plugin.name))
    try:
        with _told(code.path):
            exec(compile(code.source, str(code.path), "exec", dont_inherit=True), module.__dict__)
    except PluginError:
        sys.modules.pop(name)
        if before is not None:
            sys.modules[name] = before
        raise


def _run_module(plugin: Plugin) -> None:
    name, path = plugin.module or "", _of_module(plugin).path
    _findable(plugin.folder)
    found = _find(name, None)
    if found is None or os.path.realpath(found.path) != os.path.realpath(path):
        raise PluginError(
            f"{path} is hidden by {found.path if found else 'another module'}, which Python finds "
            f"first under the name {name.split('.')[0]!r}: rename it"
        )
    with _told(path):
        importlib.import_module(name)


def _findable(folder: str | None) -> None:
    """Let a plugin import what lies beside it, after all that can be imported anyway."""
    if folder and folder not in sys.path and os.path.isdir(folder):
        sys.path.append(folder)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What a plugin fails with, in one line with its file and line."""
    try:
        yield
    except SyntaxError as error:
        raise PluginError(f"{error.filename}:{error.lineno}: not Python: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise PluginError(f"{_line(error, path)}: {_words(error)}") from error


def _line(error: BaseException, path: Path) -> str:
    """The innermost line of the plugin that led to the error."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == str(path)]
    return f"{path}:{own[-1].lineno}" if own else str(path)


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, SystemExit):
        return "it ends the program: put what is not to run under if __name__ == '__main__'"
    if "attempted relative import" in text:
        text += "; name the plugin as a module, my_pkg.tasks"
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def blamed(error: BaseException) -> str:
    """``file:line`` of the plugin in which an error arose, or an empty string."""
    own = {str(code.path) for code in _loaded.values()}
    frames = traceback.extract_tb(error.__traceback__)
    return next((f"{one.filename}:{one.lineno}" for one in frames[::-1] if one.filename in own), "")


# -- installed packages --------------------------------------------------------------------------

_asked = False


def load_installed() -> None:
    """Import what installed packages announce; one that is broken is told and left out."""
    global _asked  # noqa: PLW0603
    if _asked:
        return
    _asked = True
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            with undone_if_it_fails():
                point.load()
        except (Exception, SystemExit) as error:
            frames = traceback.extract_tb(error.__traceback__)
            where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
            owner = f" of {point.dist.name} {point.dist.version}" if point.dist else ""
            tell(
                f"plugin {point.name!r}{owner} cannot be loaded and is left out: {_words(error)} "
                f"({where})"
            )


def tell(line: str) -> None:
    """A line that is for the person before the screen, whatever stdout is used for."""
    print(f"xcope: {line}", file=sys.stderr, flush=True)


# -- trust ---------------------------------------------------------------------------------------

_trust: ContextVar[bool | None] = ContextVar("trust", default=None)


@contextmanager
def trusting(yes: bool | None = True) -> Iterator[None]:
    """Context in which plugins that the user has not named run without a question.

    Args:
        yes: None: as outside, which is what ``XCOPE_TRUST`` says (1: yes).
    """
    token = _trust.set(_trust.get() if yes is None else yes)
    try:
        yield
    finally:
        _trust.reset(token)


def store() -> Path:
    """The folder that remembers which plugins their user has named: one file for each content."""
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(home) / "xcope" / "plugins"


def record(plugin: Plugin, code: Code) -> None:
    """Remember that the user has named this file with this content."""
    with suppress(OSError):  # a home that cannot be written: it will be asked for again
        place = _record(code)
        if not place.is_file():
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            said = {"plugin": plugin.name, "path": str(code.path), "sha256": code.sha256}
            files.write_text(place, json.dumps(said) + "\n")


def _record(code: Code) -> Path:
    key = f"{os.path.realpath(code.path)}\0{code.sha256}"
    return store() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _ask(plugin: Plugin, code: Code) -> None:
    """Raise `PluginError` unless code that the user has not named may run."""
    said = _trust.get()
    if said is None:
        said = os.environ.get("XCOPE_TRUST", "").lower() in ("1", "true", "yes")
    if said or _record(code).is_file():
        return
    if sys.stdin and sys.stdin.isatty() and sys.stderr and sys.stderr.isatty():
        print(
            "This would run code that you have not named, or trained with, on this machine:\n"
            f"  {code.path}\n  SHA-256 {code.sha256}\nRead it first. Run it? [y/N] ",
            end="",
            file=sys.stderr,
            flush=True,
        )
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            record(plugin, code)
            return
        raise PluginError(f"{code.path} was not run")
    raise PluginError(
        f"{code.path} (SHA-256 {code.sha256[:16]}…) is code that you have not named, or trained "
        "with, on this machine; read it, then allow it: --trust, XCOPE_TRUST=1, or in Python "
        "load_run(…, trust=True)"
    )


# -- pickles -------------------------------------------------------------------------------------


def module_name(plugin: str) -> str:
    """The name of the module of a file."""
    stem = "".join(c if c.isalnum() else "_" for c in Path(plugin).stem)
    return f"{__name__}.{stem}_{hashlib.sha256(plugin.encode()).hexdigest()[:8]}"


class _Finder:
    """Finds a plugin's module for what was pickled in another process, among those that its user
    has named."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        if not name.startswith(f"{__name__}."):
            return None
        for place in sorted(store().glob("*.json")):
            # a record that is damaged, or whose file is gone or has changed, is none
            with suppress(OSError, ValueError, LookupError, TypeError):
                said = json.loads(place.read_text(encoding="utf-8"))
                if module_name(said["plugin"]) == name:
                    code = _read(Path(said["path"]))
                    if code.sha256 == said["sha256"]:
                        plugin = Plugin(file=said["plugin"], sha256=code.sha256)
                        return importlib.machinery.ModuleSpec(name, _Loader(plugin, code))
        return None


@dataclass(frozen=True)
class _Loader(importlib.abc.Loader):
    """Runs a plugin's file when its module is imported by name."""

    plugin: Plugin
    code: Code

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """See `importlib.abc.Loader`."""
        with undone_if_it_fails():
            _run_file(self.plugin, self.code)
        _loaded[self.plugin.name] = self.code
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: it has run."""


sys.meta_path.append(_Finder())
