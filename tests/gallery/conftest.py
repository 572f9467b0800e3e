"""The repository whose gallery is tested, and the examples that it draws."""

from pathlib import Path

import pytest

from gallery.examples import example

ROOT = Path(__file__).parents[2]


@pytest.fixture
def drawn():
    """``drawn("rotary")``: the scheme as its YAML file writes it."""
    return lambda name: example(name, ROOT / "configs")
