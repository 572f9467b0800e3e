"""Tasks whose tokens are words: what a person types and reads is the words between spaces."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from xcope.errors import FlagError, did_you_mean, listing
from xcope.tasks.base import Task

SHOWN = 24
"""Words that an error message lists before it stops with "…"."""


@dataclass(frozen=True, kw_only=True)
class WordTask(Task):
    """A task with a fixed list of words; token k is word k."""

    @property
    @abstractmethod
    def words(self) -> tuple[str, ...]:
        """The vocabulary, in the order of the token ids; no word holds a space."""

    @property
    def num_tokens(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        ids = {word: token for token, word in enumerate(self.words)}
        for word in text.split():
            if word not in ids:
                shown = listing(self.words[:SHOWN]) + (" …" if len(ids) > SHOWN else "")
                raise FlagError(
                    "prompt",
                    f"{word!r} is no word of task {self.name!r}: write words among {shown} with "
                    f"spaces between them{did_you_mean(word, ids)}",
                )
        return [ids[word] for word in text.split()]

    def decode(self, tokens: list[int]) -> str:
        words = self.words
        return " ".join(words[token] for token in tokens)
