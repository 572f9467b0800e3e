"""The YAML files of data sets, on local copies of their format."""

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import prose

from xcope.config import ConfigError, build_task, load_config
from xcope.config.load import read_task

datasets = pytest.importorskip("datasets")

CONFIGS = Path(__file__).parents[2] / "configs/tasks"


def stories(k: int, n: int) -> dict[str, list]:
    return {"text": [prose(100 * k + i, 120) for i in range(n)]}


def web(k: int, n: int) -> dict[str, list]:
    return {
        **stories(k, n),
        "id": [f"<urn:uuid:{i}>" for i in range(n)],
        "dump": ["CC-MAIN-2013-20"] * n,
        "url": ["http://example.org"] * n,
        "score": [3.5] * n,
        "int_score": [4] * n,
    }


def articles(k: int, n: int) -> dict[str, list]:
    lines = ["", f" = Title {k} = \n", ""]
    return {"text": lines + [f" {line} \n" for line in prose(k, 120 * n).split("\n")]}


def books(k: int, n: int) -> dict[str, list]:
    return {
        "short_book_title": [f"Book {k}"] * n,
        "publication_date": [1900] * n,
        "url": ["http://example.org"] * n,
        "text": [prose(10 * k + i, 6000) for i in range(n)],
    }


FORMATS = {
    "tinystories": (stories, {"train": 60, "validation": 30}),
    "fineweb_edu": (web, {"train": 300}),
    "wikitext103": (articles, {"train": 60, "validation": 60, "test": 60}),
    "pg19": (books, {"train": 4, "validation": 2, "test": 2}),
    "enwik8": (lambda k, n: {"text": [prose(0, 20_000)]}, {"train": 1}),
}


@pytest.fixture(autouse=True)
def _local(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def copy_of(name: str, folder: Path) -> Path:
    """A folder as the hub has it: parquet files, and their configs and splits in README.md."""
    table, splits = FORMATS[name]
    corpus = read_task(CONFIGS / f"{name}.yaml").options["corpus"]
    config = corpus.get("config", "default")
    lines = ["---", "configs:", f"- config_name: {config}", "  data_files:"]
    for k, (split, rows) in enumerate(splits.items()):
        file = folder / config / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table(k, rows)), file)
        lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_the_yaml_of_a_data_set_reads_its_format(name: str, tmp_path: Path):
    folder = copy_of(name, tmp_path / "copy")
    (tmp_path / "run.yaml").write_text(
        f"extends: tasks/{name}.yaml\n"
        "model: {dim: 8, depth: 1, heads: 1, position: none}\n"
        f"task: {{length: 16, held_out: 0.1, corpus: {{dataset: {folder.name}}}}}\n"
    )
    config = load_config(tmp_path / "run.yaml")
    assert config.task.options["corpus"]["dataset"] == str(folder), "as it stands beside the file"
    task = build_task(config)
    table, splits = FORMATS[name]
    texts = {one: "".join(table(k, rows)["text"]) for k, (one, rows) in enumerate(splits.items())}
    sides = {side: task.source(side).replace(b"\0", b"").decode() for side in task.every_split}
    if "test" in splits:
        assert sides == {"train": texts["train"], "validation": texts["validation"],
                         "held_out": texts["test"]}  # fmt: skip
    elif "validation" in splits:
        assert sides["train"] == texts["train"]
        assert sides["validation"] + sides["held_out"] == texts["validation"]
    else:
        assert sorted("".join(sides.values())) == sorted(texts["train"])
        share = len(sides["validation"] + sides["held_out"]) / len(texts["train"])
        assert share == pytest.approx(0.1, rel=0.5)
    if name == "enwik8":
        sizes = {side: len(text.encode()) for side, text in sides.items()}
        assert sizes["validation"] == pytest.approx(sizes["held_out"], abs=4)
    if name == "wikitext103":
        assert task.source("held_out").count(b"\0") == 1, "its rows are lines of one text"
    assert task.batch("train", 2, 0, 0).tokens.shape == (2, 16)


def test_rows_and_fields_and_their_mistakes(tmp_path: Path):
    folder = copy_of("fineweb_edu", tmp_path / "copy")
    base = (
        "extends: tasks/fineweb_edu.yaml\n"
        "model: {dim: 8, depth: 1, heads: 1, position: none}\ntask:\n  length: 16\n"
    )
    (tmp_path / "run.yaml").write_text(f"{base}  corpus: {{dataset: {folder}, rows: 90}}\n")
    sizes = build_task(load_config(tmp_path / "run.yaml")).sizes()
    assert 90 <= sum(side["documents"] for side in sizes.values()) <= 91
    for more, words in (
        (["task.field=content"], r"task.*has no field 'content', but"),
        (["task.field=score"], r"task.field: .*row 1: 'score' holds a float"),
        (["task.corpus.train=trian"], r"task.corpus: data set .*cannot be loaded.*trian"),
        (["task.corpus.dataset=nobody/nothing"], r"task.corpus: data set 'nobody/nothing'"),
        (["task.corpus.config=sample"], r"task.corpus: data set .*sample"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_config(tmp_path / "run.yaml", more)


def test_data_files_begin_at_the_yaml(tmp_path: Path):
    lines = [json.dumps({"text": prose(k, 100)}) for k in range(40)]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.jsonl").write_text("\n".join(lines))
    (tmp_path / "mine/run.yaml").write_text(
        "model: {dim: 8, depth: 1, heads: 1, position: none}\n"
        "task:\n  name: text\n  length: 16\n"
        "  corpus: {dataset: json, data_files: {train: a.jsonl}}\n"
    )
    config = load_config(tmp_path / "mine/run.yaml")
    assert config.task.options["corpus"]["data_files"] == {"train": str(tmp_path / "mine/a.jsonl")}
    assert sum(side["documents"] for side in build_task(config).sizes().values()) in (40, 41)


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name in FORMATS:
        with pytest.raises(ConfigError, match=r'pip install "xcope\[hf\]"'):
            load_config(
                CONFIGS / f"{name}.yaml",
                ["model.dim=8", "model.depth=1", "model.heads=1", "model.position=none"],
            )
