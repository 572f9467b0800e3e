"""The code blocks of a page, and how each is tried: what a reader copies has to work.

Python runs, all blocks of a page in one namespace, in an empty folder. YAML loads as a config; what
a fragment lacks comes from small ones. Lines of a shell are taken apart as the command would do it:
the command and its options exist, configs load with the keys that are changed, and the runs that
are named come from a line above. A block that begins with the name of a file is that file.

A block that cannot be tried stands below a line that says why: ``<!-- not run: … -->``.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import yaml

from xcope import cli
from xcope.compare import plan
from xcope.config import load_config
from xcope.config.schema import Config
from xcope.training import default_run_dir

ROOT = Path(__file__).parents[2]
FENCE = re.compile(
    r"(?:<!-- not run: (?P<why>[^\n]*?) -->\n+)?"
    r"^(?P<indent> *)(?P<marks>`{3,})(?P<language>[^\n]*)\n(?P<text>.*?)^ *(?P=marks)[ ]*$",
    re.DOTALL | re.MULTILINE,
)
NAMED = re.compile(r"# ([\w./-]+\.(?:py|yaml|txt|jsonl|toml))\b")
"""The first line of a block that is a file."""
PLACEHOLDERS = {"RUN", "FILE"}
"""What stands for a folder or a file of the reader's, as the pages of commands write it."""
PLAIN = {"cd", "export", "git", "mkdir", "source", "mkdocs", "pre-commit"}
"""Words that begin a line in which nothing is ours."""


@dataclass(frozen=True)
class Block:
    """One block of code.

    Args:
        why: it is not tried; empty where it is.
        line: of its page.
    """

    language: str
    text: str
    why: str
    line: int

    @property
    def file(self) -> str | None:
        """The file that it is, as its first line says."""
        named = NAMED.match(self.text)
        return named[1] if named else None


def blocks(page: str) -> Iterator[Block]:
    """The blocks of a page, in order."""
    for found in FENCE.finditer(page):
        text = re.sub(rf"^{found['indent']}", "", found["text"], flags=re.MULTILINE)
        line = page.count("\n", 0, found.start("marks")) + 1
        yield Block(found["language"].strip(), text, found["why"] or "", line)


@dataclass
class Reader:
    """Someone who types a page from top to bottom.

    Args:
        folder: where they are; it has the configs.
        any_run: whether a run may be named that no line above made.
    """

    folder: Path
    any_run: bool = False
    scope: dict[str, Any] = field(default_factory=lambda: {"__name__": "page"})
    runs: set[Path] = field(default_factory=set)
    printed: str = ""

    def __post_init__(self) -> None:
        if not (self.folder / "configs").exists():
            shutil.copytree(ROOT / "configs", self.folder / "configs")

    def write(self, block: Block) -> Path:
        """The block as a file."""
        file = self.folder / (block.file or "block.yaml")
        extends = re.search(r"^extends: \[?(\w[\w/]*\.yaml)", block.text, re.MULTILINE)
        if not block.file and extends and (self.folder / "configs" / extends[1]).is_file():
            file = self.folder / "configs" / file.name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text, encoding="utf-8")
        return file

    # -- YAML ----------------------------------------------------------------------------------

    def load(self, block: Block) -> None:
        """Load YAML as a config, or a part of one."""
        data = yaml.safe_load(block.text)
        assert isinstance(data, dict), "a config is a mapping"
        file = self.write(block)
        if "extends" in data:
            load_config(file, sweep=True, data=False)
            return
        lacks = []
        if not {"dim", "depth"} <= (data.get("model") or {}).keys():
            lacks.append(str(ROOT / "configs/models/tiny.yaml"))
        if "model" not in data:
            lacks.append(str(ROOT / "configs/schemes/rotary.yaml"))
        if "task" not in data:
            lacks.append(str(ROOT / "configs/tasks/flip_flop.yaml"))
        around = self.folder / "around.yaml"
        around.write_text(yaml.safe_dump({"extends": [*lacks, str(file)]}), encoding="utf-8")
        load_config(around, sweep=True, data=False)

    # -- a shell -------------------------------------------------------------------------------

    def type(self, text: str) -> None:
        """Check lines of a shell."""
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            command: list[str] = []
            for word in [*words, "&&"]:
                if word in ("&&", ";", "|", ">"):
                    if command and command[0] != ">":
                        self.check(command)
                    command = [">"] if word == ">" else []  # what follows is a file
                else:
                    command.append(word)

    def check(self, words: list[str]) -> None:
        """Check one command."""
        if words[:2] == ["accelerate", "launch"] and "-m" in words:
            words = ["python", *words[words.index("-m") :]]
        if words[:3] == ["python", "-m", "xcope"]:
            words = ["xcope", *words[3:]]
        for word in words if self.any_run else ():
            run = Path(*Path(word).parts[:2])
            if word.startswith("runs/") and not (self.folder / run).exists():
                keys = ["sweep=null", "model.position=cope"]
                self.made(run, load_config("configs/quickstart.yaml", keys))
        match words:
            case ["xcope", *rest]:
                self.ours(cli.xcope, "xcope", rest)
            case ["./scripts/quickstart", *rest]:
                self.ours(cli.xcope, "xcope", ["compare", "configs/quickstart.yaml", *rest])
            case ["./.ci/run" | "./scripts/test" | "./scripts/test_oldest" | "pytest", *paths] | [
                "python",
                "-m",
                "pytest",
                *paths,
            ]:
                self.tests(paths)
            case ["python", script, *rest] if script.startswith(("scripts/", "tests/")):
                self.script(ROOT / script, rest)
            case ["eval", inner] if re.fullmatch(r"\$\(.*\)", inner):
                self.type(inner[2:-1])
            case ["python", "-m", "venv", _]:
                pass
            case ["pip", "install", *rest] | ["python", "-m", "pip", "install", *rest]:
                pip_install(rest)
            case [first, *_]:
                assert first in PLAIN, f"nobody knows how to try: {shlex.join(words)}"

    def tests(self, words: list[str]) -> None:
        """Arguments of pytest: paths exist."""
        skip = False
        for word in words:
            if not skip and not word.startswith("-"):
                assert (ROOT / word.partition("::")[0]).exists(), word
            skip = word in ("-k", "-n", "--dist")

    def script(self, file: Path, rest: list[str]) -> None:
        """A script of a clone: a command of ours where there is one of that name."""
        assert file.is_file(), file
        name = file.stem.replace("_", "-")
        if cli.xcope.get_command(click.Context(cli.xcope), name) is not None:
            self.ours(cli.xcope, "xcope", [name, *rest])
        elif rest:
            spec = importlib.util.spec_from_file_location(f"script_{file.stem}", file)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            parse(module.command, file.name, rest)

    def ours(self, command: click.Command, name: str, words: list[str]) -> None:
        """Parse as the command does; then look at the configs and runs that are named."""
        ctx = parse(command, name, words)
        if ctx is None:
            return
        if isinstance(ctx.command, click.Group):
            rest = [*ctx._protected_args, *ctx.args]
            if rest:
                found, inner, arguments = ctx.command.resolve_command(ctx, rest)
                assert inner is not None
                self.ours(inner, f"{name} {found}", arguments)
            return
        given = ctx.params
        for key, value in given.items():
            if key in ("run", "resume", "runs") and value is not None:
                for run in value if isinstance(value, tuple | list) else [value]:
                    self.named(Path(run))
            if key == "resume" and value is not None:
                words = [given.get("config") or "", *given.get("overrides", ())]
                # how a run is made longer is a word of the command alone
                keys = [word for word in words if word and not word.startswith("train.longer=")]
                load_config(Path(value) / "config.yaml", keys, data=False)
        if isinstance(given.get("config"), str) and not given.get("resume"):
            self.config(name, given)

    def named(self, run: Path) -> None:
        """A run that is named was made before."""
        if self.any_run or str(run) in PLACEHOLDERS:
            return
        known = sorted(map(str, self.runs))
        assert run in self.runs, f"no line above makes {run}; known: {known}"

    def config(self, name: str, given: dict[str, Any]) -> None:
        """A config that is named loads, with the keys that are changed."""
        file = Path(given["config"])
        if str(file) in PLACEHOLDERS:
            return
        overrides = [word for word in given.get("overrides", ()) if "=" in word]
        sweep = name.endswith(("compare", "config"))
        path = self.folder / file
        loaded: Config = load_config(
            path if path.is_file() else file, overrides, sweep=sweep, data=False
        )
        out = given.get("out")
        if name.endswith("compare"):
            folder = out or Path("runs", file.stem)
            self.runs.add(folder)
            for run in plan(loaded, folder):
                self.made(run.folder, run.config)
        elif name.endswith("train"):
            self.made(out or Path(default_run_dir(loaded, file)), loaded)

    def made(self, run: Path, config: Config) -> None:
        """A folder of a run, as far as a command line is checked against it."""
        self.runs.add(run)
        folder = self.folder / run
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")


def parse(command: click.Command, name: str, words: list[str]) -> click.Context | None:
    """What a command makes of its arguments; None where it only prints something about itself."""
    if {"--help", "-h", "--version"} & set(words):
        return None
    try:
        return command.make_context(name, list(words), **cli.SETTINGS)
    except click.ClickException as error:
        raise AssertionError(f"{name} {shlex.join(words)}: {error.format_message()}") from error


def pip_install(words: list[str]) -> None:
    """What is asked of pip for xcope exists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in words:
        own = re.fullmatch(r"(?:\.|xcope(?:-[^\[]*\.whl)?)(?:\[([\w,-]+)\])?", word)
        for extra in (own[1] or "").split(",") if own else ():
            assert not extra or extra in project["optional-dependencies"], word
