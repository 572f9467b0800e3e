"""What the gallery draws is what the schemes' formulas say."""

import pytest
import torch
from matplotlib.figure import Figure

import xcope
from gallery import distances, sentence
from gallery.examples import GEOMETRY, beginning, built
from gallery.pictures import panels, title


def test_rotary_s_kernel_is_the_mean_cosine_of_what_turns(drawn):
    distance, kernel = distances.kernel(built(drawn("rotary")), 4096)
    omega = 10000.0 ** (-torch.arange(16) / 16)
    formula = 0.5 + 0.5 * (distance[:, None] * omega).cos().mean(-1)
    assert kernel[0] == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(kernel, formula, atol=0.03, rtol=0)
    assert distance[0] == 0
    assert distance[-1] == 4096


def test_channels_that_do_not_turn_keep_their_share(drawn):
    _, share = distances.products(built(drawn("rotary")), 4096)
    still = share[:, 32:]
    torch.testing.assert_close(still, still[:1].expand_as(still), atol=1e-6, rtol=0)
    assert (share[:, :32] - share[:1, :32]).abs().max() > 0.01


def test_yarn_s_attention_factor_is_seen(drawn):
    _, kernel = distances.kernel(built(drawn("rotary_yarn")), 4096)
    assert kernel[0] > 1.05


def test_dynamic_ntk_is_drawn_for_a_short_and_a_long_text(drawn):
    one = drawn("rotary_dynamic")
    module = built(one)
    assert distances.text_ends(one, module) == [511, 4096]
    _, plain = distances.kernel(built(drawn("rotary")), 511)
    torch.testing.assert_close(distances.kernel(module, 511)[1], plain, atol=1e-4, rtol=0)
    far = distances.kernel(module, 4096)[1][:64]
    assert (far - plain[:64]).abs().max() > 0.03


def test_wider_queries_are_drawn_over_their_value_at_distance_0(drawn):
    one = drawn("pope")
    assert distances.kernel(built(one), 4096)[1][0] == 1
    assert len(panels(one)) == 2  # of its channels two belong together: no diagram of single ones


def test_biases_are_those_of_the_last_query(drawn):
    bias = distances.bias(built(drawn("alibi")), 100)
    assert bias.shape == (8, 101)
    torch.testing.assert_close(bias[2], -torch.arange(101) / 8)


def test_a_bias_that_reads_the_query_s_place_is_drawn_twice(drawn):
    assert "4096 (line), 511 (dots)" in distances.bias_panels(drawn("fire"))[0].title
    assert "place" not in distances.bias_panels(drawn("kerple"))[0].title


def test_sinusoidal_kernel_is_the_mean_cosine(drawn):
    kernel = distances.likeness(distances.added(drawn("sinusoidal")))
    omega = 10000.0 ** (-torch.arange(256) / 256)
    formula = (torch.arange(512)[:, None] * omega).cos().mean(-1)
    torch.testing.assert_close(kernel, formula, atol=1e-4, rtol=0)


def gates_of_cope(drawn, *beside):
    """Of the sentence, (h n n)."""
    maps, _ = sentence.read(built(drawn("cope")), [drawn(name) for name in beside])
    return maps["gates"]


def test_cope_counts_the_words_back_from_the_last_query(drawn):
    gates = gates_of_cope(drawn)
    p = xcope.ops.cope.positions(gates, 16)[0, -1]
    words = [5] * 4 + [4] * 4 + [3] * 4 + [2] * 3 + [1] * 4 + [0] * 3  # t h e ␣, c a t ␣, …
    torch.testing.assert_close(p, torch.tensor(words).float(), atol=0.02, rtol=0)


def test_beside_alibi_far_words_count_less(drawn):
    alone, beside = gates_of_cope(drawn)[:, -1], gates_of_cope(drawn, "alibi")[:, -1]
    first_space, last_space = 3, 18
    assert alone[0, first_space] > 0.99
    assert beside[0, first_space] < 0.5
    assert beside[0, last_space] > 0.99


def test_beside_rotary_gates_come_from_turned_queries_and_keys(drawn):
    alone, beside = gates_of_cope(drawn), gates_of_cope(drawn, "rotary")
    assert not torch.equal(alone, beside)
    torch.testing.assert_close(alone, beside, atol=0.05, rtol=0)


@pytest.mark.parametrize("name", xcope.schemes())
def test_each_scheme_can_be_drawn(drawn, name):
    found = panels(drawn(name))
    row = Figure().subplots(1, len(found), squeeze=False)[0]
    for panel, axes in zip(found, row, strict=True):
        panel.draw(axes)
        assert panel.title
        assert axes.has_data()


def test_what_is_not_learned_yet_says_so(drawn):
    assert beginning(drawn("alibi")) == ""
    assert beginning(drawn("pope")) == "before training"
    assert title(drawn("t5")) == "T5's bucketed bias, before training: random"
    assert title(drawn("cope")) == "Contextual positions (CoPE)"


def test_the_same_picture_each_time_whatever_the_seed(drawn):
    torch.manual_seed(1)
    first = distances.bias(built(drawn("t5")), 50), distances.added(drawn("absolute"))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    second = distances.bias(built(drawn("t5")), 50), distances.added(drawn("absolute"))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # and it draws no number of its caller's
    assert first[1].shape == (GEOMETRY.max_seq_len, GEOMETRY.dim)
