"""Text of one's own: documents from files, tables and data sets, their sides, tokens and shards."""

from xcope.data.corpus import Corpus, Recipe, open_corpus
from xcope.data.documents import Source
from xcope.data.shards import INDEX, Shards, is_shards, make_shards, open_shards
from xcope.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

__all__ = [
    "INDEX",
    "Corpus",
    "Recipe",
    "Shards",
    "Source",
    "Tokenizer",
    "is_shards",
    "load_tokenizer",
    "make_shards",
    "open_corpus",
    "open_shards",
    "train_tokenizer",
]
