"""Documents are held out by share of bytes, at least one, and keep their side when others come."""

import json
import random
from pathlib import Path

import pytest
from corpora import KINDS, prose, write_files

from xcope.config import load_config
from xcope.errors import FlagError
from xcope.tasks import Task, task
from xcope.training import train


def sides_of(corpus, **options) -> tuple[bytes, bytes]:
    one: Task = task("text", {"corpus": corpus, "length": 8, **options})
    return one.source("train"), one.source("validation") + one.source("held_out")


def files_of(text: bytes) -> set[bytes]:
    return {part.partition(b":")[0] for part in text.removesuffix(b"\0").split(b"\0")}


@pytest.mark.parametrize("number", range(2, 41))
def test_at_least_one_file_is_held_out_and_about_the_share(tmp_path: Path, number: int):
    trained, held = sides_of(str(write_files(tmp_path, number)))
    assert files_of(trained) | files_of(held) == {b"%d" % k for k in range(number)}
    assert not files_of(trained) & files_of(held)
    share = len(held) / (len(trained) + len(held))
    assert share <= max(0.21, 1.1 / number)
    assert share >= 0.045


@pytest.mark.parametrize("seed", range(8))
def test_a_giant_among_few_files_is_trained_on(tmp_path: Path, seed: int):
    write_files(tmp_path, 6, 300, seed)
    (tmp_path / f"giant-{seed}.txt").write_text("giant: " + prose(seed, 20_000))
    trained, held = sides_of(str(tmp_path))
    assert b"giant" in files_of(trained)
    assert held


@pytest.mark.parametrize("number", [5, 9, 20, 60])
def test_files_keep_their_side_when_others_come(tmp_path: Path, number: int):
    folder = write_files(tmp_path / "a", number)
    _, before = sides_of(str(folder))
    write_files(folder, number + max(1, number // 5))
    # another folder, as what was read is remembered
    folder.rename(tmp_path / "b")
    trained, after = sides_of(str(tmp_path / "b"))
    moved = files_of(before) & files_of(trained)
    assert len(moved) <= 1
    assert files_of(before) & files_of(after)


def test_rows_are_split_by_what_they_say(tmp_path: Path):
    rows = [f"{k}: {prose(k, 300)}" for k in range(50)]
    draw = random.Random(0)
    held = []
    for name in ("a", "b"):
        # copies of a row are on one side, whatever its order
        lines = [json.dumps({"text": row}) for row in rows * 2]
        draw.shuffle(lines)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        trained, out = sides_of(str(tmp_path / f"{name}.jsonl"))
        assert not files_of(trained) & files_of(out)
        held.append(files_of(out))
    assert held[0] == held[1]


def test_copies_of_one_document_cannot_be_split(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "the same and the same"}\n' * 20)
    with pytest.raises(FlagError, match="copies of one") as caught:
        sides_of(str(tmp_path / "a.jsonl"))
    assert caught.value.flag == "held_out"


def test_sides_may_be_given(tmp_path: Path):
    for name in ("train", "validation", "test"):
        write_files(tmp_path / name, 3, seed=hash(name) % 100)
    corpus = {"train": str(tmp_path / "train"), "held_out": str(tmp_path / "test")}
    one = task("text", {"corpus": corpus, "length": 8})
    test = b"".join((tmp_path / f"test/{k}.txt").read_bytes() + b"\0" for k in range(3))
    assert one.source("validation") + one.source("held_out") == test
    assert 0.3 < len(one.source("validation")) / len(test) < 0.35
    corpus["validation"] = str(tmp_path / "validation/*.txt")
    one = task("text", {"corpus": corpus, "length": 8})
    assert one.source("held_out") == test
    assert files_of(one.source("validation")) == {b"0", b"1", b"2"}


def test_a_list_of_files_and_a_pattern(tmp_path: Path):
    write_files(tmp_path, 12)
    names = [str(tmp_path / f"{k}.txt") for k in (1, 3, 5, 7)]
    trained, held = sides_of([*names, names[0]])
    assert files_of(trained) | files_of(held) == {b"1", b"3", b"5", b"7"}
    trained, held = sides_of(str(tmp_path / "1*.txt"))
    assert files_of(trained) | files_of(held) == {b"1", b"10", b"11"}


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.99])
def test_one_file_is_cut_between_letters(tmp_path: Path, share: float):
    text = "é日🐕" * 60
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    one = task(
        "text", {"corpus": str(tmp_path / "a.txt"), "held_out": share, "length": 1}, data=False
    )
    parts = [one.source(side).decode() for side in ("train", "validation", "held_out")]
    assert "".join(parts) == text
    held = len((parts[1] + parts[2]).encode())
    assert abs(held - share * len(text.encode())) <= 4


@pytest.mark.parametrize("kind", [None, *KINDS])
@pytest.mark.parametrize("number", [1, 9])
def test_the_text_of_a_side_does_not_depend_on_the_tokenizer(tmp_path: Path, kind, number: int):
    write_files(tmp_path / "books", number, 2000)
    options = {}
    if kind:
        KINDS[kind]().save(str(tmp_path / "t.json"))
        options["tokenizer"] = str(tmp_path / "t.json")
    one = task("text", {"corpus": str(tmp_path / "books"), "length": 4, **options})
    plain = task("text", {"corpus": str(tmp_path / "books"), "length": 4})
    for side, stream in one.opened.streams.items():
        assert {k: v for k, v in one.sizes()[side].items() if k != "tokens"} == {
            k: v for k, v in plain.sizes()[side].items() if k != "tokens"
        }
        # the bytes of all tokens are those of the side, its separators one each
        tokens, counts = stream.windows([0], len(stream))
        total = len(stream) if counts is None else counts.sum()
        assert total == len(plain.source(side))
        ends = (tokens == one.opened.tokenizer.separator).sum()
        assert ends == plain.source(side).count(b"\0")


def test_what_is_held_out_is_in_the_results(tmp_path: Path):
    write_files(tmp_path / "books", 9)
    (tmp_path / "run.yaml").write_text(
        "model: {dim: 8, depth: 1, heads: 1, position: none}\n"
        "task: {name: text, corpus: books, length: 8}\n"
        "train: {steps: 1, batch_size: 2, lr: 100, device: cpu}\n"
        "evaluate: {batches: 1, batch_size: 2}\n"
    )
    said: list[str] = []

    class Reporter:
        def note(self, line):
            said.append(line)

        def __getattr__(self, name):
            return lambda *args: None

    result = train(load_config(tmp_path / "run.yaml"), tmp_path / "run", reporter=Reporter())
    assert result.data["held_out"]["documents"] >= 1
    total = sum(side["bytes"] for side in result.data.values())
    assert total == sum(file.stat().st_size for file in (tmp_path / "books").iterdir())
    assert '"data"' in (tmp_path / "run/results.json").read_text()
    assert any(line.startswith("held_out: 1 documents, ") for line in said)
    assert result.splits["held_out"]["bits_per_byte"] > 8, "a rate that ruins it at once"
    assert any("more than the 8 of a guess" in line for line in said)
