"""Counting against a machine that runs the program command by command."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xcope.errors import FlagError
from xcope.tasks import IGNORE, task

SPLITS = ("train", "in_distribution", "longer", "longer_pass", "longer_2x", "longer_4x")


def run(commands: list[str]) -> dict[str, int]:
    """Values of the variables after the program."""
    memory: dict[str, int] = {}
    for command in commands:
        if command.endswith("=0"):
            memory[command[0]] = 0
        elif command.endswith("++"):
            memory[command[0]] += 1  # KeyError: incremented before it was set
        else:
            assert command == "pass"
    return memory


@st.composite
def options(draw):
    variables = draw(st.integers(1, 6))
    length = draw(st.integers(variables + 1, 40))
    return {
        "variables": variables,
        "length": length,
        "longer": draw(st.none() | st.integers(length + 1, 100)),
        "max_value": draw(st.integers(1, 12)),
        "set_weight": draw(st.integers(0, 3)),
        "increment_weight": draw(st.integers(1, 20)),
        "pass_weight": draw(st.integers(0, 20)),
        "stretch": 4,
    }


@settings(max_examples=60, deadline=None)
@given(options=options(), split=st.sampled_from(SPLITS), seed=st.integers(0, 10**6))
def test_the_answer_is_the_value_that_the_program_leaves(options, split, seed):
    one = task("counting", options)
    assert one.num_tokens == 1 + 3 * options["variables"] + options["max_value"] + 1
    longer = 2 * options["length"] if options["longer"] is None else options["longer"]
    multiple = {"longer_2x": 2, "longer_4x": 4}.get(split, 1)
    length = longer if split in ("longer", "longer_pass") else options["length"] * multiple

    batch = one.batch(split, 6, seed, 0)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        *commands, query, answer = one.decode(tokens).split()
        assert len(commands) == length
        opening = [command[0] for command in commands[: options["variables"]]]
        assert set(opening) == set("abcdef"[: options["variables"]])
        memory = run(commands)
        assert all(
            run(commands[:t]).get(v, 0) <= options["max_value"]
            for t in range(length)
            for v in memory
        )
        assert int(answer) == memory[query.removeprefix("print(").removesuffix(")")]
        if split == "longer_pass":
            assert commands.count("pass") >= longer - options["length"]
        *unscored, scored, last = targets
        assert one.decode([scored]) == answer
        assert {*unscored, last} == {IGNORE}


def test_proportions_are_those_of_the_weights():
    one = task("counting", {"variables": 3, "length": 103, "max_value": 1000})
    rows = [one.decode(row).split() for row in one.batch("train", 400, 0, 0).tokens.tolist()]
    free = Counter(word for row in rows for word in row[3:-2])
    n = free.total()
    expected = {"pass": 50 / 58}
    expected |= {f"{v}=0": 1 / 58 / 3 for v in "abc"} | {f"{v}++": 7 / 58 / 3 for v in "abc"}
    assert set(free) == set(expected)
    for word, share in expected.items():
        assert abs(free[word] - n * share) < 6 * (n * share * (1 - share)) ** 0.5, word
    asked = Counter(row[-2] for row in rows)
    assert set(asked) == {"print(a)", "print(b)", "print(c)"}
    assert min(asked.values()) > 400 / 3 - 6 * (400 * 2 / 9) ** 0.5
    assert len({tuple(row[:3]) for row in rows}) == 6, "every order of the first settings occurs"


def test_longer_pass_keeps_the_answers_of_training_and_longer_does_not():
    one = task("counting", {"variables": 2, "length": 40})
    n = 3000

    def answers(split: str) -> Counter[str]:
        rows = one.batch(split, n, 4, 0).tokens.tolist()
        return Counter(one.decode(row).split()[-1] for row in rows)

    def mean(counts: Counter[str]) -> float:
        return sum(int(value) * count for value, count in counts.items()) / n

    train, by_pass, longer = (answers(s) for s in ("train", "longer_pass", "longer"))
    for value in map(str, range(11)):
        assert abs(train[value] - by_pass[value]) < 6 * (2 * max(train[value], 10)) ** 0.5
    assert mean(longer) > mean(train) + 0.5


def test_inserted_passes_may_stand_anywhere_after_the_opening():
    one = task("counting", {"length": 6, "longer": 12, "pass_weight": 0})
    rows = [one.decode(row).split() for row in one.batch("longer_pass", 500, 0, 0).tokens.tolist()]
    for place in range(1, 12):
        assert {"pass"} < {row[place] for row in rows}
    assert {row.count("pass") for row in rows} == {6}


@pytest.mark.parametrize(
    ("option", "options"),
    [
        ("variables", {"variables": 0}),
        ("variables", {"variables": 27}),
        ("variables", {"variables": "three"}),
        ("length", {"variables": 5, "length": 5}),
        ("length", {"length": None}),
        ("longer", {"length": 32, "longer": 32}),
        ("max_value", {"max_value": 0}),
        ("set_weight", {"set_weight": -1}),
        ("increment_weight", {"increment_weight": 0}),
        ("pass_weight", {"pass_weight": 0.5}),
    ],
)
def test_bad_options_are_named(option, options):
    with pytest.raises(FlagError, match=option) as caught:
        task("counting", options)
    assert caught.value.flag == option
