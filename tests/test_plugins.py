"""Schemes, tasks, metrics and columns in files of one's own, and whose code is run."""

import importlib
import importlib.metadata
import io
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import click
import plugin_files
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

import xcope
from xcope import cli, plugins, registry
from xcope.compare import compare
from xcope.compare.report import columns
from xcope.config import Config, ConfigError, build_model, build_task, load_config, read_config
from xcope.errors import FlagError
from xcope.positions import registry as scheme_registry
from xcope.tasks import registry as task_registry
from xcope.training import RunInterruptedError, load_run, metrics, to_go_on, train

REGISTRIES = (
    (scheme_registry, "_SCHEMES"), (task_registry, "_TASKS"), (metrics, "METRICS"),
    (columns, "COLUMNS"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _apart(monkeypatch, tmp_path):
    """A home of its own, and nothing registered or imported that was not before."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("XCOPE_TRUST", raising=False)
    kept = [(getattr(module, name), dict(getattr(module, name))) for module, name in REGISTRIES]
    origins, path, modules = dict(registry._ORIGINS), [*sys.path], {*sys.modules}
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(sys, "stdin", None)
    yield
    for kinds, before in kept:
        kinds.clear()
        kinds.update(before)
    registry._ORIGINS.clear()
    registry._ORIGINS.update(origins)
    sys.path[:] = path
    for name in {*sys.modules} - modules:
        if "recency" in name or "again" in name or name.startswith(("own_pkg", "helper_of")):
            del sys.modules[name]


def forget() -> None:
    """As in a process that has not read any plugin yet."""
    plugins._loaded.clear()
    scheme_registry._SCHEMES.pop("recency", None)
    task_registry._TASKS.pop("again", None)


@pytest.fixture
def exp(tmp_path) -> Path:
    return plugin_files.write(tmp_path / "proj")


@pytest.fixture
def run(exp, tmp_path) -> Path:
    """A run that its user has trained."""
    train(load_config(exp), tmp_path / "run")
    forget()
    return tmp_path / "run"


def strangers(run: Path) -> Path:
    """The same run on a machine that has not seen it, without the files that it was made with."""
    shutil.rmtree(run.parent / "proj")
    shutil.rmtree(run.parent / "state")
    return run


# -- naming and finding --------------------------------------------------------------------------


def test_a_scheme_and_a_task_beside_the_config_are_used_like_ours(exp, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "proj" / "flag.yaml").write_text(
        "import: [recency.py, again.py]\ntask: again\n"
        "model: {dim: 16, depth: 1, heads: 2, position: recency, recency_size: 3}\n"
    )
    flag = load_config("proj/flag.yaml")
    assert flag.model.recency_size == 3
    assert flag.label() == "recency(size=3)"
    config = load_config("proj/exp.yaml")
    assert config.label() == "recency(size=4)"
    assert build_task(config).num_tokens == 4
    model = xcope.Decoder(dim=16, depth=1, heads=2, position="recency", recency_size=2)
    assert model.state_dict()["layers.0.1.attend.cope.slope"].tolist() == [0.5, 0.5]
    written = Config.model_validate_json(config.model_dump_json(by_alias=True))
    assert [one.file for one in written.plugins] == [
        str(tmp_path / "proj" / name) for name in ("recency.py", "again.py")
    ]
    (tmp_path / "resolved.yaml").write_text(config.to_yaml())
    assert load_config("resolved.yaml") == config


@pytest.mark.parametrize(
    ("imports", "words"),
    [
        ("[missing.py]", "there is no file .*/proj/missing.py"),
        ("[recency.py, missing.py]", "there is no file .*/proj/missing.py"),
        ("missing.py", "there is no file .*/proj/missing.py"),
        ("[no_such_module.at.all]", "no module 'no_such_module.at.all'.*proj/no_such_module/at/al"),
        ("[a/recency.txt]", "its name must end in .py"),
        ("[../proj/]", "is a folder"),
        ("[{file: recency.py}]", "expected a Python file"),
        ("[3]", "expected a Python file"),
        ("['not a name']", "neither a file .* nor a module"),
        ("[sys]", "not written in Python"),
        ("[~no_such_user/recency.py]", "no home folder '~no_such_user'"),
    ],
)
def test_what_is_no_plugin_is_told_with_the_line_of_the_config(tmp_path, imports, words):
    file = plugin_files.write(tmp_path / "proj", imports)
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(file)
    assert caught.value.line == 2
    assert caught.value.key.startswith("import")


@pytest.mark.parametrize(
    ("code", "line", "words"),
    [
        ("x = 1\ny = x +\n", 2, "not Python"),
        ("import no_such_thing\n", 1, "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("def f():\n    raise KeyError('k')\n\nf()\n", 2, "KeyError: 'k'"),
        ("import sys\nsys.exit(3)\n", 2, "it ends the program"),
        ("from . import other\n", 1, "name the plugin as a module, my_pkg.tasks"),
        (plugin_files.SCHEME.replace('"recency"', '"cope"'), 25, "two schemes are called 'cope'"),
    ],
)
def test_what_fails_in_a_plugin_is_one_line_with_its_file_and_line(tmp_path, code, line, words):
    file = plugin_files.write(tmp_path / "proj", "recency.py")
    (tmp_path / "proj" / "recency.py").write_text(code)
    before = dict(xcope.schemes())
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    text = str(caught.value)
    assert f"exp.yaml:2: import: {tmp_path / 'proj' / 'recency.py'}:{line}: " in text
    assert words in text
    assert "\n" not in text
    assert dict(xcope.schemes()) == before


@pytest.mark.parametrize(
    ("file", "before", "after", "words"),
    [
        ("recency.py", "self.size > 0", "self.size > None", r"recency.py:44 fails with this: Type"),
        (
            "again.py",
            "return 4",
            "return 1 // 0",
            r"task: the task fails .* ZeroDivisionError: .*again.py:22\)",
        ),
    ],
)
def test_what_fails_when_it_is_used_names_the_line_of_the_plugin(exp, file, before, after, words):
    plugin = exp.parent / file
    plugin.write_text(plugin.read_text().replace(before, after))
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(exp)
    assert caught.value.file == str(exp)


def test_the_second_scheme_of_a_name_is_told_where_the_first_is(exp, tmp_path):
    other = plugin_files.write(tmp_path / "other", "[recency.py, again.py]")
    (tmp_path / "other" / "recency.py").write_text(plugin_files.SCHEME + "\n# another\n")
    load_config(exp)
    with pytest.raises(ConfigError, match=r"two schemes are called 'recency' \(the first: .*proj"):
        load_config(other)


def test_the_same_file_may_be_imported_in_every_way_at_once(exp, monkeypatch):
    load_config(exp)
    monkeypatch.syspath_prepend(exp.parent)
    importlib.reload(importlib.import_module("recency"))
    load_config(exp)
    text = exp.parent.joinpath("recency.py").read_text()
    exp.parent.joinpath("recency.py").write_text(text.replace("size: int = 8", "size: int = 9"))
    config = load_config(exp)  # as after an edit in a notebook
    assert xcope.schemes()["recency"].options()["size"].default == 9
    assert config.plugins[0].sha256 != ""


@pytest.mark.parametrize("name", ["random", "copy", "torch", "xcope", "types"])
def test_a_plugin_may_be_called_like_a_module_that_others_need(exp, name):
    exp.parent.joinpath("recency.py").rename(exp.parent / f"{name}.py")
    exp.write_text(exp.read_text().replace("recency.py", f"{name}.py"))
    theirs = sys.modules[name]
    build_model(load_config(exp))
    assert sys.modules[name] is theirs
    assert importlib.import_module(name) is theirs


def test_a_module_is_named_by_its_dotted_name_or_its_file_and_may_import_its_package(tmp_path):
    for entry in ("own_pkg.schemes.recency", "own_pkg/schemes/recency.py"):
        file = plugin_files.write(tmp_path / "proj", f"[{entry}, again.py]")
        package = tmp_path / "proj" / "own_pkg" / "schemes"
        package.mkdir(parents=True, exist_ok=True)
        (package.parent / "__init__.py").write_text("")
        (package / "__init__.py").write_text("SIZE = 8\n")
        (package / "recency.py").write_text(
            plugin_files.SCHEME.replace("import torch\n", "import torch\nfrom . import SIZE\n", 1)
            .replace("size: int = 8", "size: int = SIZE")
        )  # fmt: skip
        config = load_config(file)
        one = config.plugins[0]
        assert (one.module, one.folder) == ("own_pkg.schemes.recency", str(tmp_path / "proj"))
        assert config.label() == "recency(size=4)"


def test_a_plugin_finds_what_lies_beside_it(exp):
    (exp.parent / "helper_of_recency.py").write_text("SIZE = 8\n")
    code = (
        "from helper_of_recency import SIZE\n" + plugin_files.SCHEME.partition("annotations\n")[2]
    )
    (exp.parent / "recency.py").write_text(code.replace("size: int = 8", "size: int = SIZE"))
    assert load_config(exp).label() == "recency(size=4)"


def test_files_that_are_extended_add_their_plugins_and_the_command_line_replaces_them(tmp_path):
    plugin_files.write(tmp_path / "proj" / "a", "recency.py")
    plugin_files.write(tmp_path / "proj" / "b", "again.py")
    (tmp_path / "proj" / "pyproject.toml").write_text("")
    (tmp_path / "proj" / "exp.yaml").write_text("extends: [a/exp.yaml, b/exp.yaml]\n")
    files = [one.file for one in load_config(tmp_path / "proj" / "exp.yaml").plugins]
    assert files == [str(tmp_path / "proj/a/recency.py"), str(tmp_path / "proj/b/again.py")]
    other = tmp_path / "proj" / "a" / "again.py"
    named = load_config(
        tmp_path / "proj" / "exp.yaml", [f"import=[{other}]", "model.position=rotary"]
    )
    assert [one.file for one in named.plugins] == [str(other)]


def test_metrics_and_columns_of_a_plugin_are_shown(tmp_path):
    file = plugin_files.write(tmp_path / "proj", "[recency.py, again.py, records.py]")
    (tmp_path / "proj" / "records.py").write_text(plugin_files.RECORDS)
    result = train(load_config(file), tmp_path / "run")
    assert result.splits["in_distribution"]["surprise"] >= result.splits["in_distribution"]["loss"]
    assert "pace" in columns.COLUMNS


# -- runs ----------------------------------------------------------------------------------------


def test_a_run_keeps_a_copy_and_opens_when_the_file_was_moved_or_changed(run, capsys):
    weights = load_run(run)[1].state_dict()
    original = run.parent / "proj" / "recency.py"
    text = original.read_text()
    original.write_text(text.replace("class Away", "1 / 0\n\n\nclass Away"))
    forget()
    _, model = load_run(run)
    assert model.state_dict().keys() == weights.keys()
    assert f"{original} has changed since this run began" in capsys.readouterr().err
    original.unlink()
    forget()
    load_run(run)
    assert capsys.readouterr().err == ""
    shutil.rmtree(run / "plugins")
    forget()
    with pytest.raises(ConfigError, match=r"there is no file .*recency.py, and there is no copy"):
        load_run(run)


def test_a_run_goes_on_with_the_code_it_began_with_unless_another_is_named(exp, tmp_path, capsys):
    with pytest.raises(RunInterruptedError):
        train(load_config(exp), tmp_path / "cut", reporter=Stop(after=2))
    train(load_config(exp), tmp_path / "whole")
    original = exp.parent / "recency.py"
    original.write_text(original.read_text().replace("1.0 / size", "2.0 / size"))
    forget()
    config = to_go_on(tmp_path / "cut")
    assert "has changed since this run began" in capsys.readouterr().err
    assert train(config, tmp_path / "cut", resume=True).splits == (
        train(
            load_config(tmp_path / "whole" / "config.yaml"), tmp_path / "whole", resume=True
        ).splits
    )
    forget()
    capsys.readouterr()
    config = to_go_on(tmp_path / "cut", [f"import=[{original}, {exp.parent / 'again.py'}]"])
    assert "changed" not in capsys.readouterr().err
    assert config.plugins[0].sha256 != read_config(tmp_path / "whole/config.yaml").plugins[0].sha256


class Stop:
    """A reporter that interrupts a run."""

    def __init__(self, after: int) -> None:
        self.after = after

    def note(self, line): ...
    def warn(self, line): ...
    def start(self, label, step, steps): ...
    def end(self): ...
    def measured(self, split, batch, batches): ...

    def step(self, step, loss):
        if step == self.after:
            signal.raise_signal(signal.SIGINT)


def test_the_workers_of_a_sweep_load_the_plugins_and_the_copy_if_the_file_changed(
    tmp_path, monkeypatch
):
    file = plugin_files.write(tmp_path / "proj")
    text = file.read_text().replace("position: {name: recency, size: 4}", "heads: 2")
    file.write_text(text.replace("heads: 2, heads: 2", "heads: 2"))
    config = load_config(
        file, ["sweep.model.position=[{name: recency, size: 2}]"], sweep=True, data=False
    )
    original = file.parent / "recency.py"
    original.write_text("raise SystemExit('another file by now')\n")
    # a server that other tests have started knows another home
    spawned = partial(multiprocessing.get_context, "spawn")
    monkeypatch.setattr("xcope.compare.run.pool._context", spawned)
    found = compare(config, tmp_path / "out", jobs=1, console=Console(file=io.StringIO()))
    assert [(one.reason, one.run.scheme) for one in found.outcomes] == [("", "recency(size=2)")]
    assert "recency(size=2)" in (tmp_path / "out" / "report.html").read_text()
    forget()
    assert load_run(found.outcomes[0].run.folder)[0].label() == "recency(size=2)"


def test_what_was_pickled_is_found_again_in_another_process(run, tmp_path):
    """Also where only the copy of the plugin is left; what starts a process by spawn does this."""
    file = tmp_path / "model.pickle"
    file.write_bytes(pickle.dumps(load_run(run)))
    (tmp_path / "proj" / "recency.py").unlink()
    code = f"import pickle; print(pickle.load(open({str(file)!r}, 'rb'))[0].label())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout == "recency(size=4)\n"


# -- trust ---------------------------------------------------------------------------------------


def test_ones_own_run_is_opened_without_a_question(run, tmp_path):
    config, _ = load_run(run)
    assert config.label() == "recency(size=4)"
    forget()
    shutil.rmtree(tmp_path / "proj")
    load_run(run)


OPENINGS = {
    "load_run": load_run,
    "read_config": lambda run: read_config(run / "config.yaml"),
    "train it": lambda run: load_config(run / "config.yaml"),
    "go on": to_go_on,
    "extend it": lambda run: load_config(extending(run)),
    "extend it beside it": lambda run: load_config(extending(run, run.parent)),
    "compare it": lambda run: load_config(run / "config.yaml", sweep=True, data=False),
}


def extending(run: Path, folder: Path | None = None) -> Path:
    """The user's own config that builds on a run's."""
    file = (folder or run.parent / "mine") / "mine.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"extends: {run / 'config.yaml'}\n")
    return file


@pytest.mark.parametrize("opening", OPENINGS)
def test_a_strangers_code_is_not_run_unasked(run, opening):
    strangers(run)
    with pytest.raises(ConfigError, match=r"plugins/recency_\w+.py .*not named.*--trust.*trust=Tr"):
        OPENINGS[opening](run)
    assert "recency" not in xcope.schemes()


@pytest.mark.parametrize("opening", OPENINGS)
def test_a_stranger_cannot_pretend_that_the_user_wrote_the_entry(run, opening):
    """Neither by a plain path, relative to the run's folder or absolute, nor by a module."""
    strangers(run)
    config = (run / "config.yaml").read_text().splitlines()
    rest = [line for line in config if not line.startswith(("import", "- {file"))]
    (run / "evil.py").write_text("raise RuntimeError('it ran')\n")
    for entry in ("evil.py", str(run / "evil.py"), "evil", "{module: evil, folder: %s, sha256: x}"):
        said = entry % run if "%s" in entry else entry
        (run / "config.yaml").write_text("\n".join([*rest, f"import: [{said}]", ""]))
        with pytest.raises(ConfigError, match="not named, or trained with, on this machine"):
            OPENINGS[opening](run)


@pytest.mark.parametrize("opening", OPENINGS)
def test_a_stranger_cannot_hide_the_entry_in_a_file_that_the_config_extends(run, opening):
    strangers(run)
    (run / "parts").mkdir()
    config = (run / "config.yaml").read_text().splitlines()
    rest = [line for line in config if not line.startswith(("import", "- {file"))]
    (run / "parts" / "evil.py").write_text("raise RuntimeError('it ran')\n")
    (run / "parts" / "base.yaml").write_text("import: evil.py\n")
    (run / "config.yaml").write_text("\n".join([*rest, "extends: parts/base.yaml", ""]))
    with pytest.raises(ConfigError, match="not named, or trained with, on this machine"):
        OPENINGS[opening](run)


def test_a_folder_that_only_says_it_is_a_run_is_asked_about_too(exp, tmp_path):
    """It holds a config, and no checkpoint yet by which one could know it."""
    shutil.copytree(exp.parent, tmp_path / "theirs")
    (tmp_path / "theirs" / "exp.yaml").rename(tmp_path / "theirs" / "config.yaml")
    for opening in (to_go_on, load_run):
        with pytest.raises(ConfigError, match="not named"):
            opening(tmp_path / "theirs")


def test_ones_own_config_may_be_called_config_and_lie_beside_its_runs(exp):
    exp.rename(exp.with_name("config.yaml"))
    (exp.parent / "runs").mkdir()
    assert load_config(exp.with_name("config.yaml")).label() == "recency(size=4)"


def test_a_record_holds_for_a_file_at_its_place_with_its_content(run, tmp_path):
    """A copy of a plugin that is known may lie beside a helper that is not."""
    copied = tmp_path / "copied"
    shutil.copytree(run, copied)
    shutil.rmtree(tmp_path / "proj")
    with pytest.raises(ConfigError, match="not named"):
        load_run(copied)
    plugin = next((run / "plugins").glob("recency*"))
    plugin.write_text(plugin.read_text() + "\n# changed\n")
    with pytest.raises(ConfigError, match="there is no file"):
        load_run(run)


@pytest.mark.parametrize("how", ["argument", "variable", "context"])
def test_trust_is_given_by_the_user(run, monkeypatch, how):
    strangers(run)
    if how == "variable":
        monkeypatch.setenv("XCOPE_TRUST", "1")
    if how == "context":
        with plugins.trusting():
            load_run(run)
    else:
        load_run(run, trust=True if how == "argument" else None)
    forget()
    monkeypatch.setenv("XCOPE_TRUST", "1")
    with pytest.raises(ConfigError, match="not named"):
        load_run(run, trust=False)


@pytest.mark.parametrize(("answer", "runs"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_on_a_terminal_a_question_shows_the_file_and_its_hash(run, monkeypatch, answer, runs):
    strangers(run)
    ours, theirs = os.openpty()
    with open(theirs) as stdin, open(os.dup(theirs), "w") as stderr:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stderr", stderr)
        os.write(ours, (answer * 2).encode())
        if runs:
            load_run(run)
            forget()
            load_run(run)  # it is asked once
        else:
            with pytest.raises(ConfigError, match="was not run"):
                load_run(run)
        said = os.read(ours, 10_000).decode()
    os.close(ours)
    assert str(next((run / "plugins").glob("recency*"))) in said
    assert read_plain(run).split("sha256: ")[1][:64] in said
    assert said.count("[y/N]") == (2 if runs else 1)


def read_plain(run: Path) -> str:
    return (run / "config.yaml").read_text()


def test_the_commands_take_trust(run, monkeypatch):
    strangers(run)
    for command in (["evaluate", str(run)], ["sample", str(run), "--tokens", "1"]):
        forget()
        refused = CliRunner().invoke(cli.xcope, command)
        assert isinstance(refused.exception, ConfigError)
        assert CliRunner().invoke(cli.xcope, [*command, "--trust"]).exit_code == 0
        forget()


def test_every_command_that_reads_a_run_or_a_config_takes_trust():
    ctx = click.Context(cli.xcope)
    found = {
        name: {param.name for param in cli.xcope.get_command(ctx, name).params}
        for name in cli.xcope.list_commands(ctx)
    }
    reading = {name for name, params in found.items() if {"run", "config", "resume"} & params}
    assert {"train", "compare", "evaluate", "sample", "gates", "config", "export"} <= reading
    assert all("trust" in found[name] for name in reading)


def test_the_gates_page_shows_a_plugin(run, tmp_path):
    """Whose bias is the same for all rows of a batch."""
    shown = CliRunner().invoke(cli.xcope, ["gates", str(run), "--text", "1 1 1"])
    assert shown.exit_code == 0, shown.output
    assert "recency(size=4)" in shown.output
    model = load_run(run)[1]
    bias = xcope.inspect.trace(model, torch.tensor([1, 1, 1])).layers[0].bias
    slope = model.state_dict()["attn_layers.layers.0.1.attend.cope.slope"]
    torch.testing.assert_close(bias[0, :, 2, 0], -2 * slope)
    assert "recency" in (run / "gates" / "gates.html").read_text()


def test_a_home_that_cannot_be_written_is_no_error(exp, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert load_config(exp).label() == "recency(size=4)"


# -- installed packages --------------------------------------------------------------------------


def installed(folder: Path, name: str, code: str) -> None:
    """A package that announces a plugin, as pip leaves it."""
    (folder / f"own_pkg_{name}.py").write_text(code)
    info = folder / f"own_pkg_{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: own-pkg-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{name} = own_pkg_{name}\n")


def test_an_installed_package_is_found_and_a_broken_one_is_told_and_left_out(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(tmp_path)
    installed(tmp_path, "good", plugin_files.SCHEME)
    half = plugin_files.SCHEME.replace('"recency"', '"half"') + "\nimport no_such_thing\n"
    installed(tmp_path, "half", half)
    installed(tmp_path, "taken", plugin_files.SCHEME.replace('"recency"', '"cope"'))
    monkeypatch.setattr(plugins, "_asked", False)
    assert {"recency", "cope"} <= xcope.schemes().keys()
    assert "half" not in xcope.schemes()
    first, second = sorted(capsys.readouterr().err.splitlines())
    assert "plugin 'half' of own-pkg-half 1.0 cannot be loaded and is left out" in first
    assert "No module named 'no_such_thing'" in first
    assert "own_pkg_half.py:" in first
    assert "plugin 'taken' of own-pkg-taken 1.0" in second
    assert "two schemes are called 'cope'" in second
    with pytest.raises(FlagError, match="did you mean 'recency'"):
        xcope.Decoder(dim=16, depth=1, heads=2, position="recencyy")
