"""Seeded mutations of config files: what slips of a hand, of an editor and of a disk leave."""

import random
import re
from collections.abc import Callable

ODD = [
    "",
    "~",
    "null",
    "true",
    "no",
    "on",
    "=",
    "<<",
    "- 1",
    "? x",
    "a: b: c",
    "[",
    "]",
    "{",
    "}",
    "{}",
    "[]",
    "[[]]",
    "{a: {b: c}}",
    "[1, x, null]",
    "*nowhere",
    "&a",
    "&a 1",
    "!!int x",
    "!!python/object:os.system {}",
    "!!binary aGVsbG8=",
    "!!set {a, b}",
    "!!timestamp 2001-01-01",
    "!x 1",
    "0",
    "-1",
    "1",
    "2",
    "3",
    "08",
    "0o17",
    "0x1F",
    "0b11",
    "1_000",
    "1e3",
    "1e-3",
    "1.0e+400",
    "-0.0",
    ".5",
    "1.",
    ".inf",
    "-.inf",
    ".nan",
    "12:30:00",
    "2024-01-01",
    "2024-02-30T25:61:00Z",
    "9" * 20,
    "9" * 60,
    "9" * 5000,
    "-" + "9" * 30,
    "1e" + "9" * 30,
    "4294967296",
    "1000000007",
    "'",
    '"',
    "'x",
    '"\\ud800"',
    '"\\0"',
    '"\\U0010ffff"',
    '"\\UFFFFFFFF"',
    "'a''b'",
    "|",
    ">-",
    "| x",
    "%TAG",
    "@x",
    "`x",
    "x #y",
    "x # y",
    "x: y",
    "~/x",
    "$HOME/x",
    "$NOWHERE/x",
    "${",
    "../..",
    "/",
    "/dev/null",
    "/dev/zero",
    "nowhere.yaml",
    "*.yaml",
    "x" * 5000,
    "é" * 300,
    "日本",
    "\u202e",
    "\U0001f600",
    "\x00",
    "\x07",
    "\x85",
    "\u2028",
    "\t",
    "\t x",
    "rotary",
    "cope",
    "[absolute, cope]",
    "{layers: [rotary, none]}",
    "{heads: [cope, rotary]}",
    "{name: cope, max_pos: 0}",
    "{name: [cope]}",
    "{name: }",
    "copy",
    "text",
    "indexing",
    "[0.9, 2.0]",
    "bf16",
    "all",
]
"""Values that are something else than they look like, or nothing that any key takes."""

BOMB = "bomb:\n  a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"  {new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
PIECES = [
    BOMB,
    "x: &x {<<: *x}\n",
    "<<: {model: {dim: 3}}\n",
    "<<: [{model: {dim: 3}}, 4]\n",
    "---\n",
    "...\n",
    "%YAML 9.9\n---\n",
    "%YAML 1." + "9" * 5000 + "\n---\n",
    "[" * 2000,
    "{a: " * 500,
    "- " * 500,
    "? " * 300,
    "!" * 300,
    "x: " + "[" * 60 + "]" * 60 + "\n",
    "extends: config.yaml\n",
    "extends: [config.yaml, ~]\n",
    "sweep: {train.seed: [0, 1]}\n",
    "sweep: {train.seed: []}\n",
    "tune: {}\n",
    "model:\n",
    "task:\n",
    "train: []\n",
    "evaluate: {splits: [x]}\n",
    "x" * 3000 + ": 1\n",
    "&a a: *a\n",
    "? [a, b]\n: 1\n",
    "? {a: b}\n: 1\n",
    "!!str model: 1\n",
    "\ufeff",
    "# " + "é" * 50 + "\n",
    "\t- x\n",
    "model: &m {dim: 4}\nx: *m\n",
]
"""Lines that are put in as they are."""

KEYED = re.compile(r"^(\s*(?:- )?[\w.]+:)[ ]*(.*)$")
INLINE = re.compile(r"[\w.+-]+(?=[,}\]]|$)")


def mutated(text: str, draw: random.Random) -> bytes:
    """``text`` after one to three mutations."""
    content = text.encode()
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        content = draw.choice(MUTATIONS)(content, draw)
    return content


def _on_lines(change: Callable[[list[str], int, random.Random], None]) -> Callable[..., bytes]:
    def mutation(content: bytes, draw: random.Random) -> bytes:
        lines = content.decode("utf-8", "surrogateescape").splitlines(keepends=True) or ["\n"]
        change(lines, draw.randrange(len(lines)), draw)
        return "".join(lines).encode("utf-8", "surrogateescape")

    return mutation


def _drop(lines: list[str], at: int, draw: random.Random) -> None:
    del lines[at]


def _double(lines: list[str], at: int, draw: random.Random) -> None:
    lines.insert(at, lines[at])


def _swap(lines: list[str], at: int, draw: random.Random) -> None:
    other = draw.randrange(len(lines))
    lines[at], lines[other] = lines[other], lines[at]


def _indent(lines: list[str], at: int, draw: random.Random) -> None:
    lines[at] = draw.choice((" ", "  ", "\t", "\xa0", "- ")) + lines[at]


def _dedent(lines: list[str], at: int, draw: random.Random) -> None:
    lines[at] = lines[at].removeprefix(draw.choice((" ", "  ")))


def _odd_value(lines: list[str], at: int, draw: random.Random) -> None:
    keyed = KEYED.match(lines[at].rstrip("\n"))
    if keyed:
        lines[at] = f"{keyed[1]} {draw.choice(ODD)}\n"


def _odd_item(lines: list[str], at: int, draw: random.Random) -> None:
    items = list(INLINE.finditer(lines[at].rstrip("\n")))
    if items:
        item = draw.choice(items)
        lines[at] = lines[at][: item.start()] + draw.choice(ODD) + lines[at][item.end() :]


def _piece(lines: list[str], at: int, draw: random.Random) -> None:
    lines.insert(at, draw.choice(PIECES))


def _other_key(lines: list[str], at: int, draw: random.Random) -> None:
    keyed = KEYED.match(lines[at].rstrip("\n"))
    if keyed:
        letters = list(lines[at])
        letters[draw.randrange(len(keyed[1]))] = draw.choice("xX_. é-*&!#'\"{[")
        lines[at] = "".join(letters)


def _scaled(lines: list[str], at: int, draw: random.Random) -> None:
    factor = draw.choice((0, -1, 10, 1000, 10**9, 10**30, 0.5))
    lines[at] = re.sub(r"\d+", lambda number: str(int(number[0]) * factor), lines[at], count=1)


def _flip(content: bytes, draw: random.Random) -> bytes:
    flipped = bytearray(content or b"x")
    flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
    return bytes(flipped)


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def _put(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content) + 1)
    return (
        content[:at]
        + draw.choice((b"\0", b"\xff", b"\xc3", b"\t", b"\r", b"#", b"*", b"&"))
        + content[at:]
    )


def _encoded(content: bytes, draw: random.Random) -> bytes:
    text = content.decode("utf-8", "replace")
    return text.encode(draw.choice(("utf-16", "utf-8-sig", "utf-32", "latin-1")), "replace")


def _line_ends(content: bytes, draw: random.Random) -> bytes:
    return content.replace(b"\n", draw.choice((b"\r\n", b"\r", b"\n\n", b"\x00", b"  \n")))


MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [
    *map(_on_lines, (_drop, _double, _swap, _indent, _dedent, _piece, _other_key, _scaled)),
    *[_on_lines(_odd_value)] * 4,
    *[_on_lines(_odd_item)] * 2,
    _flip,
    _flip,
    _cut,
    _put,
    _encoded,
    _line_ends,
]
