"""The gallery: a picture and a page for each scheme, made from the registry alone.

A scheme's picture follows from the slot that it fills, its page from its class and the docstring of
its file: a new scheme needs nothing here. `scripts/gallery.py` writes both into `docs/schemes`.
"""

from gallery.pages import write_pages
from gallery.pictures import write_pictures

__all__ = ["write_pages", "write_pictures"]
