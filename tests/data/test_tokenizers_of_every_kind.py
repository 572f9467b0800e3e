"""Tokenizers of every kind: their bytes are the text's, a special token is text, files suffice."""

import json
import math
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from corpora import KINDS, TEXTS, byte_bpe, llama_like, prose, write_files

from xcope.data import Tokenizer, load_tokenizer, train_tokenizer
from xcope.data import tokenizer as tokenizer_module
from xcope.errors import FlagError
from xcope.tasks import Batch, task
from xcope.training.metrics import Tally


@pytest.fixture(params=KINDS)
def made(request) -> Tokenizer:
    return Tokenizer(KINDS[request.param]().to_str())


def test_the_bytes_of_a_documents_tokens_sum_to_the_document(made):
    for text, (tokens, counts) in zip(
        TEXTS, made.encode_all([text.encode() for text in TEXTS]), strict=True
    ):
        if len(tokens):
            assert counts.sum() == len(text.encode())
        assert len(tokens) == len(counts)


def test_a_tokens_bytes_are_those_that_it_came_from():
    made = Tokenizer(byte_bpe().to_str())
    text = "aé🐕b".encode()
    ((tokens, counts),) = made.encode_all([text])
    # the letters of a byte-level vocabulary stand for bytes one to one
    names = [made._fast.id_to_token(int(token)) for token in tokens]
    assert sum(map(len, names)) == len(text) == counts.sum()
    begin = 0
    for name, count in zip(names, counts, strict=True):
        if count and len(name) == count:
            assert count <= len(text) - begin
        begin += len(name)
    llama = Tokenizer(llama_like().to_str())
    ((tokens, counts),) = llama.encode_all(["q 日".encode()])
    assert counts.sum() == 5, "neither the space before it nor three bytes of ▁ are counted"
    assert counts[0] == 0 or counts[0] == 1


def test_what_looks_like_a_special_token_is_text(made):
    for text in ("a <|endoftext|> b", "a </s> b", "[SEP]"):
        assert made.separator not in made.encode(text)


def test_no_token_is_added(made):
    assert made.separator not in made.encode("the quick fox")


def test_bytes_are_themselves():
    made = load_tokenizer("bytes")
    assert made.digest == load_tokenizer(None).digest
    assert made.encode("é\ud800") == [0xC3, 0xA9, 0x3F]
    assert made.decode([0x61, 0xC3, 0x62]) == "a\ufffdb"
    assert (made.num_tokens, made.separator, made.dtype) == (256, 0, np.uint8)


def test_a_tokenizer_without_an_end_gets_one():
    plain = byte_bpe()
    content = json.loads(plain.to_str())
    content["added_tokens"] = []
    content["model"]["vocab"]["not an end"] = content["model"]["vocab"].pop("<|endoftext|>")
    made = Tokenizer(json.dumps(content))
    assert made.separator == plain.get_vocab_size()
    assert made.num_tokens == plain.get_vocab_size() + 1
    assert made.end is None
    assert made.decode([*made.encode("one"), made.separator, *made.encode("two")]) == "one\0two"


@pytest.mark.parametrize(("tokens", "kind"), [(256, "uint8"), (257, "uint16"), (65536, "uint16"),
                                              (65537, "uint32")])  # fmt: skip
def test_every_token_fits_its_numbers(tokens, kind):
    vocab = {f"t{k}": k for k in range(tokens - 1)} | {"</s>": tokens - 1}
    content = json.loads(byte_bpe().to_str())
    content["model"] |= {"vocab": vocab, "merges": []}
    content["added_tokens"] = []
    made = Tokenizer(json.dumps(content))
    assert made.dtype == kind
    assert np.array([made.separator]).astype(made.dtype)[0] == tokens - 1


def test_more_tokens_than_a_model_may_have_are_refused(monkeypatch):
    monkeypatch.setattr(tokenizer_module, "MOST_TOKENS", 290)
    with pytest.raises(FlagError, match="has 300 tokens: at most 290") as caught:
        Tokenizer(byte_bpe(300).to_str())
    assert caught.value.flag == "tokenizer"


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "is no tokenizer.json"), ("", "is no tokenizer.json"), ('{"a": 1}', "is no tokenizer")],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, content, words):
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(FlagError, match=words) as caught:
        load_tokenizer(str(tmp_path / "mine.json"))
    assert caught.value.flag == "tokenizer"
    assert "mine.json" in str(caught.value)


def test_a_name_that_nobody_knows_is_named(monkeypatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FlagError, match="no such model") as caught:
        load_tokenizer("nobody/nothing")
    assert caught.value.flag == "tokenizer"
    with pytest.raises(FlagError, match=f"there is no file '{tmp_path}/none.json'"):
        load_tokenizer(str(tmp_path / "none.json"))


def test_a_model_of_the_hub_is_read_from_its_cache(monkeypatch, tmp_path: Path):
    folder = tmp_path / "models--me--mine"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("abc")
    (folder / "snapshots/abc").mkdir(parents=True)
    byte_bpe().save(str(folder / "snapshots/abc/tokenizer.json"))
    (folder / "snapshots/abc/tokenizer_config.json").write_text('{"eos_token": "ab"}')
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    made = load_tokenizer("me/mine")
    assert made.encode("quick") == byte_bpe().encode("quick").ids


def test_a_missing_library_says_what_to_install(monkeypatch, tmp_path: Path):
    byte_bpe().save(str(tmp_path / "mine.json"))
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    tokenizer_module._cached.cache_clear()
    with pytest.raises(FlagError, match=r'pip install "xcope\[hf\]"'):
        load_tokenizer(str(tmp_path / "mine.json"))


def test_a_trained_tokenizer_gives_every_text_back():
    made = train_tokenizer((prose(k, 500) for k in range(5)), 400)
    assert made.num_tokens <= 400
    assert made.end == "<|endoftext|>"
    assert made.changes(text.encode() for text in TEXTS) is None
    assert train_tokenizer((prose(k, 500) for k in range(5)), 400).json == made.json
    for size in (256, 2**21):
        with pytest.raises(FlagError, match="257"):
            train_tokenizer([], size)


def test_a_tokenizer_that_changes_text_is_told():
    made = Tokenizer(KINDS["lowercase_words"]().to_str())
    assert made.changes([b"THE fox"]) is not None


def uniform_bits(options, tmp_path: Path) -> float:
    """Bits per byte of a model that knows nothing, on the held-out text of a task."""
    one = task("text", {"corpus": str(tmp_path / "books"), "length": 30, **options})
    tally = Tally()
    for index in range(40):
        batch: Batch = one.batch("held_out", 8, 0, index)
        tally.add(torch.zeros(*batch.targets.shape, one.num_tokens), batch.targets, batch.bytes)
    return tally.metrics(one)["bits_per_byte"]


def test_bits_per_byte_are_bits_over_bytes_of_the_text(tmp_path: Path):
    write_files(tmp_path / "books", 12, 3000)
    assert uniform_bits({}, tmp_path) == pytest.approx(8)
    for name, kind in KINDS.items():
        kind().save(str(tmp_path / f"{name}.json"))
        options = {"tokenizer": str(tmp_path / f"{name}.json")}
        one = task("text", {"corpus": str(tmp_path / "books"), "length": 30, **options})
        held = one.opened.streams["held_out"]
        # each token costs the same, and the side's bytes are known from the files
        bits = len(held) * math.log2(one.num_tokens)
        expected = bits / (one.sizes()["held_out"]["bytes"] + one.sizes()["held_out"]["documents"])
        assert uniform_bits(options, tmp_path) == pytest.approx(expected, rel=0.1), name


def test_training_a_tokenizer_is_stopped_by_a_signal():
    released = threading.Event()

    def texts():
        yield prose(0, 500)
        signal.raise_signal(signal.SIGINT)  # the main thread's, wherever it is raised
        released.wait(30)
        yield prose(1, 500)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(texts(), 300)
    assert time.monotonic() - began < 10
    released.set()


def test_what_fails_while_texts_are_read_is_told():
    def texts():
        yield prose(0, 500)
        raise FlagError("corpus", "line 2 is not UTF-8")

    with pytest.raises(FlagError, match="line 2"):
        train_tokenizer(texts(), 300)
