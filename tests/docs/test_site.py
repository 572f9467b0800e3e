"""The documentation as a site: it builds without a warning, asks nothing of other hosts, and reads
on a phone and in the dark."""

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from html import unescape
from urllib.parse import unquote, urlsplit

import pytest
from code_blocks import ROOT

import xcope

pytestmark = pytest.mark.long

PAGES = ["index", "start", "cope", "config", "api", "schemes/cope", "results/text_code/report"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", out]
    built = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return out


def links(html):
    """What a page links to and loads, code left aside."""
    html = re.sub(r"<(pre|script).*?</\1>", "", html, flags=re.DOTALL)
    return {unescape(link) for link in re.findall(r'\b(?:href|src)="([^"]+)"', html)}


def test_every_link_of_every_page_leads_somewhere(site):
    pages = [
        page
        for page in site.rglob("*.html")
        if "results" not in page.parts or page.stem != "report"
    ]
    ids = {page: set(re.findall(r'\bid="?([^"\s>]+)', page.read_text())) for page in pages}
    assert len(pages) > 60
    for page in pages:
        for link in links(page.read_text()):
            parts = urlsplit(link)
            if parts.scheme or page.name == "404.html":
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            assert target.exists(), f"{page}: {link}"
            if parts.fragment and target in ids and not parts.fragment.startswith("__"):
                assert unquote(parts.fragment) in ids[target], f"{page}: {link}"


def test_scripts_styles_and_pictures_come_with_the_site(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|iframe|link)[^>]+(?:src|href)="([^"]+)"', page.read_text()
        )
        away = [link for link in loaded if link.startswith(("http", "//"))]
        assert not away, f"{page}: {away}"


def test_the_version_is_the_package_s(site):
    start = (site / "index.html").read_text()
    assert f'title="xcope {xcope.__version__}"' in start
    assert f"xcope {xcope.__version__}, MIT licence" in start


def test_every_page_of_the_docs_can_be_reached(site):
    start = (site / "index.html").read_text()
    reached = {unquote(link).partition("#")[0] for link in links(start)}
    pages = [page.relative_to(ROOT / "docs") for page in (ROOT / "docs").rglob("*.md")]
    pages += [book.relative_to(ROOT / "docs") for book in (ROOT / "docs").rglob("*.ipynb")]
    built = {
        page.with_name("index.html" if page.stem == "README" else f"{page.stem}.html").as_posix()
        for page in pages
    }
    assert built - reached - {"index.html"} == set(), "mkdocs.yml's nav lacks them"


def test_tables_keep_their_cells_and_code_its_strokes(site):
    html = (site / "schemes/index.html").read_text()
    table = re.search(r"<table>.*?</table>", html, flags=re.DOTALL)[0]
    assert "m_h|i−j|</code>" in table
    assert {row.count("<td") for row in table.split("<tr>")[2:]} == {5}


def test_docstrings_are_shown_with_links_between_names(site):
    html = (site / "api.html").read_text()
    for name in ("xcope.modules.decoder.Decoder", "xcope.ops.cope.cope_attention"):
        assert html.count(f'id="{name}"') == 1
    assert '<a href="#xcope.modules.decoder.Decoder"><code>Decoder</code></a>' in html
    assert "Raises:" in html
    assert "``" not in html
    assert ":::" not in html


@pytest.fixture(scope="module")
def served(site):
    handler = functools.partial(QuietHandler, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *said):
        pass


@pytest.mark.parametrize("name", PAGES)
def test_pages_read_on_a_phone_and_in_the_dark(served, chromium, name):
    complaints = []
    for width, scheme in ((390, "light"), (1320, "dark")):
        context = chromium.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme
        )
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda asked: None if asked.url.startswith(served) else complaints.append(asked.url),
        )
        page.goto(f"{served}/{name}.html")
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{name} is {wide} wide on a screen of {width}"
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        light = sum(map(int, re.findall(r"\d+", ground)[:3])) > 384
        assert light == (scheme == "light")
        context.close()
    assert complaints == []


def test_the_site_can_be_searched(served, chromium):
    page = chromium.new_page()
    page.goto(f"{served}/index.html")
    page.click(".md-search__input")
    page.keyboard.type("saturated")
    page.wait_for_selector(".md-search-result__item")
    assert "matching document" in page.inner_text(".md-search-result__meta")
    page.close()
