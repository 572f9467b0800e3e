"""The wheel and the source distribution: what is in them, and what they do outside the clone."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import xcope

pytestmark = pytest.mark.long

REPO = Path(__file__).parents[2]
pytest.importorskip("hatchling", reason="builds the wheel: pip install -e '.[dev]'")

TINY = ["train.steps=2", "train.batch_size=4", "evaluate.batches=1", "evaluate.batch_size=4"]
ONE_PROCESS = """
import json, sys
from xcope.__main__ import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["/somewhere/bin/xcope", *arguments]
    assert main() == 0, arguments
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the wheel and the source distribution."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=REPO, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in names:
        if (REPO / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPO / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source],
        capture_output=True,
        check=True,
    )
    return folder


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The ``bin`` of an environment with the wheel, beside the packages that are here."""
    place = tmp_path_factory.mktemp("venv")
    venv.create(place, with_pip=False, symlinks=True)
    paths = {"base": str(place), "platbase": str(place)}
    packages = Path(sysconfig.get_path("purelib", vars=paths))
    # a folder in a .pth is searched, but what its own .pth files add (an editable xcope) is not
    (packages / "present.pth").write_text(sysconfig.get_path("purelib") + "\n")
    wheel = next(built.glob("*.whl"))
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", place / "bin/python", "install", "--quiet",
         "--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check", wheel],
        check=True,
    )  # fmt: skip
    hand_on_kernels(packages / "xcope")
    return place / "bin"


def hand_on_kernels(package):
    """What numba compiled for the clone serves its copy, whose files have the same time and size.

    Else each installation compiles once, for half a minute.
    """
    for source in (REPO / "xcope").rglob("*.py"):
        times = source.stat()
        copy = package / source.relative_to(REPO / "xcope")
        os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
    for kernel in (REPO / "xcope").rglob("__pycache__/*.nb[ic]"):
        copy = package / kernel.relative_to(REPO / "xcope")
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(kernel, copy)


@pytest.fixture(scope="module")
def called(installed, tmp_path_factory):
    """``called(program, …)``: how a program of the environment ends, in an empty folder."""
    folder = tmp_path_factory.mktemp("empty")
    left_out = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    environment = {key: value for key, value in os.environ.items() if key not in left_out}

    def call(program, *arguments):
        return subprocess.run(
            [installed / program, *map(str, arguments)],
            cwd=folder,
            env=environment | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    call.folder = folder
    return call


def test_the_wheel_holds_all_that_is_not_python_too(built):
    names = set(zipfile.ZipFile(next(built.glob("*.whl"))).namelist())
    for folder, inside in ((REPO / "xcope", "xcope"), (REPO / "configs", "xcope/configs")):
        for file in folder.rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert f"{inside}/{file.relative_to(folder).as_posix()}" in names
    assert {"xcope/py.typed", "xcope/catalogue.json"} <= names
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"xcope", f"xcope-{xcope.__version__}.dist-info"}


def test_the_source_distribution_holds_what_builds_and_tests_it(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = archive.getnames()
    for name in ("pyproject.toml", "README.md", "LICENSE", "configs/quickstart.yaml",
                 "xcope/catalogue.json", "tests/conftest.py", "scripts/train.py"):  # fmt: skip
        assert f"xcope-{xcope.__version__}/{name}" in names


def test_outside_the_clone_the_command_answers(called):
    assert called("xcope", "--version").stdout == f"xcope {xcope.__version__}\n"
    listed = called("xcope", "schemes").stdout
    assert all(name in listed for name in xcope.schemes())
    ended = called("xcope", "train", "configs/quickstart.yaml", "model.position=rotery")
    assert ended.returncode == 2
    assert "site-packages/xcope/configs/quickstart.yaml" in ended.stderr


def test_outside_the_clone_models_are_trained_measured_and_sampled(called):
    calls = [
        ["train", "configs/quickstart.yaml", "sweep=null", "model.position=rotary", *TINY],
        ["evaluate", "runs/quickstart-rotary-seed0", "--json", "measured.json"],
        ["sample", "runs/quickstart-rotary-seed0", "--tokens", "3"],
        ["trace", "runs/quickstart-rotary-seed0", "--layer", "0"],
    ]
    ended = called("python", "-c", ONE_PROCESS, json.dumps(calls))
    assert ended.returncode == 0, ended.stderr
    assert "\n  xcope evaluate runs/quickstart-rotary-seed0\n" in ended.stdout
    assert "layer 0, head 3: rotary" in ended.stdout
    assert "site-packages/xcope/configs/quickstart.yaml" in ended.stderr
    run = called.folder / "runs/quickstart-rotary-seed0"
    written = json.loads((run / "results.json").read_text())
    again = json.loads((called.folder / "measured.json").read_text())
    assert again["splits"] == written["splits"]


def test_outside_the_clone_schemes_are_compared_in_workers(called):
    arguments = ["sweep.model.position=[rotary]", "--out", "runs/one", "--jobs", "1"]
    ended = called("xcope", "compare", "configs/quickstart.yaml", *TINY, *arguments)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    report = (called.folder / "runs/one/report.md").read_text()
    assert "xcope compare configs/quickstart.yaml train.steps=2" in report
    assert "scripts/" not in report
