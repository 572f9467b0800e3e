"""scripts/gates.py: a summary, a picture and a page of what a trained model looks at."""

import pytest

from xcope.config import build_task
from xcope.inspect import token_labels, trace
from xcope.training import load_run

COPE = "model.position={name: cope, max_pos: 4}"


def test_a_run_is_looked_into(script, tiny_yaml, tmp_path):
    run = tmp_path / "run"
    assert script("train", tiny_yaml, COPE, "--out", run).code == 0
    ended = script("gates", run)
    assert ended.code == 0
    assert "run: selective_copy, cope(max_pos=4)" in ended.out
    for words in ("gate", "rated", "counts", "attends to", "0, 0", "0, 1"):
        assert words in ended.out
    assert (run / "gates/gates.png").read_bytes().startswith(b"\x89PNG")
    html = (run / "gates/gates.html").read_text()
    assert f"({len(html.encode()) / 1e6:.1f} MB)" in ended.out
    assert "cope(max_pos=4)" in html
    assert '"labels": [' in html


def test_what_the_model_reads_is_chosen(script, tiny_yaml, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    script("train", tiny_yaml, COPE, "--out", run)

    def page(*options):
        assert script("gates", run, *options, "--out", out).code == 0
        return (out / "gates.html").read_text()

    assert '"labels": [".", "3", ".", "|", "3"]' in page("--text", ". 3 . | 3")
    first = page()
    assert page("--sample", "in_distribution") == first
    assert page("--index", 1) != first
    assert page("--sample", "sparse") != first
    config, model = load_run(run)
    task = build_task(config)
    ids = task.batch("sparse", 1, config.evaluate.seed, 2).tokens[0]
    labels = token_labels(task, ids)
    sparse = page("--sample", "sparse", "--index", 2)
    assert ", ".join(f'"{label}"' for label in labels) in sparse
    assert not (run / "gates").exists()
    assert trace(model, ids).layers[0].gates.shape == (1, 2, len(ids), len(ids))


@pytest.mark.parametrize("position", ["rotary", "alibi", "[cope, rotary]"])
def test_other_schemes_show_attention_and_bias(script, tiny_yaml, tmp_path, position):
    run = tmp_path / "run"
    script("train", tiny_yaml, f"model.position={position}", "--out", run)
    ended = script("gates", run)
    assert ended.code == 0
    assert ("bias" in ended.out) == (position == "alibi")
    assert ("rated" in ended.out) == ("cope" in position)
    assert "attends to" in ended.out


def test_text_of_bytes(script, tiny_yaml, tmp_path):
    corpus = tmp_path / "corpus.py"
    corpus.write_text("def f(x):\n    return x + 1\n" * 50)
    run = tmp_path / "run"
    task = f"task={{name: text, length: 24, corpus: {corpus}}}"
    assert script("train", tiny_yaml, COPE, task, "--out", run).code == 0
    ended = script("gates", run, "--text", "<b>\n\té\a[red]")
    assert ended.code == 0
    html = (run / "gates/gates.html").read_text()
    assert (
        r'"labels": ["\u003c", "b", ">", "\u21b5", "\u21e5", "\u00e9", "\u00b7", "\\x07", "["'
        in html
    )


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--text", "hello"), "'hello'"),
        (("--text", ""), "the text is empty"),
        (("--text", " ".join(["."] * 14)), "max_seq_len=13"),
        (("--sample", "spars"), "did you mean 'sparse'"),
        (("--index", -1), "index=-1"),
        (("--text", ".", "--sample", "sparse"), "not allowed with"),
    ],
)
def test_mistakes_end_in_one_line(script, user_error, tiny_yaml, tmp_path, options, part):
    script("train", tiny_yaml, "model.position=absolute", "--out", tmp_path / "x")
    user_error(script("gates", tmp_path / "x", *options), part)
    assert not (tmp_path / "x/gates").exists()


def test_what_is_no_run_is_told(script, user_error, tmp_path):
    user_error(script("gates", tmp_path), "is not a run folder")
