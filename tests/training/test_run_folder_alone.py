"""A run folder alone is enough to load its model: what only training reads may be gone."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from xcope.compare import compare
from xcope.config import Config, ConfigError, build_task, load_config
from xcope.data import corpus
from xcope.errors import FlagError
from xcope.tasks import Task, indexing
from xcope.tasks.registry import _TASKS
from xcope.training import RunError, RunFolder, load_run, read_metrics, train

KEYS = {
    "text": {"length": 16},
    "indexing": {"length": 16, "max_k": 2, "stretch": 1},
}


def config_of(task: str, text: Path, folder: Path) -> Config:
    lines = [f"{key}: {value}" for key, value in KEYS[task].items()]
    (folder / f"{task}.yaml").write_text(
        "model: {dim: 16, depth: 1, heads: 2, position: [absolute, cope]}\n"
        f"task: {{name: {task}, corpus: {text}, {', '.join(lines)}}}\n"
        "train: {steps: 2, batch_size: 2, device: cpu}\nevaluate: {batches: 1, batch_size: 2}\n"
    )
    return load_config(folder / f"{task}.yaml")


def take_away(words: Path, left: str | None = None) -> None:
    """Delete the corpus, or replace it, as a new process finds it: nothing of it is remembered."""
    corpus._OPENED.clear()
    indexing._starts.cache_clear()
    words.unlink()
    if left is not None:
        words.write_text(left)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A corpus that can be taken away."""
    (tmp_path / "words.txt").write_text("one word after another\n" * 400)
    return tmp_path / "words.txt"


@pytest.mark.parametrize("task", KEYS)
def test_a_run_is_loaded_where_its_corpus_is_gone(task: str, words: Path, tmp_path: Path):
    config, run = config_of(task, words, tmp_path), tmp_path / "run"
    result = train(config, run)
    _, before = load_run(run)
    take_away(words)
    loaded, model = load_run(run)
    assert loaded == config
    assert loaded.label() == config.label()
    tokens = torch.randint(256, (1, 16))
    assert torch.equal(model(tokens), before(tokens))
    made = build_task(loaded)
    assert made.decode(made.encode("a word")) == "a word"
    assert made.seq_len("train") > 0
    assert train(load_config(run / "config.yaml", data=False), run, resume=True) == result
    with pytest.raises(FlagError, match=r"words.txt' cannot be read"):
        made.batch("train", 1, 0, 0)
    with pytest.raises(ConfigError, match=r"task.corpus: corpus="):
        load_config(run / "config.yaml")


def test_a_corpus_that_became_too_short_is_named_when_it_is_read(words: Path, tmp_path: Path):
    for task in KEYS:
        config_of(task, words, tmp_path)
    take_away(words, " ")
    for task in KEYS:
        made = build_task(load_config(tmp_path / f"{task}.yaml", data=False))
        with pytest.raises(FlagError, match="split"):
            made.batch(made.splits[0], 1, 0, 0)


def test_a_run_is_loaded_where_its_task_is_unknown(
    words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train(config_of("text", words, tmp_path), tmp_path / "run")
    monkeypatch.delitem(_TASKS, "text")
    config, model = load_run(tmp_path / "run")
    assert model.num_tokens == 256
    assert config.label() == "absolute+cope"


def test_a_run_without_the_size_of_its_vocabulary_asks_its_task(
    words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As earlier versions wrote it."""
    with monkeypatch.context() as patch:
        without = {"step": 2, "seconds": 1.0, "scaler": None}
        patch.setattr(
            "xcope.training.state.TrainingState._rest",
            lambda state: without | {"config": state.config.model_dump(mode="json")},
        )
        train(config_of("text", words, tmp_path), tmp_path / "run")
    take_away(words)
    assert load_run(tmp_path / "run")[1].num_tokens == 256


def test_a_report_is_made_again_from_the_folders(words: Path, tmp_path: Path):
    config_of("text", words, tmp_path)
    swept = ["sweep.model.position=[none, cope]"]
    config = load_config(tmp_path / "text.yaml", swept, sweep=True)
    first = compare(config, tmp_path / "out", jobs=2)
    assert not first.failed
    report = tmp_path / "out" / "report.md"
    text = report.read_text()
    report.unlink()
    take_away(words)
    config = load_config(tmp_path / "text.yaml", swept, sweep=True, data=False)
    compare(config, tmp_path / "out", jobs=2)
    assert report.read_text() == text
    for out in (tmp_path / "out", tmp_path / "fresh"):
        with pytest.raises(ConfigError, match=r"task.corpus: corpus="):
            compare(config, out, overwrite=out.name == "out", jobs=1)
    assert not (tmp_path / "fresh").exists()
    shutil.rmtree(tmp_path / "out" / "runs" / "cope-seed0")
    with pytest.raises(ConfigError, match=r"task.corpus: corpus="):
        compare(config, tmp_path / "out", jobs=1)


def test_tasks_are_made_without_their_data():
    """Every registered one: nothing is read before `check_data` or the first batch."""
    for kind in _TASKS.values():
        made: Task = kind()
        assert made.num_tokens > 1
        assert made.max_seq_len > 0


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("results.json", "[]"),
        ("results.json", "{}"),
        ("results.json", '{"splits": 3, "params": 1, "steps": 1}'),
        ("results.json", "[" * 100_000),
        ("results.json", '{"params": ' + "9" * 5000 + "}"),
        ("timing.json", "{"),
        ("timing.json", "3"),
        ("timing.json", '{"seconds": "x"}'),
    ],
)
def test_damaged_results_are_named(words: Path, tmp_path: Path, file: str, content: str):
    run = RunFolder(tmp_path / "run")
    train(config_of("text", words, tmp_path), run.path)
    (run.path / file).write_text(content)
    with pytest.raises(RunError, match="is damaged"):
        run.read_result()


@pytest.mark.parametrize("line", ["3", "{}", "[" * 100_000, '{"step": ' + "9" * 5000 + "}", "{"])
def test_a_damaged_line_of_metrics_is_named(tmp_path: Path, line: str):
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n")
    with pytest.raises(RunError, match=r"metrics.jsonl is damaged"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_files_that_are_no_text_are_named(tmp_path: Path):
    run = RunFolder(tmp_path)
    run.results.write_bytes(b"\xff\xfe")
    run.timing.write_text(json.dumps({"seconds": 1.0}))
    with pytest.raises(RunError, match=r"results.json is not UTF-8"):
        run.read_result()
    run.results.unlink()
    run.results.mkdir()
    with pytest.raises(RunError, match=r"results.json cannot be read: Is a directory"):
        run.read_result()
    (tmp_path / "config.yaml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_run(tmp_path)
