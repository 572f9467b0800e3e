"""What turns the repository's Markdown into a site; mkdocs calls these functions.

Pages link to each other, to reports in results/ and to source files as they lie in the repository,
which works wherever the repository is shown. In the site reports are pages, notebooks are pages,
and so is every source file that a page links to.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

import xcope
from xcope.markdown import code_block

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BESIDE = ("CONTRIBUTING.md", "CHANGELOG.md")
"""Pages that lie at the root of the repository."""
LINK = re.compile(r"(?P<before>\]\(|(?:src|href)=\")(?P<path>[^)\s#\"]+)(?P<after>[^)\s\"]*[)\"])")
CODE = re.compile(r"(^ *(`{3,})[^\n]*\n.*?^ *\2`*$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
ELSEWHERE = re.compile(r"<!-- not in the site -->.*?<!-- end -->", re.DOTALL)
MARKED = re.compile(r"<!-- (::: \S+) -->")
ROW = re.compile(r"^\|.*$", re.MULTILINE)
INLINE = re.compile(r"`[^`\n]+`")
LEXERS = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", "": "bash"}
UNSEARCHED = "---\nsearch: {exclude: true}\n---\n\n"


def on_config(config: MkDocsConfig) -> None:
    """Name the version, and list the schemes' pages."""
    config.site_name = f"{config.site_name} {xcope.__version__}"
    schemes = next(part["Schemes"] for part in config.nav or () if "Schemes" in part)
    schemes += [f"schemes/{name}.md" for name in xcope.schemes()]
    config.copyright = f"xcope {xcope.__version__}, MIT licence"


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add what lies outside docs/: reports, the changelog, notebooks as pages, linked sources."""
    for path in [*map(Path, BESIDE), *_results()]:
        files.append(
            File(
                path.as_posix(),
                str(ROOT),
                config.site_dir,
                config.use_directory_urls,
                inclusion=InclusionLevel.NOT_IN_NAV,
            )
        )
    for notebook in DOCS.glob("notebooks/*.ipynb"):
        name = notebook.relative_to(DOCS).with_suffix(".md").as_posix()
        files.append(_generated(config, name, notebook_page(notebook)))
    waiting = [path for file in files.documentation_pages() for path in linked(file)]
    while waiting:
        path = waiting.pop()
        name = site_path(path)
        if name in files.src_uris:
            continue
        text = source_page(path)
        files.append(_generated(config, name, text))
        waiting += linked(files.src_uris[name])


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links of a page at what the site has."""
    here = folder_of(page.file)

    def moved(path: str) -> str:
        real = Path(os.path.normpath(here / path))
        if not real.exists():
            return path  # mkdocs says so
        return posixpath.relpath(site_path(real), posixpath.dirname(page.file.src_uri))

    text = MARKED.sub(r"\1", with_links(ELSEWHERE.sub("", markdown), moved))
    # a | of code in a table has a backslash on GitHub, and is told apart here
    return ROW.sub(lambda row: INLINE.sub(lambda code: code[0].replace("\\|", "|"), row[0]), text)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link the names in docstrings to what the page says of them."""
    if page.file.src_uri != "api.md":
        return html
    ids = re.findall(r'id="(xcope\.[\w.]+)"', html)
    known = {name: path for path in ids for name in (path.rpartition(".")[2], path)}

    def linked(found: re.Match[str]) -> str:
        path = known.get(found[1]) or known.get(found[1].rpartition(".")[2])
        return found[0] if path is None else f'<a href="#{path}">{found[0]}</a>'

    return re.sub(r"(?<!\">)<code>((?:xcope\.)?[\w.]+)</code>", linked, html)


def with_links(markdown: str, moved: Callable[[str], str]) -> str:
    """The text with what ``moved`` gives for each path that it links to, code left alone."""

    def replaced(link: re.Match[str]) -> str:
        path = link["path"]
        if "://" in path or path.startswith(("mailto:", "data:")):
            return link[0]
        return f"{link['before']}{moved(path)}{link['after']}"

    parts = CODE.split(markdown)
    # CODE has two groups: each piece of text is followed by a piece of code and its fence
    parts[::3] = [LINK.sub(replaced, part) for part in parts[::3]]
    parts[2::3] = [""] * len(parts[2::3])
    return "".join(parts)


def linked(file: File) -> Iterator[Path]:
    """What a page links to, and the site does not have by itself."""
    found: list[str] = []

    def noted(path: str) -> str:
        found.append(path)
        return path

    with_links(file.content_string, noted)
    for path in found:
        real = Path(os.path.normpath(folder_of(file) / path))
        if real.exists() and site_path(real).startswith("source/"):
            yield real


def folder_of(file: File) -> Path:
    """The folder of the repository from which a page's links are read."""
    if file.src_uri.startswith("source/"):
        real = ROOT / file.src_uri.removeprefix("source/").removesuffix(".md")
        return real if real.is_dir() else real.parent
    return (DOCS if file.src_dir is None else Path(file.src_dir)).joinpath(file.src_uri).parent


def site_path(real: Path) -> str:
    """Where the site has a file or folder of the repository."""
    if real.is_dir() and (real / "README.md").is_file():
        real /= "README.md"
    path = real.relative_to(ROOT)
    if path == Path("README.md"):
        return "README.md"
    if real.is_relative_to(DOCS) and real.suffix != ".py":
        path = real.relative_to(DOCS)
        return path.with_suffix(".md" if path.suffix == ".ipynb" else path.suffix).as_posix()
    if path.parts[0] == "results" or path.as_posix() in BESIDE:
        return path.as_posix()
    return f"source/{path.as_posix()}.md"


def source_page(path: Path) -> str:
    """A source file, or what a folder has, as Markdown."""
    name = path.relative_to(ROOT).as_posix()
    title = f"{UNSEARCHED}# `{name}`\n\n"
    if path.is_file():
        text = path.read_text(encoding="utf-8").rstrip()
        return title + code_block(text, LEXERS.get(path.suffix, "text")) + "\n"
    names = sorted(inner.name for inner in path.iterdir() if inner.suffix in LEXERS)
    links = [f"- [{name}]({name})" for name in names if not name.startswith(("_", "."))]
    return title + "\n".join(links) + "\n"


def notebook_page(notebook: Path) -> str:
    """A notebook as it was saved: its text, its code, and what that printed and drew."""
    blocks = [f"*[{notebook.name}]({notebook.name}) to run.*"]
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        text = "".join(cell["source"])
        blocks.append(text if cell["cell_type"] == "markdown" else code_block(text, "python"))
        blocks += filter(None, map(_output, cell.get("outputs", ())))
    first, title, *rest = blocks
    return "\n\n".join([title, first, *rest]) + "\n"


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f"![](data:image/png;base64,{''.join(data['image/png']).strip()})"
    if "text/html" in data:
        html = "".join(data["text/html"])
        return re.sub(r"\n\s*\n", "\n", html)  # an empty line would end it for Markdown
    text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
    return code_block(text, "text") if text else ""


def _results() -> Iterator[Path]:
    for file in sorted((ROOT / "results").rglob("*")):
        if file.is_file():
            yield file.relative_to(ROOT)


def _generated(config: MkDocsConfig, name: str, text: str) -> File:
    return File.generated(config, name, content=text, inclusion=InclusionLevel.NOT_IN_NAV)
