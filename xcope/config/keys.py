"""Which keys a config may have, and what to say about one that it may not."""

from __future__ import annotations

from collections.abc import Collection

from xcope.config.errors import ConfigError, dotted
from xcope.config.schema import SECTIONS, Config, ModelConfig
from xcope.config.yaml_tree import Node
from xcope.errors import did_you_mean, listing
from xcope.modules import decoder_flags, wrapper_flags

GIVEN_BY_TASK = frozenset({"num_tokens", "attn_layers"})
"""Flags of the wrapper that are no keys: the task and the decoder settle them."""


def check_keys(tree: Node) -> None:
    """Raise `ConfigError` for the first unknown key at the root or in a section.

    Options of a task or a scheme are checked by those who know them, when they are built.
    """
    for section in ("", *SECTIONS):
        node = tree.get(section) if section else tree
        known = known_keys(section)
        for key, child in (node.children if node else {}).items():
            if key not in known and section != "task":
                path = (section, key) if section else (key,)
                raise ConfigError(unknown_key(key, section), dotted(path), child.mark)


def unknown_key(key: str, section: str = "") -> str:
    """What to say about a key that a section (the root if empty) does not have."""
    allowed = listing(known_keys(section))
    if section == "model":
        allowed = f"{listing(ModelConfig.model_fields)} and the flags of Decoder and "
        allowed += "TransformerWrapper"
    return f"unknown key {key!r}; allowed: {allowed}{_hint(key, section)}"


def known_keys(section: str = "") -> Collection[str]:
    """Keys of a section, those of the root if empty; of a task only the declared ones."""
    if section == "model":
        flags = decoder_flags() | wrapper_flags()
        return ModelConfig.model_fields.keys() | (flags - GIVEN_BY_TASK)
    return (SECTIONS[section] if section else Config).model_fields.keys()


def _hint(key: str, section: str) -> str:
    """The section that has this very key, else the nearest key of this one."""
    owners = [name for name in SECTIONS if key in known_keys(name)]
    return (
        f"; did you mean '{owners[0]}.{key}'?" if owners else did_you_mean(key, known_keys(section))
    )
