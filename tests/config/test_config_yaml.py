"""Reading YAML: values, the line of every key, and what is not accepted; writing it back."""

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xcope.config import ConfigError, Mark
from xcope.config.yaml_tree import from_plain, read_file, read_text, write_text

HERE = Mark("x.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-2.5e-4", -2.5e-4),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("12", 12),
        ("010", 10),
        ("10_000", 10000),
        ("0x1F", 31),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("bf16", "bf16"),
        ("'12'", "12"),
        ("~", None),
        ("null", None),
        ("", None),
        ("[1, [a]]", [1, ["a"]]),
        ("{a: {b: 1e2}}", {"a": {"b": 100.0}}),
        ("{1: x, true: y}", {"1": "x", "true": "y"}),
    ],
)
def test_plain_values_are_what_they_look_like(text, value):
    read = read_text(text, HERE).plain()
    assert read == value
    assert type(read) is type(value)


def test_every_key_knows_its_line():
    tree = read_text("a:\n  b: 1\n  c:\n    - x\n    - {d: 2}\ne: 3\n", HERE)
    for path, line in {("a",): 1, ("a", "b"): 2, ("a", "c", 1): 5, ("a", "c", 1, "d"): 5}.items():
        assert tree.mark_of(path) == Mark("x.yaml", line)
    assert tree.mark_of(("a", "nowhere", "deeper")) == Mark("x.yaml", 1)
    assert tree.mark_of(("e",)).line == 6


def test_an_anchor_repeats_its_value():
    assert read_text("a: &x {b: 1}\nc: *x\n", HERE).plain() == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "x.yaml:3: key 'a' stands twice (first at x.yaml:1)"),
        ("a:\n  b: 1\n  b: 1\n", "x.yaml:3: key 'b' stands twice (first at x.yaml:2)"),
        ("a: [1\nb: 2\n", "x.yaml:2: not YAML"),
        ("a: 1\n\tb: 2\n", "x.yaml:2: not YAML"),
        ("a: 1\n---\nb: 2\n", "x.yaml:2: not YAML"),
        ("a: \x07\n", "x.yaml: not YAML"),
        ("a: !!python/name:os.system x\n", "x.yaml:1: tag:yaml.org,2002:python/name:os.system"),
        ("a: !!int b\n", "x.yaml:1: tag:yaml.org,2002:int 'b'"),
        ("? [a, b]\n: 1\n", "x.yaml:1: a key must be a word"),
        ("a: &x\n  b: *x\n", "x.yaml:2: an alias (*) stands inside"),
    ],
)
def test_what_cannot_be_read_is_an_error_with_its_line(text, message):
    with pytest.raises(ConfigError) as error:
        read_text(text, HERE)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_file_must_be_text_with_keys(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    with pytest.raises(ConfigError, match=r"list.yaml:1: expected keys and values"):
        read_file(tmp_path / "list.yaml")
    with pytest.raises(ConfigError, match=r"bytes.yaml: is not UTF-8"):
        read_file(tmp_path / "bytes.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory"):
        read_file(tmp_path)
    assert read_file(tmp_path / "empty.yaml").plain() == {}


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
looks_special = st.sampled_from(["1e-3", "no", "0x1F", "~", "1_0", "true", "=", "<<", "- a", "1:2"])
data = st.recursive(
    scalars | looks_special,
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | looks_special, inner),
    max_leaves=10,
)


@given(data)
def test_what_is_written_reads_back_the_same(value):
    assert read_text(write_text(value), HERE).plain() == value
    assert from_plain(value, HERE).plain() == value


def test_words_are_written_so_that_other_readers_agree():
    assert write_text({"precision": "no", "lr": 1e-5}) == "{precision: 'no', lr: 1.0e-05}\n"


def test_values_that_yaml_lacks_are_refused():
    with pytest.raises(ConfigError, match="cannot stand in YAML"):
        from_plain({"a": {1, 2}}, HERE)


def test_errors_survive_a_trip_between_processes():
    error = ConfigError("what is wrong", "train.steps", Mark("a.yaml", 3))
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "a.yaml:3: train.steps: what is wrong"
    assert (again.file, again.line, again.key) == ("a.yaml", 3, "train.steps")
