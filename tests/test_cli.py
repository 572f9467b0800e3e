"""What the scripts share: exit codes and single lines instead of tracebacks."""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from xcope import cli
from xcope.config import ConfigError
from xcope.errors import FlagError
from xcope.training import RunDivergedError, RunError, RunInterruptedError


def call(main: Callable[[argparse.Namespace], None], *arguments: str) -> int:
    parser = cli.parser("What it does.", "python scripts/it.py x\npython scripts/it.py y")
    parser.prog = "it.py"
    parser.add_argument("config", nargs="?")
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--out")
    return cli.run(parser, main, arguments)


def raiser(error: BaseException) -> Callable[[argparse.Namespace], None]:
    def main(args: argparse.Namespace) -> None:
        raise error

    return main


def test_success_is_zero_and_positional_arguments_may_surround_options():
    seen = []
    assert call(seen.append, "x.yaml", "a=1", "--out", "o", "b=2") == 0
    assert vars(seen[0]) == {"config": "x.yaml", "rest": ["a=1", "b=2"], "out": "o"}


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


def test_a_script_can_name_errors_of_its_own(capsys):
    parser = cli.parser("", "")
    assert cli.run(parser, raiser(KeyError("mine")), [], errors=(KeyError,)) == 2
    assert "mine" in capsys.readouterr().err


def test_other_errors_are_bugs_and_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        call(raiser(ZeroDivisionError()))


def test_ctrl_c_and_sigterm_end_in_130(capsys):
    usual = signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGTERM):
        assert call(lambda args, number=number: signal.raise_signal(number)) == 130
        assert capsys.readouterr().err == "it.py: stopped\n"
    assert signal.getsignal(signal.SIGTERM) is usual


def test_help_ends_with_the_examples(capsys):
    with pytest.raises(SystemExit) as end:
        call(lambda args: None, "--help")
    assert end.value.code == 0
    assert capsys.readouterr().out.endswith(
        "examples:\n  python scripts/it.py x\n  python scripts/it.py y\n"
    )


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path):
    program = tmp_path / "chatty.py"
    program.write_text(
        "import sys\n"
        "from xcope import cli\n"
        "sys.exit(cli.run(cli.parser('', ''), lambda args: print('x\\n' * 100_000)))\n"
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
