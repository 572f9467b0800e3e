"""Shards: made once, the same bit for bit after any stop, refused when they are damaged."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from corpora import KINDS, byte_bpe, prose, write_files

from xcope.config import build_model
from xcope.data import Source, load_tokenizer, make_shards, open_shards, shards
from xcope.errors import FlagError
from xcope.tasks import IGNORE, task

PART = 5000


def made(folder: Path, out: Path, kind: str | None = "byte_bpe", **more):
    if kind is not None and not (folder.parent / f"{kind}.json").exists():
        KINDS[kind]().save(str(folder.parent / f"{kind}.json"))
    name = None if kind is None else str(folder.parent / f"{kind}.json")
    return make_shards(
        Source(str(folder)), load_tokenizer(name), out,
        **{"held_out": 0.2, "validation": 1 / 3, "part": PART, **more},
    )  # fmt: skip


@pytest.fixture
def books(tmp_path: Path) -> Path:
    return write_files(tmp_path / "books", 20, 2000)


def contents(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.name != ".verified.json"}


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_they_hold_what_a_small_corpus_has_in_memory(books: Path, tmp_path: Path, kind):
    found = made(books, tmp_path / "out", kind)
    name = None if kind is None else str(tmp_path / f"{kind}.json")
    options = {"corpus": str(books), "held_out": 0.2, "length": 8, "tokenizer": name}
    memory = task("text", options)
    assert len(list((tmp_path / "out").glob("train-*.tokens.bin"))) > 3
    for side, stream in memory.opened.streams.items():
        assert len(found.streams[side]) == len(stream)
        windows = found.streams[side].windows([0, 7], len(stream) - 7)
        for ours, theirs in zip(windows, stream.windows([0, 7], len(stream) - 7), strict=True):
            assert (ours is None and theirs is None) or np.array_equal(ours, theirs)
        assert found.sides[side] == memory.opened.sides[side]
    mine = task("text", {"corpus": str(tmp_path / "out"), "length": 8})
    assert mine.num_tokens == memory.num_tokens
    for split in mine.every_split:
        assert torch.equal(mine.batch(split, 4, 0, 3).tokens, memory.batch(split, 4, 0, 3).tokens)


def test_documents_end_where_the_separator_stands(books: Path, tmp_path: Path):
    separator = made(books, tmp_path / "out").tokenizer.separator
    for tokens in sorted((tmp_path / "out").glob("*.tokens.bin")):
        ids = np.fromfile(tokens, "<u2")
        ends = np.fromfile(str(tokens).replace("tokens", "documents"), "<u8")
        assert np.array_equal(np.flatnonzero(ids == separator) + 1, ends)


COMMAND = """
import os, signal, sys
from xcope.data import shards
from xcope.cli import xcope, run
written, most = shards._write, int(sys.argv.pop(1))
def write(path, array):
    global most
    most -= 1
    if most < 0:  # in the middle of a file
        path.with_name(f".{path.name}.new").write_bytes(array.tobytes()[:7])
        os.kill(os.getpid(), signal.SIGKILL)
    return written(path, array)
shards._write = write
sys.exit(run(xcope, sys.argv[1:]))
"""


def test_a_killed_process_leaves_what_the_next_one_completes_bit_for_bit(
    books: Path, tmp_path: Path
):
    byte_bpe().save(str(tmp_path / "t.json"))
    words = ["data", "tokenize", "books", "--tokenizer", "t.json", "--out", "out"]
    words += ["--shard-bytes", str(PART), "--held-out", "0.2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def call(most: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", COMMAND, str(most), *words],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert call(16).returncode == -signal.SIGKILL
    some = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.bin")}
    assert some
    assert not (tmp_path / "out/index.json").exists()
    with pytest.raises(FlagError, match="not finished"):
        task("text", {"corpus": str(tmp_path / "out")})
    done = call(10**6)
    assert done.returncode == 0, done.stderr
    parts = {f"{side}-0000{k}" for side in ("train", "validation", "held_out") for k in range(2)}
    kept = [name for name in some if name.split(".")[0] in parts]
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == some[name] for name in kept)
    tokenizer = load_tokenizer(str(tmp_path / "t.json"))
    options = {"held_out": 0.2, "validation": 1 / 3, "part": PART}
    make_shards(Source(str(books)), tokenizer, tmp_path / "whole", **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("kind", [None, "llama_like", "lowercase_words"])
def test_stopped_anywhere_they_end_the_same(books: Path, tmp_path: Path, monkeypatch, kind):
    (books / "spaces.txt").write_text(" \n" * 4000)  # some tokenizers have no token for it
    made(books, tmp_path / "whole", kind)
    plain, attempts = shards._write, 0
    while not (tmp_path / "out/index.json").exists():
        attempts += 1
        left = [9 + attempts % 4]  # a part has nine files at most

        def write(path, array, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise StoppedError
            return plain(path, array)

        monkeypatch.setattr(shards, "_write", write)
        with contextlib.suppress(StoppedError):
            made(books, tmp_path / "out", kind)
    assert attempts > 2
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_call_with_other_options_is_refused_unless_it_may_overwrite(books: Path, tmp_path: Path):
    out = tmp_path / "out"
    made(books, out)
    before = contents(out)
    made(books, out)
    assert contents(out) == before
    for more, word in (({"held_out": 0.3}, "held_out"), ({"part": 900}, "part"),
                       ({"kind": "unigram"}, "tokenizer")):  # fmt: skip
        with pytest.raises(FlagError, match=f"made otherwise.*{word}") as caught:
            made(books, out, **more)
        assert caught.value.flag == "out"
    (books / "0.txt").write_text(prose(99, 500))
    with pytest.raises(FlagError, match=r"source.*--overwrite"):
        made(books, out)
    made(books, out, overwrite=True)
    assert contents(out) != before
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").touch()
    with pytest.raises(FlagError, match="not empty and holds no shards"):
        made(books, tmp_path / "full", overwrite=True)
    assert (tmp_path / "full/mine.txt").exists()


def shard(out: Path) -> Path:
    return out / "train-00001.tokens.bin"


def cut_off(out: Path) -> None:
    os.truncate(shard(out), shard(out).stat().st_size // 2)


def longer(out: Path) -> None:
    shard(out).write_bytes(shard(out).read_bytes() + b"\0\0")


def changed(out: Path) -> None:
    content = bytearray(shard(out).read_bytes())
    content[100] ^= 1
    time.sleep(0.01)
    shard(out).write_bytes(content)


def missing(out: Path) -> None:
    shard(out).unlink()


def tokenizer_changed(out: Path) -> None:
    KINDS["unigram"]().save(str(out / "tokenizer.json"))


def index_cut(out: Path) -> None:
    (out / "index.json").write_text((out / "index.json").read_text()[:500])


def index_other(out: Path) -> None:
    (out / "index.json").write_text('{"format": 1}')


def index_newer(out: Path) -> None:
    index = json.loads((out / "index.json").read_text())
    (out / "index.json").write_text(json.dumps({**index, "format": 2}))


def side_gone(out: Path) -> None:
    index = json.loads((out / "index.json").read_text())
    del index["sides"]["train"]
    (out / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_off, r"train-00001\.tokens\.bin is cut off: it has [\d,]+ bytes, and index"),
        (longer, r"train-00001\.tokens\.bin is too long"),
        (changed, r"train-00001\.tokens\.bin was changed: its SHA-256"),
        (missing, r"train-00001\.tokens\.bin is missing"),
        (tokenizer_changed, r"its tokenizer.json is not the one"),
        (index_cut, r"index\.json is damaged"),
        (index_other, r"index\.json is damaged"),
        (index_newer, r"format 2 is not 1"),
        (side_gone, r"index\.json is damaged"),
    ],
)
@pytest.mark.parametrize("where", ["here", "copied"])
def test_damage_is_named(books: Path, tmp_path: Path, damage, words: str, where: str):
    out = tmp_path / "out"
    made(books, out)
    if where == "copied":
        shutil.copytree(out, tmp_path / "copy")
        out = tmp_path / "copy"
        open_shards(out)
    damage(out)
    with pytest.raises(FlagError, match=words) as caught:
        task("text", {"corpus": str(out), "length": 8})
    assert caught.value.flag == "corpus"
    assert str(out) in str(caught.value)


def test_another_tokenizer_than_theirs_is_named(books: Path, tmp_path: Path):
    made(books, tmp_path / "out")
    KINDS["unigram"]().save(str(tmp_path / "other.json"))
    for other in ("bytes", str(tmp_path / "other.json")):
        with pytest.raises(FlagError, match=r"is not the one that the shards in .* were made") as e:
            task("text", {"corpus": str(tmp_path / "out"), "tokenizer": other})
        assert e.value.flag == "tokenizer"
    task("text", {"corpus": str(tmp_path / "out"), "tokenizer": str(tmp_path / "byte_bpe.json")})
    with pytest.raises(FlagError, match="reads bytes, and the shards have other tokens"):
        task("indexing", {"corpus": str(tmp_path / "out")})
    made(books, tmp_path / "bytes", None)
    assert task("indexing", {"corpus": str(tmp_path / "bytes")}).batch("train", 2, 0, 0)


@pytest.mark.parametrize("kind", [None, "byte_bpe"])
def test_packed_rows_see_their_own_documents_only(tmp_path: Path, kind):
    write_files(tmp_path / "books", 60, 40)
    options = {"corpus": str(tmp_path / "books"), "length": 60, "packed": True, "held_out": 0.4}
    if kind:
        KINDS[kind]().save(str(tmp_path / "t.json"))
        options["tokenizer"] = str(tmp_path / "t.json")
    one = task("text", options)
    batch = one.batch("train", 3, 0, 0)
    windows = task("text", {**options, "packed": False}).batch("train", 3, 0, 0)
    assert torch.equal(batch.tokens, windows.tokens)
    ends = batch.tokens == one.opened.tokenizer.separator
    assert ends.any()
    assert torch.equal(batch.starts[:, 1:], ends[:, :-1])
    assert (batch.targets[ends] == IGNORE).all()
    assert torch.equal(batch.targets[~ends], windows.targets[~ends])
    model = build_model({
        "model": {"dim": 16, "depth": 2, "heads": 2, "position": "rotary"},
        "task": {"name": "text", **options},
    }).eval()  # fmt: skip
    with torch.no_grad():
        logits = batch.logits(model)
        for row, starts in enumerate(batch.starts):
            begins = [*starts.nonzero()[:, 0].tolist(), 60]
            for begin, end in itertools.pairwise(begins):
                alone = model(batch.tokens[row : row + 1, begin:end])[0]
                torch.testing.assert_close(logits[row, begin:end], alone, atol=1e-5, rtol=1e-4)


MEMORY = """
import sys
from pathlib import Path
from xcope.tasks import task

def of(name):
    status = Path("/proc/self/status").read_text()
    return int(status.partition(name)[2].split()[1])

Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = of("VmRSS")
one = task("text", {"corpus": sys.argv[1], "length": 512})
for index in range(100):
    one.batch("train", 8, 0, index)
print((of("VmHWM") - before) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
def test_a_large_file_is_read_in_little_memory(tmp_path: Path):
    """160 MiB in less: looked through, made into shards by the way, and drawn from."""
    block = prose(0, 2**19).encode()
    with (tmp_path / "big.txt").open("wb") as file:
        for k in range(160 * 2**20 // len(block)):
            file.write(b"%d" % k + block)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "big.txt")],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "tokenizing" in done.stderr
    assert float(done.stdout) < 110
