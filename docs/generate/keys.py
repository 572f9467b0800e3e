"""The page of every key of a config, made from the schema, the tasks and the schemes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from xcope.config.errors import expected, shown
from xcope.config.schema import (
    GIVEN_BY_TASK,
    SECTIONS,
    Config,
    TuneConfig,
)
from xcope.describe import about, arguments
from xcope.markdown import code, listed, page, table
from xcope.modules import decoder_flags, wrapper_flags
from xcope.modules.flags import option_flags, switch_flags
from xcope.registry import hints
from xcope.tasks import Task, tasks

HEAD = ("key", "allowed", "default", "meaning")
WRITTEN = "`python scripts/docs.py` writes this page from the code that checks them."


def config_page() -> str:
    """The Markdown of ``config.md``."""
    return page(
        [
            "# Every key of a config",
            "A config is YAML in sections; `key=value` on the command line sets the same keys with "
            "dots between them, `train.lr=1e-3`. [Configs](yaml.md) says how files are composed, "
            f"and `xcope config FILE` shows what comes out. {WRITTEN}",
            *_root(),
            *(block for name in SECTIONS for block in _section(name)),
            *_tune(),
        ]
    )


def _root() -> Iterator[str]:
    yield "## Beside the sections"
    extends = (
        "`extends`",
        "a file, or a list of files",
        "–",
        "files that this one adds to; the last wins",
    )
    keys = [key for key in Config.model_fields if key not in SECTIONS]
    yield table(HEAD, [extends, *_rows(Config, keys)])


def _section(name: str) -> Iterator[str]:
    kind = SECTIONS[name]
    yield f"## `{name}`"
    yield _prose(kind.__doc__ or "")
    yield table(HEAD, _rows(kind))
    if name == "model":
        yield from _flags()
    if name == "task":
        for task_name, task in tasks().items():
            yield f"### `{task_name}`"
            yield from _task(task)


def _tune() -> Iterator[str]:
    yield "## `tune`"
    yield _prose(TuneConfig.__doc__ or "")
    yield table(HEAD, _rows(TuneConfig))


def _rows(kind: type[BaseModel], keys: list[str] | None = None) -> Iterator[tuple[str, ...]]:
    for key in kind.model_fields if keys is None else keys:
        field = kind.model_fields[key]
        said = _prose(field.description or "")
        yield code(field.alias or key), expected(field), _default(field), said


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    return code(shown(list(value) if isinstance(value, tuple) else value))


def _task(task: type[Task]) -> Iterator[str]:
    doc = (task.__doc__ or "").partition("Args:\n")[0]
    yield _prose(about(task).partition("\n\n")[0])
    yield _prose(doc)
    said: dict[str, str] = {}
    for cls in task.__mro__:
        found = arguments(cls)
        said = {key: text for key, text in found.items() if not text.startswith("see `")} | said
    rows = [
        (
            code(option),
            expected(hints(task)[option]),
            code(shown(field.default)),
            _prose(said[option]),
        )
        for option, field in task.options().items()
    ]
    yield table(HEAD, rows)


def _flags() -> Iterator[str]:
    ours = {*switch_flags(), *option_flags()}
    yield "### Flags of schemes"
    yield (
        "Beside [`position`](decoders.md#what-position-may-say), which is the shortest way, each "
        "scheme has a switch and flags for its options; the pages say what they mean."
    )
    by_scheme: dict[str, list[str]] = {}
    for flag, name in switch_flags().items():
        by_scheme.setdefault(name, []).append(flag)
    for flag, takers in option_flags().items():
        for name, _ in takers:
            by_scheme.setdefault(name, []).append(flag)
    yield table(
        ("scheme", "flags"),
        [
            (f"[`{name}`](schemes/{name}.md)", listed(map(code, dict.fromkeys(flags))))
            for name, flags in sorted(by_scheme.items())
        ],
    )
    yield "### Flags of x-transformers"
    yield ("They mean what they mean there; one that takes a value for each layer takes a list.")
    theirs = decoder_flags() - ours - {"position", "dim", "depth", "heads"}
    twins = {flag for flag in theirs if flag.removeprefix("cross_") in {*theirs, *ours} - {flag}}
    yield (
        f"Of its `Decoder`: {listed(map(code, sorted(theirs - twins)))}. For cross attention "
        f"{len(twins)} of them have a twin, `cross_attn_kv_heads` of `attn_kv_heads`, say."
    )
    wrapper = wrapper_flags() - GIVEN_BY_TASK - {"max_seq_len"}
    yield f"Of its `TransformerWrapper`: {listed(map(code, sorted(wrapper)))}."


def _prose(doc: str) -> str:
    """A docstring's paragraphs as one, as Markdown about YAML."""
    return re.sub(r"\bNone\b", "null", " ".join(doc.split()).replace("``", "`"))
