"""The catalogue says what is registered, or nothing; who reads it refuses in the same words."""

import json
import random
import sys
from pathlib import Path

import pytest
import yaml

from xcope import catalogue, describe
from xcope.config import ConfigError, load_config
from xcope.config.compose import LIBRARY, compose
from xcope.config.typed import check_names, typed

sys.path.append(str(Path(__file__).parents[1] / "config"))
from mutations import mutated

RENEW = "python scripts/gallery.py --pages renews it"
BASE = {
    "model": {"dim": 16, "depth": 2, "heads": 2, "position": "none"},
    "task": {"name": "selective_copy", "tokens": 2, "blanks": 9},
    "train": {"steps": 3},
}


def test_it_is_that_of_the_present_files():
    shipped = json.loads(catalogue.FILE.read_text(encoding="utf-8"))
    assert shipped.pop("key") == catalogue.key(), RENEW
    assert shipped == json.loads(json.dumps(describe.described())), RENEW


def test_it_says_nothing_of_other_files(monkeypatch, tmp_path):
    catalogue._read.cache_clear()
    assert catalogue._read() is not None
    other = tmp_path / "catalogue.json"
    other.write_text(json.dumps({**json.loads(catalogue.FILE.read_text()), "key": "other"}))
    for file in (other, tmp_path / "missing.json"):
        monkeypatch.setattr(catalogue, "FILE", file)
        catalogue._read.cache_clear()
        assert catalogue._read() is None
    catalogue._read.cache_clear()


def test_it_says_nothing_where_packages_announce_plugins(monkeypatch):
    catalogue._read.cache_clear()
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [group])
    assert catalogue._read() is None
    catalogue._read.cache_clear()


def test_what_is_imported_answers_for_itself():
    assert catalogue.read() is None  # by this test


def refusals(path, monkeypatch):
    """What is said of a config by the catalogue, and by those who build."""
    catalogue._read.cache_clear()
    shipped = catalogue._read()
    monkeypatch.setattr(catalogue, "read", lambda: shipped)
    light = None
    try:
        tree = compose(path)
        check_names(tree, typed(tree))
    except ConfigError as error:
        light = str(error)
    monkeypatch.setattr(catalogue, "read", lambda: None)
    if light is None:
        return None, None
    with pytest.raises(ConfigError) as refused:
        load_config(path, sweep=True)
    return light, str(refused.value)


POSITIONS = [
    "rotery",
    {"name": "rotery"},
    {"name": "cope", "max_poss": 3},
    {"name": "rotery", "max_poss": 3},
    {"name": "cope_rotary", "cope_max_poss": 3},
    ["absolute", "rotery"],
    ["rotery", {"name": "copee", "max_pos": 3}],
    {"layers": ["none", "rotery"]},
    {"heads": ["cope", {"name": "alibi", "slope": 3}]},
    ["absolute", {"layers": ["cope", {"heads": ["rotary", "alibie"]}]}],
]


@pytest.mark.parametrize("position", POSITIONS, ids=str)
def test_a_wrong_name_in_a_position_has_the_same_words(position, tmp_path, monkeypatch):
    config = {**BASE, "model": {**BASE["model"], "position": position}}
    light, full = refused_alike(config, tmp_path, monkeypatch)
    assert light == full


@pytest.mark.parametrize(
    "task",
    ["copi", {"name": "copi"}, {"name": "copy", "lenght": 3}, {"name": "text", "corpuss": "x"}],
)
def test_a_wrong_name_in_a_task_has_the_same_words(task, tmp_path, monkeypatch):
    light, full = refused_alike({**BASE, "task": task}, tmp_path, monkeypatch)
    assert light == full


def refused_alike(config, folder, monkeypatch):
    (folder / "x.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    light, full = refusals(folder / "x.yaml", monkeypatch)
    assert light is not None
    return light, full


def test_it_refuses_nothing_that_can_be_built(tmp_path, monkeypatch):
    for name in ("schemes", "tasks"):
        for file in sorted((LIBRARY / name).glob("*.yaml")):
            (tmp_path / "x.yaml").write_text(yaml.safe_dump(BASE) + f"extends: {file}\n")
            assert refusals(tmp_path / "x.yaml", monkeypatch) == (None, None)


def test_slips_have_the_same_words(tmp_path, monkeypatch):
    files = [LIBRARY / "quickstart.yaml", *sorted((LIBRARY / "schemes").glob("*.yaml"))]
    texts = [file.read_text(encoding="utf-8") for file in files] + [yaml.safe_dump(BASE)]
    found = 0
    for number in range(200):
        text = mutated(texts[number % len(texts)], random.Random(number))
        (tmp_path / "x.yaml").write_bytes(text)
        light, full = refusals(tmp_path / "x.yaml", monkeypatch)
        assert light == full, number
        found += light is not None
    assert found > 50
