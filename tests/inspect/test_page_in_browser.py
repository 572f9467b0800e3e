"""The interactive page in a real browser: it shows what `trace` found, wherever one points."""

import statistics

import pytest
import torch

from xcope.inspect import page, trace
from xcope.inspect.labels import visible

NASTY = ["</script><b>x", "\n", "\a", " ", '"', "\\", "&amp;", "<!--", "\u202e", "é", "${x}", "\t"]
LABELS = [*NASTY, *(f"word{n}" for n in range(12))]

CELLS = """() => [...document.querySelectorAll('#tokens .token')].map(cell => ({
    name: cell.querySelector('b').textContent, under: cell.querySelector('i').textContent,
    a: Number(cell.style.getPropertyValue('--a')), classes: [...cell.classList]}))"""

CONTRAST = """() => {
    const light = (rgb) => rgb.map(c => c / 255)
        .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, k) => sum + c * [0.2126, 0.7152, 0.0722][k], 0);
    const parse = (text) => text.match(/[\\d.]+/g).map(Number);
    const below = parse(getComputedStyle(document.body).backgroundColor);
    return [...document.querySelectorAll('#tokens .token:not(.later)')].map(cell => {
        const style = getComputedStyle(cell);
        const [r, g, b, a = 1] = parse(style.backgroundColor);
        const back = light([r, g, b].map((c, k) => a * c + (1 - a) * below[k]));
        const ink = light(parse(style.color).slice(0, 3));
        return (Math.max(back, ink) + 0.05) / (Math.min(back, ink) + 0.05);
    });
}"""

HOVERS = """async () => {
    const cells = [...document.querySelectorAll('#tokens .token')], times = [];
    const frame = () => new Promise(requestAnimationFrame);
    const painted = () => new Promise(done => requestAnimationFrame(() => {
        const channel = new MessageChannel();
        channel.port1.onmessage = done;
        channel.port2.postMessage(0);
    }));
    for (let k = 0; k < 30; k++) {
        const cell = cells[cells.length - 1 - (k * 37) % 200];
        await frame();
        const begin = performance.now();
        cell.dispatchEvent(new PointerEvent('pointerover', {bubbles: true, pointerType: 'mouse'}));
        await painted();
        times.push(performance.now() - begin);
    }
    return times;
}"""


@pytest.fixture
def show(open_page, tmp_path):
    """Writes the page of a trace and opens it, ready to be pointed at."""

    def show(traced, **options):
        file = tmp_path / "gates.html"
        file.write_text(page(traced, title="<a> & b"), encoding="utf-8")
        opened = open_page(file, **options)
        opened.wait_for_selector("body[data-ready]", timeout=10_000)
        return opened

    return show


def point_at(opened, key):
    opened.locator("#tokens .token").nth(key).hover()


def pick(opened, group, word):
    """Choose a layer, a head or a view, and wait until it is drawn."""
    opened.locator(f"#{group} label", has_text=str(word)).click()
    opened.wait_for_function(
        """() => document.body.dataset.ready ===
            ['layers', 'heads', 'views'].map(name =>
                document.querySelector(`input[name=${name}]:checked`).value).join('-')"""
    )


def shown(opened):
    return opened.evaluate(CELLS)


def number(under):
    return float(under.replace("−", "-"))


def check_counts(cells, layer, head, query, view):
    """Shades, positions and marks of a query in heads with CoPE."""
    last = layer.max_pos[head] - 1
    for key, cell in enumerate(cells[: query + 1]):
        gate = layer.gates[0, head, query, key].item()
        position = layer.positions[0, head, query, key].item()
        shade = gate if view == "gates" else position / last
        assert cell["a"] == pytest.approx(shade, abs=0.005)
        full = bool(layer.saturated[0, head, query, key])
        assert ("saturated" in cell["classes"]) == full
        if full:
            assert cell["under"] == f"{last}+"
        else:
            assert number(cell["under"]) == pytest.approx(position, abs=0.053)
    for cell in cells[query + 1 :]:
        assert (cell["under"], cell["a"]) == ("", 0)
        assert "later" in cell["classes"]


def check_attention(cells, layer, head, query):
    for key, cell in enumerate(cells[: query + 1]):
        share = layer.attention[0, head, query, key].item()
        assert cell["a"] == pytest.approx(share**0.5, abs=0.005)
        assert number(cell["under"]) / 100 == pytest.approx(share, abs=0.01)


def check_bias(cells, bias, head, query):
    for key, cell in enumerate(cells[: query + 1]):
        value = bias[head, query, key].item()
        assert number(cell["under"]) == pytest.approx(value, abs=0.06)
        if abs(value) > 0.1:
            assert ("below" in cell["classes"]) == (value < 0)


@pytest.fixture
def cope(make, ids):
    """A trace of one text whose labels are hard to show."""
    return trace(make({"name": "cope", "max_pos": 6}), ids[0], labels=LABELS)


def test_pointing_at_a_token_shows_what_it_counts(show, cope):
    opened = show(cope)
    assert [cell["name"] for cell in shown(opened)] == list(map(visible, LABELS))
    assert opened.locator("h1").text_content() == "<a> & b"
    assert opened.title() == "<a> & b"
    check_counts(shown(opened), cope.layers[0], 0, 23, "gates")  # the last token, at first
    for query in (0, 7, 15, 20):
        point_at(opened, query)
        cells = shown(opened)
        check_counts(cells, cope.layers[0], 0, query, "gates")
        assert [key for key, cell in enumerate(cells) if "query" in cell["classes"]] == [query]
        said = opened.locator("#status").text_content()
        total = cope.layers[0].gates[0, 0, query].sum().item()
        assert said.startswith(f"Query {query} “{visible(LABELS[query])}”")
        assert f"gates sum to {total:.1f}" in said


def test_layers_heads_and_views_are_picked(show, cope):
    opened = show(cope)
    point_at(opened, 19)
    for layer in (1, 0):
        pick(opened, "layers", layer)
        for head in (3, 1):
            pick(opened, "heads", head)
            assert f"Layer {layer}, head {head}: cope(max_pos=6)" in opened.inner_text("#scheme")
            for view in ("positions", "attention", "bias", "gates"):
                pick(opened, "views", view.capitalize())
                cells, found = shown(opened), cope.layers[layer]
                if view == "attention":
                    check_attention(cells, found, head, 19)
                elif view == "bias":
                    check_bias(cells, found.bias[0], head, 19)
                else:
                    check_counts(cells, found, head, 19, view)


def test_a_query_that_is_held_lets_one_read_the_numbers_of_others(show, cope):
    opened = show(cope)
    opened.locator("#tokens .token").nth(18).click()
    point_at(opened, 4)
    layer = cope.layers[0]
    check_counts(shown(opened), layer, 0, 18, "gates")
    said = opened.locator("#detail").text_content()
    assert said.startswith('Token 4 “"”: ')
    assert f"gate {layer.gates[0, 0, 18, 4]:.2f}" in said
    assert f"position {layer.positions[0, 0, 18, 4]:.2f}" in said
    opened.locator("#tokens .token").nth(18).click()  # lets go
    point_at(opened, 4)
    check_counts(shown(opened), layer, 0, 4, "gates")


def test_arrow_keys_and_the_matrix_choose_the_query(show, cope):
    opened = show(cope)

    def query():
        return [k for k, cell in enumerate(shown(opened)) if "query" in cell["classes"]]

    opened.locator("#tokens").focus()
    for key, expected in (
        ("ArrowLeft", 22), ("PageUp", 12), ("ArrowRight", 13), ("Home", 0), ("End", 23),
    ):  # fmt: skip
        opened.keyboard.press(key)
        assert query() == [expected]
    box = opened.locator("#matrix").bounding_box()
    opened.mouse.click(box["x"] + 5, box["y"] + box["height"] * 10.5 / 24)
    assert query() == [10]
    # keys pick among the radio buttons, too, and keep the focus
    opened.locator("#heads input").first.focus()
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("ArrowRight")
    opened.wait_for_selector("body[data-ready='0-2-gates']")
    check_counts(shown(opened), cope.layers[0], 2, 10, "gates")


def test_a_phone_is_tapped(show, cope):
    opened = show(cope, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    opened.locator("#tokens .token").nth(9).tap()
    check_counts(shown(opened), cope.layers[0], 0, 9, "gates")
    opened.locator("#tokens .token").nth(20).tap()
    check_counts(shown(opened), cope.layers[0], 0, 20, "gates")
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360


def test_tokens_stay_where_they_are_while_one_points(show, cope):
    opened = show(cope, viewport={"width": 700, "height": 800})
    place = "[...document.querySelectorAll('.token')].map(cell => cell.getBoundingClientRect().top)"
    before = opened.evaluate(place)
    for query in (0, 3, 22):
        point_at(opened, query)
        assert opened.evaluate(place) == before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_on_every_shade(show, make, ids, scheme):
    opened = show(trace(make("cope_alibi"), ids[0]), color_scheme=scheme)
    for view in ("Gates", "Positions", "Attention", "Bias"):
        pick(opened, "views", view)
        assert min(opened.evaluate(CONTRAST)) > 4.2


def test_schemes_without_gates_show_attention_and_bias(show, make, ids):
    mixed = {"layers": ["rotary", {"heads": ["alibi", {"name": "cope", "max_pos": 5}]}]}
    traced = trace(make(mixed), ids[0])
    opened = show(traced)

    def possible():
        return opened.evaluate(
            "[...document.querySelectorAll('#views input:enabled')].map(i => i.value)"
        )

    assert possible() == ["attention"]
    point_at(opened, 17)
    check_attention(shown(opened), traced.layers[0], 0, 17)
    pick(opened, "layers", 1)
    assert possible() == ["attention", "bias"]
    pick(opened, "views", "Bias")
    check_bias(shown(opened), traced.layers[1].bias[0], 0, 17)
    pick(opened, "heads", 2)
    assert possible() == ["gates", "positions", "attention", "bias"]
    pick(opened, "views", "Gates")
    check_counts(shown(opened), traced.layers[1], 2, 17, "gates")
    pick(opened, "heads", 1)  # has no gates
    check_attention(shown(opened), traced.layers[1], 1, 17)


def test_memories_are_keys_and_no_queries_and_padding_is_struck_out(show, make, ids):
    padded = torch.arange(24)[None] >= 3
    traced = trace(make("cope", attn_num_mem_kv=2), ids[:1], padded)
    opened = show(traced)
    cells = shown(opened)
    assert [cell["name"] for cell in cells[:3]] == ["mem1", "mem2", str(ids[0, 0].item())]
    point_at(opened, 21)
    point_at(opened, 1)  # nothing happens
    layer = traced.layers[0]
    for key, cell in enumerate(shown(opened)[:22]):
        assert cell["a"] == pytest.approx(layer.gates[0, 0, 19, key].item(), abs=0.005)
    struck = opened.evaluate(
        "[...document.querySelectorAll('.token b')]"
        ".map(name => getComputedStyle(name).textDecorationLine)"
    )
    assert [key for key, line in enumerate(struck) if line == "line-through"] == [2, 3, 4]


def test_half_precision(show, make, ids):
    traced = trace(make("cope").bfloat16(), ids[0])
    opened = show(traced)
    gates = traced.layers[0].gates[0, 0, 23].tolist()
    assert [cell["a"] for cell in shown(opened)] == pytest.approx(gates, abs=0.005)
    pick(opened, "views", "Attention")
    check_attention(shown(opened), traced.layers[0], 0, 23)


def test_512_tokens_without_lag(show, make):
    ids = torch.randint(20, (512,), generator=torch.Generator().manual_seed(0))
    traced = trace(make({"name": "cope", "max_pos": 64}), ids)
    opened = show(traced)
    check_counts(shown(opened), traced.layers[0], 0, 511, "gates")
    # about 20 ms on two cores, a frame or two; the limit leaves room for a busy machine
    assert statistics.median(opened.evaluate(HOVERS)) < 100
