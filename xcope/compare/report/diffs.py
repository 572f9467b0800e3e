"""What tells one run's config from another's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from xcope.compare.run.plan import as_text
from xcope.config import Config

Change = tuple[str, str, str]
"""Key, value before, value after; ``(none)`` where a config lacks the key."""
ABSENT = "(none)"


def changes(before: Config, after: Config) -> list[Change]:
    """The keys that differ, in the order of the configs."""
    old, new = _flat(before), _flat(after)
    return [
        (key, old.get(key, ABSENT), new.get(key, ABSENT))
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]


def _flat(config: Config) -> dict[str, str]:
    return dict(_leaves(config.model_dump(mode="json"), ""))


def _leaves(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Dotted key and text of every value; a scheme with its options is one value."""
    if isinstance(value, dict) and value and key != "model.position":
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else name)
    else:
        yield key, as_text(value)
