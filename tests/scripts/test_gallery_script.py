"""scripts/gallery.py from the shell: the files that it writes, and mistakes."""

import pytest

import xcope


def test_some_schemes_are_drawn_and_described(script, tmp_path):
    ended = script("gallery", "--only", "cope,rotary, t5", "--out", tmp_path / "new")
    assert ended.code == 0
    assert "Written: 6 files in" in ended.out
    files = {file.name for file in (tmp_path / "new").iterdir()}
    assert files == {
        f"{name}.{kind}" for name in ("cope", "rotary", "t5") for kind in ("md", "png")
    }
    assert (tmp_path / "new/rotary.png").read_bytes().startswith(b"\x89PNG")


def test_pages_alone(script, tmp_path):
    assert script("gallery", "--pages", "--out", tmp_path).code == 0
    files = {file.name for file in tmp_path.iterdir()}
    assert files == {"README.md", *(f"{name}.md" for name in xcope.schemes())}


@pytest.mark.parametrize("pages", [["--pages"], []])
def test_an_unknown_scheme_is_told_the_nearest(script, user_error, tmp_path, pages):
    ended = script("gallery", *pages, "--only", "rotray", "--out", tmp_path / "new")
    user_error(ended, "position='rotray' is not a scheme", "did you mean 'rotary'?")
    assert not (tmp_path / "new").exists()
