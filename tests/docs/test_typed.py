"""What a newcomer types is run, line by line, on a few steps of training."""

import shlex

import pytest
from code_blocks import ROOT, Reader, blocks

from xcope import cli

pytestmark = pytest.mark.long

FEW = ["train.steps=2", "train.batch_size=4", "evaluate.batches=1", "evaluate.batch_size=4"]


class Typist(Reader):
    """Runs our commands instead of checking them."""

    def check(self, words: list[str]) -> None:
        """Run one command; it does its work."""
        if words[0] != "xcope":
            super().check(words)
            return
        few = FEW if words[1] in ("train", "compare") and "--resume" not in words else []
        assert cli.run(cli.xcope, [*words[1:], *few], prog="xcope") == 0, shlex.join(words)


@pytest.mark.parametrize("page", ["start.md", "export.md", "train.md", "data.md"])
def test_every_command_of_the_page_does_its_work(page, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    typist = Typist(tmp_path)
    typed = [block for block in blocks((ROOT / "docs" / page).read_text()) if not block.why]
    for block in typed:
        if block.file:
            typist.write(block)
        elif block.language == "sh":
            typist.type(block.text)
        elif block.language == "python" and page == "data.md":  # it writes the texts
            exec(block.text, typist.scope)
    assert list((tmp_path / "runs").iterdir())
    assert "error:" not in capfd.readouterr().err
