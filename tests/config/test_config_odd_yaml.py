"""Odd and hostile YAML: bounds, merge keys, values that YAML would cut or change, paths."""

import time

import pytest
import yaml

from xcope.config import ConfigError, Mark, build_task, load_config
from xcope.config import yaml_tree as reader
from xcope.config.compose import LIBRARY, LONGEST_CHAIN, MOST_FILES, compose, parse_override
from xcope.config.sweep import MOST_RUNS
from xcope.config.yaml_tree import DEEPEST, MOST_BYTES, MOST_VALUES, from_plain, read_text

HERE = Mark("x.yaml")


@pytest.fixture(params=["CSafeLoader", "SafeLoader"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """libyaml, and PyYAML's own parser, which serves where libyaml is missing."""
    monkeypatch.setattr(reader, "_PARSER", getattr(yaml, request.param))


def bomb(levels: int = 9, width: int = 9) -> str:
    lines = (f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * width)}]" for n in range(levels))
    return "\n".join(["a0: &a0 [x, x]", *lines])


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(), f"more than {MOST_VALUES:,} values"),
        ("a: &a {x: 1}\n" + "".join(f"b{i}: {{<<: [*a, *a]}}\n" for i in range(9999)), "values"),
        ("a: " + "[" * 500 + "]" * 500, f"nested more than {DEEPEST} times"),
        ("{a: " * 70 + "1" + "}" * 70, f"nested more than {DEEPEST} times"),
        ("\n".join("- " * deep for deep in range(1, 400)), "nested|not YAML"),
        ("a: " + "9" * 5000, "a number of 5000 characters"),
        ("a: 1." + "9" * 5000, "a number of 5002 characters"),
        ("k" * 201 + ": 1", "a key of 201 letters"),
        ("# " + "x" * MOST_BYTES, "too large"),
        ("%YAML 1." + "9" * 5000 + "\n---\na: 1", "not YAML"),
        ('a: "\\UFFFFFFFF"', "not YAML"),
        ('a: "\\ud800"', "surrogate|not YAML"),
        ("a: \ud800", "not YAML"),
        ("a: *b", "anchor &b before it|not YAML"),
        ("<<: 3", "'<<' merges mappings"),
        ("<<: [{a: 1}, 3]", "'<<' merges mappings"),
        ("<<: {a: 1}\n<<: {b: 1}", "'<<' stands twice"),
        ("a: !!python/object:os.system {}", "python/object"),
        ("a: !!set {x}", "set is not a value"),
        ("a: !!binary aGVsbG8=", "binary"),
        ("a: !mine [1]", "mine is not a value"),
        ("!!int a: 1", "a key must be a word"),
        ("*x : 1", "a key must be a word|not YAML"),
        ("a: 1\n---\nb: 1", "not YAML of one document"),
        ("out: runs/a #1", "put quotes around"),
    ],
)
def test_what_is_beyond_the_bounds_is_refused_at_once(text, message):
    began = time.monotonic()
    with pytest.raises(ConfigError, match=message):
        read_text(text, HERE)
    assert time.monotonic() - began < 5


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}", {"x": 1, "y": 3}),
        ("a: &a {x: 1, y: 2}\nb: {y: 3, <<: *a}", {"x": 1, "y": 3}),
        ("a: [&a {x: 1}, &b {x: 2, y: 2}]\nb: {<<: [*a, *b]}", {"x": 1, "y": 2}),
        ("a: [&a {x: 1}, &b {x: 2, <<: *a, y: 2}]\nb: {<<: *b}", {"x": 2, "y": 2}),
        ("b: {<<: {x: 1}}", {"x": 1}),
        ("b: {<<: []}", {}),
        ("b: {'<<': 1}", {"<<": 1}),
        ("b: [08, 0o17, 0b1, 1_000, 12:30:00, =, 2024-01-01]",
         [8, "0o17", "0b1", 1000, "12:30:00", "=", "2024-01-01"]),
        ("b: [no, on, y, NULL, .NaN.]", ["no", "on", "y", None, ".NaN."]),
        ("b: x # a comment", "x"),
        ("b: runs/a#1", "runs/a#1"),
        ("b: 'runs/a #1'", "runs/a #1"),
        ("b: 日本 # a comment\nc: 😀 # another", "日本"),
        ("{null: 1, 2024-01-01: 2, b: 3}", 3),
    ],
)  # fmt: skip
def test_what_merge_keys_and_plain_words_mean(text, value):
    node = read_text(text, HERE).get("b")
    assert node is not None
    assert node.plain() == value


def test_a_merged_key_knows_the_line_where_it_was_written():
    tree = read_text("a: &a\n  x: 1\nb:\n  <<: *a\n  y: 2\n", HERE)
    assert tree.mark_of(("b", "x")).line == 2
    assert tree.mark_of(("b", "y")).line == 5


def test_an_anchor_of_one_section_serves_another(write, base):
    path = write(
        "m.yaml",
        "extends: base.yaml\nmodel:\n  position: &cope {name: cope, max_pos: 8}\n"
        "sweep:\n  model.position: [none, *cope, {<<: *cope, soft_onehot: true}]\n",
    )
    swept = load_config(path, sweep=True).sweep["model.position"]
    assert swept[2] == {"name": "cope", "max_pos": 8, "soft_onehot": True}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_byte_order_mark_and_line_ends_do_not_matter(base, encoding, end):
    expected = load_config(base)
    base.write_bytes(base.read_text().replace("\n", end).encode(encoding))
    assert load_config(base) == expected
    base.write_bytes(base.read_bytes() + b"x: 1" + end.encode())
    with pytest.raises(ConfigError, match=r"base.yaml:12: x: unknown key"):
        load_config(base)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# naïve\nmodel: 1".encode("latin-1"), r"is not UTF-8 text \(byte 0xef in line 1\)"),
        ("model: 1".encode("utf-16"), "is not UTF-8 text"),
        (b"model: 1\0", "not YAML"),
        (b" " * (MOST_BYTES + 1), "is too large"),
        (b"", "model: is missing"),
        (b"\xef\xbb\xbf---\n...\n", "model: is missing"),
    ],
)
def test_files_that_are_no_yaml_say_why(base, error, content, message):
    base.write_bytes(content)
    assert error(base).file == "base.yaml"
    with pytest.raises(ConfigError, match=message):
        load_config(base)


def test_what_is_no_file_is_named(base, error, tmp_path):
    assert "is a folder" in str(error(tmp_path))
    assert "no regular file" in str(error("/dev/zero"))
    assert "no such file" in str(error("nothing.yaml"))
    assert "File name too long" in str(error("x" * 300))


def test_extends_has_bounds(write, base, error):
    for number in range(30):
        write(f"chain{number}.yaml", f"extends: chain{number + 1}.yaml\n")
        twice = f"two{number + 1}.yaml"
        write(f"two{number}.yaml", f"extends: [{twice}, {twice}]\n")
    write("chain30.yaml", base.read_text())
    write("two30.yaml", base.read_text())
    assert f"{LONGEST_CHAIN} in a row" in str(error("chain0.yaml"))
    assert load_config(f"chain{31 - LONGEST_CHAIN}.yaml")
    write("two6.yaml", base.read_text())
    assert f"at most {MOST_FILES} may be extended" in str(error("two0.yaml"))
    assert "a pattern is not expanded" in str(error(write("g.yaml", "extends: models/*.yaml")))
    assert "got null" in str(error(write("n.yaml", "extends: [~]")))
    assert "got 8" in str(error(write("n.yaml", "extends: 08")))
    assert "there is no file 'models'" in str(error(write("d.yaml", "extends: models")))


def test_a_sweep_of_too_many_runs_is_refused_before_they_are_made(base, error):
    seeds = "[" + ", ".join(map(str, range(200))) + "]"
    caught = error(base, f"sweep.train.seed={seeds}", f"sweep.evaluate.seed={seeds}", sweep=True)
    assert f"40,000 runs: at most {MOST_RUNS:,}" in str(caught)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("task.glob=**/*.txt", "**/*.txt"),
        ("task.glob=*", "*"),
        ("task.glob=@x", "@x"),
        ("task.glob=%x", "%x"),
        ("task.glob=`x`", "`x`"),
        ("task.glob=a#b", "a#b"),
        ('task.glob="a #b"', "a #b"),
        ("task.glob='*.txt'", "*.txt"),
        ("task.glob=x=y", "x=y"),
    ],
)
def test_a_text_on_the_command_line_is_taken_as_it_is(base, override, value):
    assert parse_override(override)[1].plain() == value


@pytest.mark.parametrize(
    "override",
    [
        "out=runs/a #1",
        "out=runs/a # 1",
        "out=!x y",
        "out={a",
        "sweep.x=[*.txt]",
        "out=\ud800",
        "out=|",
        "out=&a x",
        "x=[&a 1, *a]",
    ],
)
def test_a_text_that_yaml_would_cut_asks_for_quotes(base, error, override):
    key = override.partition("=")[0]
    assert f"""needs quotes: '{key}="…"'""" in str(error(base, override))


def test_a_text_that_looks_like_a_number_asks_for_quotes(base, error):
    assert "expected text or null, got 8" in str(error(base, "out=08"))
    assert "needs quotes: '08'" in str(error(base, "out=08"))
    assert "needs quotes: '1_000'" in str(error(base, "task.name=text", "task.corpus=1_000"))


def test_paths_expand(write, base, error, monkeypatch, tmp_path):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PLACE", str(tmp_path))
    assert load_config(base, ["out=~/runs/x"]).out == str(tmp_path / "home/runs/x")
    assert load_config(base, ["out=${PLACE}/x"]).out == str(tmp_path / "x")
    assert load_config(base, ["out=./~/x"]).out == "~/x"
    path = write("home/e.yaml", "extends: $PLACE/base.yaml\n")
    assert load_config("~/e.yaml") == load_config(path) == load_config(base)
    (tmp_path / "home/words.txt").write_text("word " * 1000)
    task = build_task(
        load_config(base, ["task.name=text", "task.corpus=~/words.txt", "task.length=8"])
    )
    assert task.batch("train", 1, 0, 0).tokens.shape == (1, 8)
    assert "no environment variable 'NOWHERE'" in str(error(base, "out=$NOWHERE/x"))
    assert "there is no home folder '~nobody9'" in str(error(base, "out=~nobody9/x"))
    message = str(error(base, "task.name=text", "task.corpus=$NOWHERE"))
    assert "task.corpus: '$NOWHERE': there is no environment variable 'NOWHERE'" in message
    (tmp_path / "$literal").mkdir()
    assert load_config(base, ["out=$literal"]).out == "$literal"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model.dim=1000000007", "model.dim"),
        ("model.depth=100000", "model.depth"),
        ("model.heads=100000", "model.heads"),
        ("model.dim_head=1000000007", "model.dim_head"),
        ("model.num_output_heads=1000000", "model.num_output_heads"),
        ("model.shift_tokens=1000000", "model.shift_tokens"),
        ("model.position={name: t5, max_distance: 1000000007}", "model.position.max_distance"),
        ("model.position={name: dynamic, depth: 1000000}", "model.position.depth"),
        ("task.values=1000000007", "task.values"),
        ("model.position=" + "[" * 60 + "]" * 60, "model.position"),
    ],
)
def test_sizes_that_would_fill_the_machine_are_refused_by_key(base, error, override, key):
    assert error(base, override).key == key


def test_python_mappings_have_the_same_bounds():
    deep: object = 1
    for _ in range(DEEPEST + 1):
        deep = [deep]
    cyclic: list[object] = []
    cyclic.append(cyclic)
    for value in (deep, cyclic, 10**5000, "\ud800"):
        with pytest.raises(ConfigError):
            from_plain({"model": value}, HERE)


def test_a_key_of_many_parts_is_refused(base, error):
    assert "a key of 5000 parts" in str(error(base, ".".join("a" * 5000) + "=1"))


def test_the_repository_reads_alike_with_and_without_libyaml(monkeypatch):
    files = sorted(LIBRARY.rglob("*.yaml"))
    fast = [compose(file) for file in files]
    monkeypatch.setattr(reader, "_PARSER", yaml.SafeLoader)
    assert [compose(file) for file in files] == fast
