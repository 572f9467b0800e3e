"""What the benchmark of small models compares, and what it makes of the times."""

from dataclasses import replace

import pytest
import torch

import xcope
from benchmarks.measure import profiled
from benchmarks.small.breakdown import PARTS, breakdowns, part_of
from benchmarks.small.costs import Pair, Steps, attention_pairs, command_bars, train_steps
from benchmarks.small.plain import PlainDecoder
from benchmarks.small.workloads import FULL, PLAIN, QUICK, called, contenders, theirs
from xcope.config import build_model, build_task, expand_sweep, load_config

TINY = replace(QUICK, sizes=tuple(replace(size, n=4) for size in QUICK.sizes))


def ours(tokens, dim, depth, heads):
    layers = xcope.Decoder(
        dim=dim,
        depth=depth,
        heads=heads,
        attn_dim_head=dim // heads,
        position="none",
        verbose=False,
    )
    return xcope.TransformerWrapper(num_tokens=tokens, max_seq_len=8, attn_layers=layers)


@torch.no_grad()
def test_the_plain_model_computes_what_ours_does_without_positions():
    size = (11, 24, 2, 3)
    model, plain = ours(*size), PlainDecoder(*size)
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    # q, k and v are three matrices there and one here; gains are stored there without their 1
    weights, left = [], [(n, p + n.endswith("gamma")) for n, p in model.named_parameters()]
    while left:
        name, weight = left.pop(0)
        if name.endswith("to_q.weight"):
            weight = torch.cat((weight, left.pop(0)[1], left.pop(0)[1]))
        weights.append(weight)
    for parameter, weight in zip(plain.parameters(), weights, strict=True):
        assert parameter.shape == weight.shape
        parameter.copy_(weight)
    x = torch.randint(11, (2, 8))
    torch.testing.assert_close(plain(x), model(x), atol=1e-4, rtol=1e-4)


def test_the_first_size_is_the_quickstart():
    runs = expand_sweep(load_config("configs/quickstart.yaml", sweep=True))
    none, *_, cope = runs
    size, task = FULL.sizes[0], build_task(none)
    assert (size.n, size.tokens) == (task.seq_len("train"), len(task.words))
    assert size.batch == none.train.batch_size
    assert cope.model.position == {"name": "cope", "max_pos": size.max_pos}
    quickstart = ours(size.tokens, size.dim, size.depth, size.heads)
    shapes = [tuple(parameter.shape) for parameter in quickstart.parameters()]
    assert none.model.position == "none"
    assert shapes == [tuple(parameter.shape) for parameter in build_model(none).parameters()]


def test_every_scheme_trains_and_its_rival_beside_it():
    steps = next(train_steps(TINY))
    rivals = {name: theirs(name) for name, one in xcope.schemes().items() if one.counterpart()}
    assert set(steps.names) == {PLAIN, *xcope.schemes(), *rivals.values()}
    compared = {(pair.top, pair.bottom) for pair in steps.pairs}
    del rivals["cope"]
    assert compared == {("cope", "rotary"), ("none", PLAIN), *rivals.items()}
    assert len(steps.bars) == len(compared)
    limits = {(pair.top, pair.bottom): (pair.limit, pair.goal) for pair in steps.pairs}
    assert limits[("cope", "rotary")] == (1.2, 1.1)
    assert limits[("none", PLAIN)] == (1.03, 1.0)
    assert limits[("alibi", theirs("alibi"))] == (1.02, 1.0)


def test_the_same_step_from_the_same_weights():
    """One update each, as the losses of the next step show."""
    steps = contenders(TINY.sizes[0], ["rotary", theirs("rotary")])
    nets = [steps[name].args[0] for name in ("rotary", theirs("rotary"))]
    for name in ("rotary", theirs("rotary")):
        steps[name]()
    for mine, other in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def test_ratios_are_those_of_runs_in_the_same_round():
    apart = {"rotary": [9.0], "t5": [6.0]}
    beside = {"cope": [3.0, 30.0, 4.0], "rotary": [2.0, 20.0, 1.0], PLAIN: [1.0, 1.0, 1.0]}
    pair = Pair("x", "cope", "rotary", tuple, 1, 1.2, 1.1)
    steps = Steps(TINY.sizes[0], [apart, beside], [pair])
    (bar,) = steps.bars
    assert (bar.ratio, bar.limit, bar.goal, bar.verdict) == (1.5, 1.2, 1.1, "NOT MET")
    assert (steps.over("cope"), steps.seconds("cope")) == (4.0, 4.0)
    assert steps.over("t5") == 6.0  # never side by side


def test_the_bars_of_attention():
    bounds = {pair.name: (pair.limit, pair.goal) for pair in attention_pairs(QUICK)}
    limits = [limit for name, (limit, _) in bounds.items() if name.endswith("over SDPA")]
    assert limits == [2.0, 1.7, 1.5, None, 1.3, 1.2, 1.6, 2.0, 1.25]
    over_cope = [bound for name, bound in bounds.items() if name.endswith("over plain CoPE")]
    assert over_cope == 2 * [*3 * [(1.35, 1.2)], (None, None)]


def test_the_parts_of_a_step_add_up_and_are_its_own():
    works = contenders(TINY.sizes[0], [PLAIN, "cope", "rotary", "alibi", theirs("alibi")])
    found = profiled([("x", name, works[name]) for name in works], PARTS, part_of)
    parts = {one.what: {part for part, taken in one.parts.items() if taken > 0} for one in found}
    common = {"products", "layer norms", "optimizer", "rest"}
    assert parts["cope"] == common | {"CoPE forward", "CoPE backward"}
    assert parts["alibi"] == common | {"other attention of ours"}
    assert parts["rotary"] - {"other attention of ours", "SDPA"} == common | {"rotations"}
    assert parts[PLAIN] == parts[theirs("alibi")] == common | {"SDPA"}
    for one in found:
        assert sum(one.parts.values()) == pytest.approx(one.whole, rel=0.05)


def test_only_missed_bars_are_profiled():
    pairs = list(attention_pairs(QUICK))[:3]
    bars = [pairs[0].bar(1.0), pairs[1].bar(9.0), pairs[2].bar(9.0)]
    found = breakdowns(pairs, bars, most=1)
    assert [(one.case, one.what) for one in found] == [
        (pairs[1].name, what) for what in ("CoPE", "SDPA")
    ]


def test_commands_are_timed_and_must_end_as_they_should():
    bars = {bar.name: bar.ratio for bar in command_bars(TINY)}
    assert set(bars) == {"xcope --badflag: seconds", "xcope --help: seconds"}
    assert all(seconds > 0.01 for seconds in bars.values())
    with pytest.raises(RuntimeError, match=r"ended with 2: .*badflag"):
        called(["--badflag"])
