"""Run a notebook from the top, as a reader would, and keep what its cells gave."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def run(notebook: Path, out: Path) -> nbformat.NotebookNode:
    """Run all cells in a fresh kernel, and write the notebook with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    book: nbformat.NotebookNode = nbformat.read(notebook, as_version=4)  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}  # for the files that it writes
        NotebookClient(book, kernel_name="python3", timeout=120, resources=where).execute()
    for cell in book.cells:
        cell.metadata.pop("execution", None)  # times, which differ from run to run
        if "outputs" in cell:  # warnings are about the machine, not for readers
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
        for output in cell.get("outputs", ()):
            if "text/html" in output.get("data", ()):
                output.data.pop("text/plain", None)  # the same again, as a long text
    book.metadata.pop("language_info", None)
    out.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, out)  # type: ignore[no-untyped-call]
    return book
