"""Markdown that shows a text as it stands, tables whose cells stay cells, CSV that reads back."""

import csv
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xcope import markdown

SIGNS = st.text("ab`|\\*_[]<&$~ \n", max_size=12)


def cells(line: str) -> list[str]:
    """A line of a table taken apart at the ``|`` that no backslash escapes."""
    return re.findall(r"\| ((?:\\.|[^|\\])*) (?=\|)", line)


@given(SIGNS)
def test_escaped_text_is_one_line_and_unescapes_to_the_text(text: str) -> None:
    escaped = markdown.escape(text)
    assert "\n" not in escaped
    plain = re.sub(r"\\([\\`*|\[\]$~_])", r"\1", escaped)
    assert plain.replace("&lt;", "<").replace("&amp;", "&") == " ".join(text.split())


def test_names_with_underscores_stay_readable() -> None:
    assert markdown.escape("max_pos=8, _x_, a|b, 2*3, <b>") == (
        r"max_pos=8, \_x\_, a\|b, 2\*3, &lt;b>"
    )


def test_a_table_has_a_rule_for_each_column_and_the_last_letter_goes_on() -> None:
    made = markdown.table(["", "a", "b", "c"], [["x", 1, 2.5, None]], align="lcr")
    assert made.splitlines() == [
        "|  | a | b | c |",
        "| :-- | :-: | --: | --: |",
        "| x | 1 | 2.5 | None |",
    ]
    assert markdown.table(["a", "b"], []).splitlines()[1] == "| --- | --- |"
    assert markdown.table(["a"], [], align="lr").splitlines()[1] == "| :-- |"


@given(st.lists(SIGNS, min_size=3, max_size=3))
def test_no_cell_breaks_a_table(texts: list[str]) -> None:
    shown = [f".{text}." for text in texts]
    assert len(cells(markdown.table(shown, []).splitlines()[0])) == 3
    escaped = [f".{markdown.escape(text)}." for text in texts]
    assert cells(markdown.table(escaped, []).splitlines()[0]) == escaped


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a", "`a`"), ("a`b", "``a`b``"), ("`a", "`` `a ``"), ("a``b`", "``` a``b` ```")],
)
def test_code_has_more_backticks_around_it_than_in_it(text: str, shown: str) -> None:
    assert markdown.code(text) == shown


def test_a_block_of_code_has_a_longer_fence_than_any_in_it() -> None:
    assert markdown.code_block("x = 1", "python") == "```python\nx = 1\n```"
    assert markdown.code_block("echo '```'") == "````\necho '```'\n````"


def test_a_page_leaves_out_what_is_empty() -> None:
    assert markdown.page(["# a", "", "b"]) == "# a\n\nb\n"
    assert markdown.listed(["a", "b"]) == "a, b"
    assert markdown.listed([]) == "–"
    assert markdown.bold("a") == "**a**"


def test_csv_reads_back_and_leaves_none_empty(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    markdown.write_csv(path, ["a", "b"], [["x,y", None], ['"', "\udcff"]])
    assert path.read_bytes() == b'a,b\n"x,y",\n"""",\\udcff\n'
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [["a", "b"], ["x,y", ""], ['"', "\\udcff"]]
