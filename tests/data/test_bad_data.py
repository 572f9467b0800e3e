"""Whatever is no text, or not where it should be, is a line that says what and where."""

import gzip
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import prose

from xcope.config import ConfigError, load_config
from xcope.data import documents
from xcope.data.documents import Source
from xcope.errors import FlagError
from xcope.tasks import task

LINE = json.dumps({"text": prose(0, 200)})
GOOD = "\n".join([LINE, json.dumps({"text": prose(1, 200)})])


def zstd(text: str) -> bytes:
    return pa.compress(text.encode(), "zstd", asbytes=True)


def table(**columns) -> pa.Table:
    return pa.table(columns)


BAD = {
    "latin-1": ("a.txt", b"one\ntwo\ncaf\xe9 x", r"a\.txt:3: is not UTF-8 text \(byte 0xe9\)"),
    "cut letter": ("a.txt", b"one\n\xe6\x97", r"a\.txt:2: is not UTF-8"),
    "utf-16": ("a.txt", "x y z".encode("utf-16"), r"a\.txt: is UTF-16"),
    "binary": ("a.txt", b"\x7fELF\n\0\0\0", r"a\.txt:2: holds a zero byte"),
    "empty": ("a.txt", b"", "holds no text"),
    "empty lines": ("a.jsonl", b"\n\n\n", "holds no text"),
    "not json": ("a.jsonl", f"{GOOD}\n\n{{'text': 1}}".encode(), r"a\.jsonl:4: is not JSON"),
    "cut json": ("a.jsonl", f"{GOOD}\n{LINE[:50]}".encode(), r"a\.jsonl:3: is not JSON"),
    "no object": ("a.jsonl", f"{GOOD}\n[1]".encode(), r"a\.jsonl:3: expected \{\"text\": …\}"),
    "no field": ("a.jsonl", f'{GOOD}\n{{"txt": "x"}}'.encode(),
                 r"a\.jsonl:3: has no field 'text', but 'txt'; did you mean 'txt'"),
    "null": ("a.jsonl", f'{GOOD}\n{{"text": null}}'.encode(), r"a\.jsonl:3: 'text' holds null"),
    "a list": ("a.jsonl", f'{GOOD}\n{{"text": ["x"]}}'.encode(), r":3: 'text' holds a list"),
    "surrogate": ("a.jsonl", f'{GOOD}\n{{"text": "\\ud800"}}'.encode(), r":3: .*surrogate"),
    "zero in json": ("a.jsonl", f'{GOOD}\n{{"text": "\\u0000"}}'.encode(), ":3: holds a zero byte"),
    "latin-1 json": ("a.jsonl", GOOD.encode() + b'\n{"text": "\xe9"}', r"a\.jsonl:3: is not UTF-8"),
    "deep json": ("a.jsonl", f"{GOOD}\n{'[' * 100_000}".encode(), r"a\.jsonl:3: "),
    "no gzip": ("a.txt.gz", b"plain", r"a\.txt\.gz: is cut off or damaged"),
    "cut gzip": ("a.txt.gz", gzip.compress(prose(0, 9000).encode())[:-500], "cut off or damaged"),
    "no zstd": ("a.txt.zst", b"plain", r"a\.txt\.zst: is cut off or damaged"),
    "no parquet": ("a.parquet", b"PAR1 nothing", r"a\.parquet: is damaged, or no parquet file"),
    "column": ("a.parquet", table(txt=["x"]), r"a\.parquet: has no field 'text', but 'txt'"),
    "list column": ("a.parquet", table(text=[["x"]]), r"column 'text' holds list<"),
    "numbers": ("a.parquet", table(text=[1, 2]), r"column 'text' holds int64, not text"),
    "null row": ("a.parquet", table(text=["x" * 99, None]), r"a\.parquet: row 2: 'text' is null"),
    "empty column": ("a.parquet", table(text=pa.array([], pa.string())), "holds no text"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_it_is_named_with_its_place(tmp_path: Path, kind: str):
    name, content, words = BAD[kind]
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        pq.write_table(content, tmp_path / name)
    with pytest.raises(FlagError, match=words) as caught:
        task("text", {"corpus": str(tmp_path), "length": 8})
    assert caught.value.flag in ("corpus", "field")
    assert "\n" not in str(caught.value)
    (tmp_path / "run.yaml").write_text(
        "model: {dim: 8, depth: 1, heads: 1, position: none}\n"
        f"task:\n  name: text\n  length: 8\n  field: text\n  corpus: {name}\n"
    )
    with pytest.raises(ConfigError, match=words) as error:
        load_config(tmp_path / "run.yaml")
    assert f"run.yaml:{5 if error.value.key == 'task.field' else 6}: task." in str(error.value)


GOODS = {
    "a.txt": prose(0, 300).encode(),
    "b.txt": b"\xef\xbb\xbf" + prose(1, 300).encode(),
    "c.py": prose(2, 300).replace("\n", "\r\n").encode(),
    "d.txt.gz": gzip.compress(prose(3, 300).encode()),
    "e.txt.zst": zstd(prose(4, 300)),
    "f.jsonl": f"\ufeff{LINE}\r\n\r\n  \n{LINE}".encode(),
    "g.jsonl.gz": gzip.compress(GOOD.encode()),
    "h.ndjson": b'{"text": "' + b"x" * 3_000_000 + b'"}\n',
    "empty.txt": b"",
    ".hidden": b"\0",
    "no newline": b"\n" * 200 + b"x",
}


def documents_of(source: Source) -> list[bytes]:
    whole, found = b"", []
    for piece in source.pieces():
        whole += piece.text
        assert len(piece.text) <= 2 * documents.PIECE
        if piece.last:
            found.append(whole)
            whole = b""
    assert not whole
    return found


def test_what_is_text_is_read_as_it_is(tmp_path: Path):
    for name, content in GOODS.items():
        (tmp_path / name).write_bytes(content)
    text = pa.array([prose(5, 300), prose(6, 300)], pa.large_string()).dictionary_encode()
    pq.write_table(table(text=text, other=[1, 2]), tmp_path / "i.parquet")
    row = json.loads(LINE)["text"].encode()
    expected = [
        *[prose(k, 300).encode() for k in (0, 1)],
        prose(2, 300).replace("\n", "\r\n").encode(),
        *[prose(k, 300).encode() for k in (3, 4)],
        b"", row, row, row, prose(1, 200).encode(), b"x" * 3_000_000,
        *[prose(k, 300).encode() for k in (5, 6)],
        GOODS["no newline"],
    ]  # fmt: skip
    assert documents_of(Source(str(tmp_path))) == expected


@pytest.mark.parametrize("between", ["", "\n", " ", "日", "\n\n\n  "])
@pytest.mark.parametrize("piece", [7, 64, 1000])
def test_a_long_text_is_the_same_in_pieces(tmp_path: Path, monkeypatch, between: str, piece: int):
    monkeypatch.setattr(documents, "PIECE", piece)
    text = between.join(["wörter", "日本語", "🐕", "x" * 50] * 40)
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert documents_of(Source(str(tmp_path / "a.txt"))) == [text.encode()]
    for one in Source(str(tmp_path / "a.txt")).pieces():
        one.text.decode()


def test_a_huge_line_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(documents, "LONGEST_ROW", 1000)
    (tmp_path / "a.jsonl").write_text(f'{GOOD}\n{{"text": "{"x" * 2000}"}}\n')
    with pytest.raises(FlagError, match=r"a\.jsonl:3: a line of more than 1,000 bytes"):
        documents_of(Source(str(tmp_path / "a.jsonl")))
    pq.write_table(table(text=["x" * 2000]), tmp_path / "b.parquet")
    with pytest.raises(FlagError, match=r"b\.parquet: row 1: a text of 2,000 bytes"):
        documents_of(Source(str(tmp_path / "b.parquet")))


def test_empty_documents_are_told(tmp_path: Path):
    for k in range(10):
        (tmp_path / f"{k}.txt").write_text("" if k in (3, 4) else prose(k, 400))
    assert task("text", {"corpus": str(tmp_path), "length": 8}).notes() == [
        "2 documents of the corpus are empty"
    ]


@pytest.mark.parametrize(
    ("corpus", "words"),
    [
        ({}, "a file, a folder"),
        ([], "a file, a folder"),
        ([1], "a list"),
        ({"held_out": "a.txt"}, "lacks 'train'"),
        ({"train": "a.txt", "validation": "a.txt"}, "no 'held_out'"),
        ({"train": "a.txt", "held_out": "a.txt"}, "is on two sides"),
        ({"train": "a.txt", "heldout": "a.txt"}, "did you mean 'held_out'"),
        ({"dataset": "x/y", "split": "train"}, "no key 'split'"),
        ({"dataset": "x/y", "rows": 0}, "at least 1"),
        ("b.txt", "did you mean 'a.txt'"),
        ("*.nothing", "no file in"),
        ("a.txt/b", "does not exist"),
    ],
)
def test_a_corpus_that_is_none_is_named(tmp_path: Path, monkeypatch, corpus, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(prose(0, 900))
    with pytest.raises(FlagError, match=words) as caught:
        task("text", {"corpus": corpus, "length": 8})
    assert caught.value.flag == "corpus"


def test_libraries_that_are_missing_say_what_to_install(tmp_path: Path, monkeypatch):
    pq.write_table(table(text=["x"]), tmp_path / "a.parquet")
    for module in ("pyarrow", "datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    for corpus in (str(tmp_path / "a.parquet"), {"dataset": "owner/name"}):
        with pytest.raises(FlagError, match=r'pip install "xcope\[hf\]"'):
            task("text", {"corpus": corpus})
