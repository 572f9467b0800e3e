"""Vectors of numbers in code that numba compiles, and products of small matrices made of them.

A `Vector` is a machine register: `LANES` numbers that one instruction works on. Operators work lane
by lane, with a number beside a vector as with a vector full of it. What a processor cannot do at
once LLVM takes apart.
"""

from __future__ import annotations

import operator
import platform
from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.registry import cpu_target
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, register_model

from xcope.ops.compiled.runtime import FAST, compiled, f32, i32

# as numba sees the processor; NUMBA_CPU_FEATURES may say otherwise
_FEATURES = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
LANES = 16 if "+avx512f" in _FEATURES else 8 if "+avx" in _FEATURES else 4
_REGISTERS = 32 if LANES == 16 or platform.machine() in ("aarch64", "arm64") else 16
LINE = 4 * LANES  # bytes of a vector of 32-bit numbers

_ELEMENTS = {"float32": ir.FloatType(), "int32": ir.IntType(32), "bool": ir.IntType(1)}


class Vector(types.Type):  # type: ignore[misc]
    """The numba type of a vector: of float32, int32, or bool, as comparisons give."""

    def __init__(self, of: str):
        self.of = of
        super().__init__(name=f"Vector({of})")


@register_model(Vector)
class _Model(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, of: Vector):
        super().__init__(manager, of, _VECTORS[of.of])


_VECTORS = {of: ir.VectorType(element, LANES) for of, element in _ELEMENTS.items()}
FLOATS, INTEGERS, FLAGS = Vector("float32"), Vector("int32"), Vector("bool")
_SCALARS = {"float32": types.float32, "int32": types.int32}
_NOTHING = ir.Constant(ir.IntType(8).as_pointer(), None)  # what functions without result give


def _spread(builder: Any, x: Any) -> Any:
    """A vector full of a number."""
    one = ir.Constant(ir.VectorType(x.type, LANES), ir.Undefined)
    one = builder.insert_element(one, x, ir.IntType(32)(0))
    none = ir.Constant(one.type, ir.Undefined)
    return builder.shuffle_vector(one, none, ir.Constant(_VECTORS["int32"], [0] * LANES))


def _function(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Call one of LLVM's functions."""
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


# -- operators -----------------------------------------------------------------------------------


def _define(symbol: Any, ways: dict[str, tuple[Vector, Callable[..., Any]]]) -> None:
    """An operator of vectors: for each kind the kind of its result, and what builds it."""

    @infer_global(symbol)
    class _Typing(AbstractTemplate):  # type: ignore[misc]
        def generic(self, given: Any, _: Any) -> Any:
            kinds = {one.of for one in given if isinstance(one, Vector)}
            numbers = all(isinstance(one, Vector | types.Number) for one in given)
            if len(given) != 2 or len(kinds) != 1 or not numbers or not kinds <= ways.keys():
                return None
            return signature(ways[kinds.pop()][0], *given)

    def lower(context: Any, builder: Any, its: Any, given: Any) -> Any:
        kind = next(one.of for one in its.args if isinstance(one, Vector))
        both = [
            x
            if isinstance(of, Vector)
            else _spread(builder, context.cast(builder, x, of, _SCALARS[kind]))
            for of, x in zip(its.args, given, strict=True)
        ]
        return ways[kind][1](builder, *both)

    for left, right in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
        lower_builtin(symbol, left, right)(lower)


def _arithmetic(name: str, **options: Any) -> Callable[..., Any]:
    return lambda builder, x, y: getattr(builder, name)(x, y, **options)


def _comparison(name: str) -> dict[str, tuple[Vector, Callable[..., Any]]]:
    return {
        "float32": (FLAGS, lambda builder, x, y: builder.fcmp_ordered(name, x, y)),
        "int32": (FLAGS, lambda builder, x, y: builder.icmp_signed(name, x, y)),
    }


for _symbol, _name in ((operator.add, "add"), (operator.sub, "sub"), (operator.mul, "mul")):
    _define(
        _symbol,
        {
            "float32": (FLOATS, _arithmetic("f" + _name, flags=FAST)),
            "int32": (INTEGERS, _arithmetic(_name)),
        },
    )
_define(operator.truediv, {"float32": (FLOATS, _arithmetic("fdiv", flags=FAST))})
_define(operator.lshift, {"int32": (INTEGERS, _arithmetic("shl"))})
_define(operator.and_, {"bool": (FLAGS, _arithmetic("and_"))})
_define(operator.or_, {"bool": (FLAGS, _arithmetic("or_"))})
for _symbol, _name in (
    (operator.lt, "<"),
    (operator.le, "<="),
    (operator.gt, ">"),
    (operator.ge, ">="),
):
    _define(_symbol, _comparison(_name))


# -- memory and lanes ----------------------------------------------------------------------------


def _built(result: Any, *given: Any) -> Callable[[Callable[..., Any]], Any]:
    """A function of compiled code, from what builds it: of the builder and its arguments."""

    def define(build: Callable[..., Any]) -> Any:
        def typing(context: Any, *_: Any) -> Any:
            return signature(result, *given), lambda _c, builder, _s, its: build(builder, *its)

        # numba asks how many arguments there are
        names = ["context", *(f"x{n}" for n in range(len(given)))]
        typing.__signature__ = Signature(  # type: ignore[attr-defined]
            [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        )
        typing.__name__ = build.__name__
        return intrinsic(typing)

    return define


def _at(builder: Any, address: Any, element: Any) -> Any:
    return builder.inttoptr(address, element.as_pointer())


@_built(FLOATS, types.int64)
def load(builder: Any, address: Any) -> Any:
    return builder.load(_at(builder, address, _VECTORS["float32"]), align=4)


@_built(types.void, types.int64, FLOATS)
def store(builder: Any, address: Any, x: Any) -> Any:
    builder.store(x, _at(builder, address, x.type), align=4)
    return _NOTHING


@_built(INTEGERS, types.int64)
def load_integers(builder: Any, address: Any) -> Any:
    return builder.load(_at(builder, address, _VECTORS["int32"]), align=4)


@_built(types.void, types.int64, INTEGERS)
def store_integers(builder: Any, address: Any, x: Any) -> Any:
    builder.store(x, _at(builder, address, x.type), align=4)
    return _NOTHING


def _places(builder: Any, base: Any, index: Any) -> Any:
    """Addresses of numbers of 4 bytes, counted from a base."""
    wide = builder.sext(index, ir.VectorType(ir.IntType(64), LANES))
    bytes_ = builder.shl(wide, ir.Constant(wide.type, [2] * LANES))
    every = builder.add(bytes_, _spread(builder, base))
    return builder.inttoptr(every, ir.VectorType(ir.FloatType().as_pointer(), LANES))


@_built(FLOATS, types.int64, INTEGERS, FLAGS, FLOATS)
def gather(builder: Any, base: Any, index: Any, where: Any, other: Any) -> Any:
    """The numbers at base + 4 index where asked for, ``other`` elsewhere."""
    name = f"llvm.masked.gather.v{LANES}f32.v{LANES}p0"
    places = _places(builder, base, index)
    return _function(builder, name, other.type, places, ir.IntType(32)(4), where, other)


@_built(types.void, types.int64, INTEGERS, FLAGS, FLOATS)
def scatter(builder: Any, base: Any, index: Any, where: Any, x: Any) -> Any:
    """Write numbers to base + 4 index where asked for."""
    name = f"llvm.masked.scatter.v{LANES}f32.v{LANES}p0"
    places = _places(builder, base, index)
    _function(builder, name, ir.VoidType(), x, places, ir.IntType(32)(4), where)
    return _NOTHING


@_built(FLOATS, types.float32)
def spread(builder: Any, x: Any) -> Any:
    return _spread(builder, x)


@_built(INTEGERS, types.int32)
def spread_integer(builder: Any, x: Any) -> Any:
    return _spread(builder, x)


@_built(INTEGERS)
def lane_numbers(builder: Any) -> Any:
    """0, 1, 2, …"""
    return ir.Constant(_VECTORS["int32"], list(range(LANES)))


@_built(FLOATS, FLAGS, FLOATS, FLOATS)
def where(builder: Any, flags: Any, x: Any, y: Any) -> Any:
    return builder.select(flags, x, y)


@_built(INTEGERS, FLAGS, INTEGERS, INTEGERS)
def where_integers(builder: Any, flags: Any, x: Any, y: Any) -> Any:
    return builder.select(flags, x, y)


@_built(types.boolean, FLAGS)
def any_of(builder: Any, flags: Any) -> Any:
    bits = builder.bitcast(flags, ir.IntType(LANES))
    return builder.icmp_unsigned("!=", bits, ir.IntType(LANES)(0))


@_built(types.int32, INTEGERS)
def largest(builder: Any, x: Any) -> Any:
    return _function(builder, f"llvm.vector.reduce.smax.v{LANES}i32", ir.IntType(32), x)


@_built(types.int32, INTEGERS)
def smallest(builder: Any, x: Any) -> Any:
    return _function(builder, f"llvm.vector.reduce.smin.v{LANES}i32", ir.IntType(32), x)


@_built(types.float32, FLOATS)
def total(builder: Any, x: Any) -> Any:
    """The sum of all lanes, half by half."""
    none = ir.Constant(x.type, ir.Undefined)
    half = LANES // 2
    while half:
        order = [(lane + half) % LANES for lane in range(LANES)]
        moved = builder.shuffle_vector(x, none, ir.Constant(_VECTORS["int32"], order))
        x = builder.fadd(x, moved)
        half //= 2
    return builder.extract_element(x, ir.IntType(32)(0))


@_built(INTEGERS, FLOATS)
def integers_of(builder: Any, x: Any) -> Any:
    """Towards 0; of what is no int32, or NaN, any number."""
    return builder.fptosi(x, _VECTORS["int32"])


@_built(FLOATS, INTEGERS)
def floats_of(builder: Any, x: Any) -> Any:
    return builder.sitofp(x, _VECTORS["float32"])


@_built(FLOATS, INTEGERS)
def bits_as_floats(builder: Any, x: Any) -> Any:
    return builder.bitcast(x, _VECTORS["float32"])


@_built(FLOATS, FLOATS)
def floor(builder: Any, x: Any) -> Any:
    return _function(builder, f"llvm.floor.v{LANES}f32", x.type, x)


# Beyond them exp is 0 and ∞. e^−50 is nothing beside 1, and far from the denormal numbers, which
# would make everything slow that meets them.
LOWEST, HIGHEST = f32(-50.0), f32(89.0)


@compiled
def exp(x: Any) -> Any:
    """e^x by Cephes' polynomial, to 1e-7.

    Of NaN it is NaN: comparisons are so turned that it falls through them.
    """
    y = where(x < LOWEST, spread(LOWEST), x)
    y = where(y > HIGHEST, spread(HIGHEST), y)
    n = floor(y * f32(1.44269504) + f32(0.5))
    y = y - n * f32(0.693359375) - n * f32(-2.12194440e-4)
    z = y * f32(1.9875691500e-4) + f32(1.3981999507e-3)
    z = z * y + f32(8.3334519073e-3)
    z = z * y + f32(4.1665795894e-2)
    z = z * y + f32(1.6666665459e-1)
    z = z * y + f32(5.0000001201e-1)
    z = z * (y * y) + y + f32(1)
    power = bits_as_floats((integers_of(n) + i32(127)) << i32(23))
    return where(x <= LOWEST, spread(f32(0)), z * power)


@compiled
def sigmoid(x: Any) -> Any:
    return f32(1) / (exp(f32(0) - x) + f32(1))


@compiled
def exp_of_minus_abs(x: Any) -> Any:
    return exp(where(x > f32(0), f32(0) - x, x))


@compiled
def softplus(x: Any, e: Any) -> Any:
    """log(1 + e^x), to 1e-7 of it; ``e`` is `exp_of_minus_abs`.

    log(1 + e) = 2 artanh(u), u = e / (e + 2), at most 1/3.
    """
    u = e / (e + f32(2))
    z = u * u
    y = z * f32(1 / 13) + f32(1 / 11)
    y = y * z + f32(1 / 9)
    y = y * z + f32(1 / 7)
    y = y * z + f32(1 / 5)
    y = y * z + f32(1 / 3)
    y = y * z + f32(1)
    return where(x > f32(0), x, spread(f32(0))) + (u + u) * y


@_built(types.void, types.int64, types.int64, types.int64, types.int64)
def transpose(builder: Any, rows: Any, step: Any, out: Any, out_step: Any) -> Any:
    """Write LANES rows of LANES numbers, ``step`` bytes apart, as columns."""
    number, vector = ir.IntType(64), _VECTORS["float32"]
    those = []
    for r in range(LANES):
        address = builder.add(rows, builder.mul(number(r), step))
        those.append(builder.load(_at(builder, address, vector), align=4))
    apart = 1
    while apart < LANES:
        for r in range(LANES):
            if r & apart:
                continue
            x, y = those[r], those[r | apart]
            first = [n if not n & apart else LANES + n - apart for n in range(LANES)]
            second = [n + apart if not n & apart else LANES + n for n in range(LANES)]
            for place, order in ((r, first), (r | apart, second)):
                those[place] = builder.shuffle_vector(x, y, ir.Constant(_VECTORS["int32"], order))
        apart *= 2
    for c in range(LANES):
        address = builder.add(out, builder.mul(number(c), out_step))
        builder.store(those[c], _at(builder, address, vector), align=4)
    return _NOTHING


# -- products of matrices ------------------------------------------------------------------------


def _block(rows: int, vectors: int) -> Any:
    """C = A B, or C += A B, for a block of C that fits into registers: rows × vectors.

    Its arguments: addresses and, in bytes, steps of C from row to row; of A from row to row and
    along a row; of B from row to row; how many numbers a row of A has; whether C is there already.
    """
    number, vector = ir.IntType(64), _VECTORS["float32"]

    def build(
        builder: Any, c: Any, c_step: Any, a: Any, a_step: Any, along: Any, b: Any, b_step: Any,
        depth: Any, there: Any,
    ) -> Any:  # fmt: skip
        def place(base: Any, row: Any, column: int) -> Any:
            return _at(builder, builder.add(builder.add(base, row), number(LINE * column)), vector)

        cells = [(m, n) for m in range(rows) for n in range(vectors)]
        c_rows = [builder.mul(c_step, number(m)) for m in range(rows)]
        a_rows = [builder.mul(a_step, number(m)) for m in range(rows)]
        begin = builder.block
        old, loop, end = (builder.append_basic_block(name) for name in ("old", "loop", "end"))
        builder.cbranch(there, old, loop)

        builder.position_at_end(old)
        before = [builder.load(place(c, c_rows[m], n), align=4) for m, n in cells]
        builder.branch(loop)

        builder.position_at_end(loop)
        left, its_a, its_b = (builder.phi(number) for _ in range(3))
        sums = [builder.phi(vector) for _ in cells]
        for block, first in (
            (begin, [ir.Constant(vector, [0.0] * LANES)] * len(cells)),
            (old, before),
        ):
            for phi, value in zip((left, its_a, its_b, *sums), (depth, a, b, *first), strict=True):
                phi.add_incoming(value, block)
        row_of_b = [builder.load(place(its_b, number(0), n), align=4) for n in range(vectors)]
        after = []
        for m in range(rows):
            address = _at(builder, builder.add(its_a, a_rows[m]), ir.FloatType())
            x = _spread(builder, builder.load(address, align=4))
            for n in range(vectors):
                product = builder.fmul(x, row_of_b[n], flags=FAST)
                after.append(builder.fadd(sums[m * vectors + n], product, flags=FAST))
        rest = builder.sub(left, number(1))
        following = (rest, builder.add(its_a, along), builder.add(its_b, b_step), *after)
        for phi, value in zip((left, its_a, its_b, *sums), following, strict=True):
            phi.add_incoming(value, builder.block)
        builder.cbranch(builder.icmp_signed(">", rest, number(0)), loop, end)

        builder.position_at_end(end)
        for (m, n), value in zip(cells, after, strict=True):
            builder.store(value, place(c, c_rows[m], n), align=4)
        return _NOTHING

    build.__name__ = f"block_{rows}x{vectors}"
    return _built(types.void, *[types.int64] * 8, types.boolean)(build)


# as many sums as registers hold beside what is multiplied
_MOST = _REGISTERS // 2
TALL_1, TALL_2, TALL_4 = 8, min(8, _MOST // 2), _MOST // 4
_tall_1, _tall_2, _tall_4 = _block(TALL_1, 1), _block(TALL_2, 2), _block(TALL_4, 4)
_flat_1, _flat_2, _flat_4 = _block(1, 1), _block(1, 2), _block(1, 4)


@compiled
def multiply(
    c: int, c_step: int, a: int, a_step: int, along: int, b: int, b_step: int, rows: int,
    columns: int, depth: int, there: bool,
) -> None:  # fmt: skip
    """C = A B, or, where C is ``there``, C += A B: each number summed along A's row, in its order.

    Args:
        c: address; of (rows, columns).
        c_step: bytes from row to row; as the other steps.
        a: address; of (rows, depth).
        along: bytes along a row of A.
        b: address; of (depth, columns), which lie side by side.
        columns: a multiple of LANES.
    """
    if depth <= 0:
        return
    column, end = 0, columns // LANES
    while column < end:
        wide = 4 if end - column >= 4 else 2 if end - column >= 2 else 1
        cn, bn, row = c + LINE * column, b + LINE * column, 0
        if wide == 4:
            while row + TALL_4 <= rows:
                _tall_4(
                    cn + row * c_step, c_step, a + row * a_step, a_step, along, bn, b_step, depth,
                    there,
                )  # fmt: skip
                row += TALL_4
            while row < rows:
                _flat_4(
                    cn + row * c_step, c_step, a + row * a_step, a_step, along, bn, b_step, depth,
                    there,
                )  # fmt: skip
                row += 1
        elif wide == 2:
            while row + TALL_2 <= rows:
                _tall_2(
                    cn + row * c_step, c_step, a + row * a_step, a_step, along, bn, b_step, depth,
                    there,
                )  # fmt: skip
                row += TALL_2
            while row < rows:
                _flat_2(
                    cn + row * c_step, c_step, a + row * a_step, a_step, along, bn, b_step, depth,
                    there,
                )  # fmt: skip
                row += 1
        else:
            while row + TALL_1 <= rows:
                _tall_1(
                    cn + row * c_step, c_step, a + row * a_step, a_step, along, bn, b_step, depth,
                    there,
                )  # fmt: skip
                row += TALL_1
            while row < rows:
                _flat_1(
                    cn + row * c_step, c_step, a + row * a_step, a_step, along, bn, b_step, depth,
                    there,
                )  # fmt: skip
                row += 1
        column += wide
