"""Where models already live: x-transformers' classes and Hugging Face transformers.

Nothing here imports those libraries before it is needed: `xcope` tells transformers of its models
when transformers' Auto classes are imported, before or after xcope.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

log = logging.getLogger(__name__)

AUTO = "transformers.models.auto"
REGISTERS = {
    f"{AUTO}.configuration_auto": "xcope.integrations.transformers.config",
    f"{AUTO}.modeling_auto": "xcope.integrations.transformers.model",
}
"""transformers' modules of Auto classes → our module that puts its class among them."""


class _AfterImport:
    """Finds nothing itself; lets ours follow when one of transformers' modules is imported."""

    def __init__(self) -> None:
        self.looking_for: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the other finders have for ``name``, with `register` after its code."""
        if name not in REGISTERS or name in self.looking_for:
            return None
        self.looking_for.add(name)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.looking_for.discard(name)
        loader: Any = None if spec is None else spec.loader
        if loader is not None:
            run = loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run(module)
                register(module)

            loader.exec_module = run_and_register
        return spec


def register(auto: ModuleType) -> None:
    """Put our class among those of one of transformers' Auto modules."""
    try:
        importlib.import_module(REGISTERS[auto.__name__]).register(auto)
    except ImportError as error:  # a transformers too old for our models is still a transformers
        log.debug("transformers does not learn of xcope's models: %s", error)


def announce() -> None:
    """Let ``AutoConfig`` and ``AutoModelForCausalLM`` know our models, once they are imported."""
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())
    for name in REGISTERS:
        if name in sys.modules:
            register(sys.modules[name])
