"""Numbers come back from a page's bytes as exactly as promised."""

import base64
import zlib

import numpy as np
import pytest
import torch

from xcope.inspect import encode


def read(packed, kind):
    return np.frombuffer(zlib.decompress(base64.b64decode(packed), wbits=-15), kind).astype(float)


def causal(table):
    """Each query's keys from itself backwards, in loops."""
    i, j = table.shape
    return [[table[q, k].item() for k in range(j - i + q, -1, -1)] for q in range(i)]


def rows(values, table):
    ends = np.cumsum([len(row) for row in causal(table)])
    return np.split(values, ends[:-1])


@pytest.mark.parametrize("kind", ["even", "open", "closed", "halves", "with memories"])
def test_gates_are_right_to_a_step_and_their_sums_to_half_a_step(kind):
    n, j = (40, 43) if kind == "with memories" else (200, 200)
    table = {
        "open": torch.ones(n, j),
        "closed": torch.full((n, j), 1e-3),
        "halves": torch.cat((torch.full((n, 1), 0.5 / 255), torch.ones(n, j - 1)), dim=1),
    }.get(kind, torch.rand(n, j))
    if kind == "halves":
        table = table.flip(1)
    table = table.tril(j - n)
    for row, real in zip(
        rows(read(encode.packed(encode.gates(table)), np.uint8), table), causal(table), strict=True
    ):
        assert np.abs(row / 255 - real).max() <= 1 / 255 + 1e-9
        assert np.abs(row.cumsum() / 255 - np.cumsum(real)).max() <= 0.5 / 255 + 1e-6


def test_attention_keeps_small_shares_apart():
    table = (8 * torch.randn(60, 60)).masked_fill(~torch.ones(60, 60).bool().tril(), -torch.inf)
    table = table.softmax(-1)
    back = (read(encode.packed(encode.attention(table)), np.uint8) / 255) ** 2
    for row, real in zip(rows(back, table), causal(table), strict=True):
        assert np.abs(row - real).max() <= 0.004
        assert np.abs(np.sqrt(row) - np.sqrt(real)).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("table", [torch.randn(30, 30), torch.zeros(4, 4), torch.ones(4, 6) * -3])
def test_bias_is_a_65534th_of_its_range(table):
    steps, low, high = encode.bias(table)
    back = low + read(encode.packed(steps), "<u2") / encode.BIAS_STEPS * (high - low)
    for row, real in zip(rows(back, table), causal(table), strict=True):
        assert np.abs(row - real).max() <= (high - low) / encode.BIAS_STEPS + 1e-6


def test_a_bias_that_is_no_number_is_marked():
    table = torch.tensor([[1.0, 9.0], [-torch.inf, 3.0]])
    steps, low, high = encode.bias(table)
    assert (low, high) == (1.0, 3.0)
    assert steps.tolist() == [0, 65534, 65535]


def test_where_positions_saturate():
    saturated = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 1]]).bool()
    assert encode.saturated_from(saturated).tolist() == [1, 1, 0]


def test_a_bias_of_the_distance_takes_no_room():
    place = torch.arange(512)
    alibi = -0.25 * (place[:, None] - place).abs()
    assert len(encode.packed(encode.bias(alibi)[0])) < 6000
