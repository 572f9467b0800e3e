"""What the scripts share: exit codes and single lines instead of tracebacks."""

import ast
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import torch
from safetensors import SafetensorError

from xcope import cli, errors, invocation
from xcope.config import ConfigError
from xcope.errors import FlagError
from xcope.training import RunDivergedError, RunError, RunInterruptedError


def call(body: Callable[[], object], *arguments: str) -> int:
    @cli.command("xcope it x\nxcope it y")
    @click.argument("config", required=False)
    @click.argument("rest", nargs=-1)
    @click.option("--out")
    @click.option("--overwrite", is_flag=True)
    def command(**given: object) -> None:
        """What it does."""
        SEEN.append(given)
        body()

    return cli.run(command, arguments, prog="it.py")


SEEN: list[dict[str, object]] = []


def raiser(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


def test_success_is_zero_and_positional_arguments_may_surround_options():
    assert call(lambda: None, "x.yaml", "a=1", "--out", "o", "b=2") == 0
    expected = {"config": "x.yaml", "rest": ("a=1", "b=2"), "out": "o", "overwrite": False}
    assert SEEN.pop() == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--overwite"], "no such option '--overwite'. Did you mean '--overwrite'?"),
        (["--out"], "option '--out' requires an argument"),
    ],
)
def test_a_command_line_that_is_wrong_is_one_line(capsys, arguments, words):
    assert call(lambda: None, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"it.py: error: {words}")
    assert err.count("\n") == 1


def test_a_command_that_is_misspelt_is_named():
    ended = xcope("trian", "x.yaml")
    assert ended.returncode == 2
    assert "no command 'trian'" in ended.stderr
    assert "did you mean 'train'?" in ended.stderr


def test_an_error_names_the_command_as_it_was_typed(tmp_path):
    ended = xcope("train", tmp_path / "gone.yaml")
    expected = f"python -m xcope train: error: {tmp_path}/gone.yaml: there is no such file\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", expected)


def xcope(*arguments: object) -> subprocess.CompletedProcess[str]:
    """``python -m xcope …``."""
    return subprocess.run(
        [sys.executable, "-m", "xcope", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_command_has_examples_that_name_it_and_configs_that_exist():
    root = Path(__file__).parents[1]
    context = click.Context(cli.xcope, info_name="xcope")
    names = cli.xcope.list_commands(context)
    assert {"train", "compare", "evaluate", "sample", "gates"} <= set(names)
    for name in names:
        one = cli.xcope.get_command(context, name)
        text = one.get_help(click.Context(one, parent=context, info_name=name))
        assert f"xcope {name}" in text.partition("examples:\n")[2], name
        assert all((root / config).is_file() for config in re.findall(r"configs/\S+\.yaml", text))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FlagError("heads", "heads=0"), 2),
        (ConfigError("wrong", "model.dim"), 2),
        (RunError("taken"), 2),
        (PermissionError(13, "denied", "/x"), 2),
        (RunInterruptedError("stopped"), 130),
        (RunDivergedError("nan"), 1),
    ],
)
def test_errors_of_the_user_are_one_line(capsys, error, code):
    assert call(raiser(error)) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"it.py: error: {error}\n")


def test_other_errors_are_bugs_and_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        call(raiser(ZeroDivisionError()))


MEMORY = (
    MemoryError("Unable to allocate 9 PiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: x"),
    RuntimeError("Storage size calculation overflowed with sizes=[1]"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
)


@pytest.mark.parametrize("error", MEMORY, ids=range(4))
def test_too_little_memory_is_said_in_a_line(capsys, error):
    assert call(raiser(error)) == 2
    assert "it.py: error: there is not enough memory" in capsys.readouterr().err


def test_what_pytorch_itself_says_of_a_tensor_that_is_too_large_is_known():
    for size in (2**62, 2**50):
        with pytest.raises((RuntimeError, MemoryError)) as raised:
            torch.empty(size, 2)
        assert "not enough memory" in str(errors.told(raised.value))


@pytest.mark.parametrize(
    "error",
    [
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        OSError(28, "No space left on device", "x"),
        IsADirectoryError(21, "Is a directory", "x"),
    ],
)
def test_disks_and_text_are_one_line(capsys, error):
    assert call(raiser(error)) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_traceback_of_an_error_can_be_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("XCOPE_TRACEBACK", "1")
    assert call(raiser(RunError("taken"))) == 2
    assert "Traceback" in capsys.readouterr().err


CHATTY = (
    "import sys\n"
    "from xcope import cli\n"
    "sys.exit(cli.run(cli.command('')(lambda: print('σ…🧪')), []))\n"
)


@pytest.mark.parametrize(
    ("redirect", "environment", "ended"),
    [
        ("", {"PYTHONIOENCODING": "ascii"}, (0, "\\u03c3\\u2026\\U0001f9ea\n", "")),
        ("", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, (0, None, "")),
        (">/dev/full", {}, (2, "", "No space left on device")),
        (">&-", {}, (0, "", "")),
        (">&- 2>&-", {}, (0, "", "")),
        (">/dev/full 2>/dev/full", {}, (2, "", "")),
    ],
)
def test_no_terminal_or_pipe_gives_a_traceback(tmp_path, redirect, environment, ended):
    program = tmp_path / "chatty.py"
    program.write_text(CHATTY, encoding="utf-8")
    code, out, words = ended
    found = subprocess.run(
        f"'{sys.executable}' '{program}' {redirect}",
        shell=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **environment},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert found.returncode == code, found.stderr
    assert out is None or found.stdout.strip() == out.strip()
    assert words in found.stderr
    assert found.stderr.count("\n") <= 1


def test_every_text_file_names_its_encoding():
    root = Path(__file__).parents[1]
    for file in [*root.glob("xcope/**/*.py"), *root.glob("scripts/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            text = ast.unparse(node)
            called = ast.unparse(node.func)
            if called.startswith("files."):  # ours, always UTF-8
                continue
            if called == "open" or called.endswith((".open", ".read_text", ".write_text")):
                binary = any(part in text for part in ("os.open(", "run.open(", "'rb'", "'wb'"))
                assert "encoding=" in text or binary, f"{file}:{node.lineno}: {text}"


def test_ctrl_c_and_sigterm_end_in_130(capsys):
    usual = signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGTERM):
        assert call(lambda number=number: signal.raise_signal(number)) == 130
        assert capsys.readouterr().err == "it.py: stopped\n"
    assert signal.getsignal(signal.SIGTERM) is usual


def test_ctrl_c_that_a_library_makes_another_error_of_ends_in_130_too(capsys):
    def body():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    assert call(body) == 130
    assert capsys.readouterr().err == "it.py: stopped\n"


@pytest.mark.parametrize(
    ("started", "train", "gone_on"),
    [
        ("/env/bin/xcope", "xcope train", "xcope compare a.yaml"),
        ("/x/site-packages/xcope/__main__.py", "python -m xcope train",
         "python -m xcope compare a.yaml"),
        ("SCRIPTS/compare.py", "python SCRIPTS/train.py",
         "python SCRIPTS/compare.py compare a.yaml"),
        ("/home/me/compare.py", "xcope train", "python /home/me/compare.py compare a.yaml"),
    ],
)  # fmt: skip
def test_commands_are_named_as_this_one_was_started(monkeypatch, started, train, gone_on):
    scripts = str(Path(__file__).parents[1] / "scripts")
    monkeypatch.setattr(sys, "argv", [started.replace("SCRIPTS", scripts), "compare", "a.yaml"])
    assert invocation.command("train") == train.replace("SCRIPTS", scripts)
    assert shlex.join(invocation.typed()) == gone_on.replace("SCRIPTS", scripts)
    assert invocation.command("schemes").endswith("xcope schemes")  # which is no script


def test_help_ends_with_the_examples(capsys):
    assert call(lambda: None, "--help") == 0
    assert capsys.readouterr().out.endswith("examples:\n  xcope it x\n  xcope it y\n")


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path):
    program = tmp_path / "chatty.py"
    program.write_text(
        "import sys\n"
        "from xcope import cli\n"
        "sys.exit(cli.run(cli.command('')(lambda: print('x\\n' * 100_000)), []))\n"
    )
    root = str(Path(__file__).parents[1])
    ended = subprocess.run(
        f"set -o pipefail; '{sys.executable}' '{program}' | head -n 1",
        shell=True,
        executable="bash",
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "x\n", "")
