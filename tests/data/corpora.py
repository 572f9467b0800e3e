"""Tokenizers of every kind and small corpora, for the tests of this folder."""

import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXTS = [
    "The quick brown fox\n  jumps over it.\n\n",
    "ünïcödé and 日本語, 🐕‍🦺 and e\u0301",
    "   \n\t ",
    "<|endoftext|> is text here, [SEP] too </s>",
    "a",
    "ﬁne ligatures, ① and ＡＢＣ",
    "x" * 300,
]


def byte_bpe(size: int = 300) -> Tokenizer:
    """As GPT-2's."""
    one = Tokenizer(models.BPE())
    one.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    one.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    one.train_from_iterator(TEXTS, trainer)
    return one


def llama_like() -> Tokenizer:
    """SentencePiece's way: a space before the text, ▁ for spaces, bytes for what is not known."""
    letters = sorted(set("The quick brown fox jumps over it.an▁"))
    names = ["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)], *letters, "▁th", "▁q"]
    vocab = {name: i for i, name in enumerate(dict.fromkeys(names))}
    one = Tokenizer(models.BPE(vocab, [("▁", "q")], byte_fallback=True, unk_token="<unk>"))
    one.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    one.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    one.add_special_tokens(["<s>", "</s>"])
    return one


def lowercase_words() -> Tokenizer:
    """As BERT's: lower case, without accents, white space dropped, [UNK] for unknown words."""
    words = {"[UNK]": 0, "[SEP]": 1, "the": 2, "quick": 3, "fox": 4, "a": 5, "##b": 6, "and": 7}
    one = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    one.normalizer = normalizers.BertNormalizer(lowercase=True)
    one.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    one.decoder = decoders.WordPiece()
    one.add_special_tokens(["[SEP]"])
    return one


def unigram() -> Tokenizer:
    """As T5's: letters that look alike are one."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0)]
    pieces += [(c, -4.0) for c in sorted(set("".join(TEXTS))) if not c.isspace()]
    one = Tokenizer(models.Unigram(pieces, unk_id=0))
    one.normalizer = normalizers.NFKC()
    one.pre_tokenizer = pre_tokenizers.Metaspace()
    one.decoder = decoders.Metaspace()
    return one


KINDS = {
    "byte_bpe": byte_bpe,
    "llama_like": llama_like,
    "lowercase_words": lowercase_words,
    "unigram": unigram,
}


def prose(seed: int, length: int) -> str:
    """Words of several alphabets, in lines."""
    draw = random.Random(seed)
    words = ["the", "quick", "brown", "füchse", "日本", "jumps", "over", "лисица", "lazy", "dogs"]
    parts = [draw.choice(words) + draw.choice("  \n") for _ in range(length // 2)]
    text = "".join(parts)
    return text[: text.find(" ", length) + 1]


def write_files(folder: Path, number: int, length: int = 400, seed: int = 0) -> Path:
    """Text files, no two alike."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(number):
        (folder / f"{k}.txt").write_text(f"{k}: {prose(seed + k, length)}", encoding="utf-8")
    return folder
