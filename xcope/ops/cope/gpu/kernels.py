"""The Triton kernels of CoPE attention; `xcope.ops.cope.gpu.launch` launches them.

The algorithm and the letters are those of `xcope.ops.cope.cpu.walk`. What differs on a GPU:

- Logits, their bias and the table logits are in units of log 2, so that exp is one instruction.
- Counts are carried from tile to tile as integers in units of 2^−FB, so that a count may be taken
  back. FB is chosen by the host so that max_pos and one tile fit into 31 bits.
- In a tile, running sums are products with a triangle of ones: tensor cores are idle there. Gates
  go in as two float16 pieces, 22 bits: where a count crosses an integer the bias' slope jumps, so
  that a position which is off by 2^−11 makes one slope in a thousand wrong.
- The table logits lie in global memory, (rows W) in float32. No element gathers from them: between
  the integer k and the next the bias rises by L[k + 1] − L[k], and the sum of these ramps over the
  few integers that a tile's positions span is the bias. The gradient of the table logits are the
  same ramps' sums over the row, each written once, when the walk has passed it.

- Where a tile has keys that its rows do not see, numbers that are not finite are kept from them: in
  products, 0 · NaN is NaN.

Each program owns a tile of queries (`forward`, `backward_q`) or of keys (`backward_k`) and writes
what no other writes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

PTX = tl.constexpr(not triton.knobs.runtime.interpret and torch.version.hip is None)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


# -- elementwise ---------------------------------------------------------------------------------


@triton.jit
def _sigmoid(a):
    """Of a logit in units of log 2; of 0 it is 0.5 exactly, which lands counts on integers."""
    x = 1.0 + tl.exp2(-a)
    if PTX:  # a division looks after denormal numbers, in four instructions more
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / x


@triton.jit
def _between(w, sharp, SOFT: tl.constexpr):
    """How far the bias has gone from one position to the next at w in 0 … 1."""
    if SOFT:
        return _sigmoid((2.0 * w - 1.0) * (sharp * LOG2E))
    else:
        return w


@triton.jit
def _slope(r, sharp, SOFT: tl.constexpr):
    """Derivative of `_between` at the fraction of r."""
    if SOFT:
        u = _between(r - tl.floor(r), sharp, SOFT)
        return 2.0 * sharp * (u - u * u)
    else:
        return 1.0


@triton.jit
def _triangle(N: tl.constexpr, FROM: tl.constexpr, dtype: tl.constexpr):
    """x @ it: sums of x from each column to the last, or (not FROM) from the first to each."""
    at = tl.arange(0, N)
    if FROM:
        ones = at[:, None] >= at[None, :]
    else:
        ones = at[:, None] <= at[None, :]
    return ones.to(tl.float32).to(dtype)


@triton.jit
def _sums(x, triangle, PIECES: tl.constexpr, FROM: tl.constexpr, PRECISION: tl.constexpr):
    """Running sums along the rows of x, in one or two pieces of the triangle's dtype; 0: exact."""
    if PIECES == 0:
        return tl.cumsum(x, 1, reverse=FROM)
    else:
        sums = tl.zeros([x.shape[0], x.shape[1]], tl.float32)
        piece = x.to(triangle.dtype)
        if PIECES == 2:
            rest = (x - piece.to(tl.float32)).to(triangle.dtype)
            sums = _dot(rest, triangle, sums, PRECISION)
        return _dot(piece, triangle, sums, PRECISION)


@triton.jit
def _halves(x):
    """(M N) → its left and its right half."""
    return tl.split(tl.permute(tl.reshape(x, [x.shape[0], 2, x.shape[1] // 2]), (0, 2, 1)))


@triton.jit
def _whole(left, right):
    """The other way round."""
    both = tl.permute(tl.join(left, right), (0, 2, 1))
    return tl.reshape(both, [left.shape[0], 2 * left.shape[1]])


@triton.jit
def _count(counted, last, FB: tl.constexpr):
    """Of fixed-point counts (M) the position below, the rest, and how far the last position is."""
    base = tl.minimum(counted >> FB, last)
    rest = (counted & ((1 << FB) - 1)).to(tl.float32) * (0.5**FB)
    rest += ((counted >> FB) - base).to(tl.float32)
    return base, rest, (last - base).to(tl.float32)


@triton.jit
def _fixed(count, FB: tl.constexpr):
    return (count * (2.0**FB) + 0.5).to(tl.int32)


@triton.jit
def _number(x):
    """0 where it is NaN: of NaN no integer may be made that says where to read."""
    return tl.where(x == x, x, 0.0)  # noqa: PLR0124


@triton.jit
def _steps(above, limit):
    """How many integers the positions of a tile span, whose rows reach so far above their base."""
    return tl.max(tl.minimum(_number(above), limit), 0).to(tl.int32) + 1


@triton.jit
def _interpolate(Ls, cells, ends, r, steps, less, sharp, SOFT: tl.constexpr):
    """The bias at r above the cells, and its rise to the next position: a sum of ramps.

    r (M N); cells, ends (M 1): where the table logits at r = 0 and at the last position are. The
    bias is ``less`` (M 1) lower. The rise is not in units of log 2.
    """
    here = tl.load(Ls + cells)
    there = tl.load(Ls + tl.minimum(cells + 1, ends))
    after = tl.load(Ls + tl.minimum(cells + 2, ends))
    bias = tl.zeros_like(r) + (here - less)
    rise = tl.zeros_like(r)
    for n in tl.range(0, steps, num_stages=1):
        later = tl.load(Ls + tl.minimum(cells + n + 3, ends))  # ahead, as it takes its time
        above = r - n
        bias += _between(tl.clamp(above, 0.0, 1.0), sharp, SOFT) * (there - here)
        rise = tl.where(above >= 0.0, (there - here) * LN2, rise)
        here = there
        there = after
        after = later
    return bias, rise


@triton.jit
def _seen(
    rows, keys, offset, NK, first, past, mask,
    mask_i, mask_j, CAUSAL: tl.constexpr, DOCS: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Which keys the rows see, (rows keys). ``first``, ``past`` (rows): of their documents."""
    seen = (keys < NK)[None, :]
    if CAUSAL:
        seen = seen & (keys[None, :] <= rows[:, None] + offset)
    if DOCS:
        seen = seen & (keys[None, :] >= first[:, None])
        if not CAUSAL:
            seen = seen & (keys[None, :] < past[:, None])
    if MASK == 1:
        allowed = tl.load(mask + keys * mask_j, mask=keys < NK, other=0) != 0
        seen = seen & allowed[None, :]
    if MASK == 2:
        inside = (rows >= 0)[:, None] & (keys < NK)[None, :]
        at = mask + rows[:, None].to(tl.int64) * mask_i + keys[None, :] * mask_j
        seen = seen & (tl.load(at, mask=inside, other=0) != 0)
    return seen


@triton.jit
def _masked(
    s, a, rows, keys, offset, NK, first, past, mask,
    mask_i, mask_j, CAUSAL: tl.constexpr, DOCS: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Logits s and a of the gates, both −∞ where the rows do not see the keys."""
    seen = _seen(rows, keys, offset, NK, first, past, mask, mask_i, mask_j, CAUSAL, DOCS, MASK)
    return tl.where(seen, s, -float("inf")), tl.where(seen, a, -float("inf"))


@triton.jit
def _mine(tiles):
    """Row of the batch and head, as one number, and tile of this program; a grid's other
    dimensions would hold only 65,535 of the former."""
    return (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles


@triton.jit
def _dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b. "interpreted": Triton's interpreter takes bfloat16's bits for its numbers."""
    if PRECISION == "interpreted":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _products(x, y, PRECISION: tl.constexpr):
    """x yᵀ: of each row of the one with each of the other."""
    zero = tl.zeros([x.shape[0], y.shape[0]], tl.float32)
    return _dot(x, tl.trans(y), zero, PRECISION)


@triton.jit
def _load(base, rows, N, stride, cols, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """A tile of a (n d) matrix, zeros outside; the host sees to it that 31 bits can say where."""
    inside = (rows < N)[:, None]
    if BLOCK != WIDTH:
        inside = inside & (cols < WIDTH)[None, :]
    return tl.load(base + (rows[:, None] * stride + cols[None, :]), inside, other=0.0)


@triton.jit
def _stray(x):
    """Which numbers are not finite."""
    return tl.where(tl.abs(x.to(tl.float32)) < float("inf"), 0, 1)


@triton.jit
def _calm(x):
    """0 where a number is not finite."""
    return tl.where(_stray(x) == 0, x, 0.0).to(x.dtype)


@triton.jit
def _strays(values):
    """Of which keys not all values are finite, (N)."""
    return tl.max(_stray(values), 1)


@triton.jit
def _meet(acc, values, strays, seen):
    """NaN for rows that see such a key, and the values without what is not finite."""
    meets = tl.max((seen & (strays > 0)[None, :]).to(tl.int32), 1)
    return tl.where((meets > 0)[:, None], float("nan"), acc), _calm(values)


# -- table logits --------------------------------------------------------------------------------


@triton.jit
def table_logits(
    q, e, L,
    q_b, q_h, q_i, e_h, e_p, H, row0, ROWS, P, W,
    D: tl.constexpr, BD: tl.constexpr, M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """L = log2(e) q eᵀ of the rows row0 …, (b h ROWS W), float32."""
    bh, tile = _mine(tl.cdiv(ROWS, M))
    rows = tile * M + tl.arange(0, M)
    cols = tl.program_id(1) * N + tl.arange(0, N)
    dims = tl.arange(0, BD)
    qs = q + (bh // H) * q_b + (bh % H) * q_h
    es = e + (bh % H) * e_h
    its_q = _load(qs, row0 + rows, row0 + ROWS, q_i, dims, D, BD)
    its_e = _load(es, tl.minimum(cols, P - 1), P, e_p, dims, D, BD)
    logits = _products(its_q, its_e, PRECISION) * LOG2E
    at = L + bh * ROWS * W + rows[:, None].to(tl.int64) * W + cols[None, :]
    tl.store(at, logits, (rows < ROWS)[:, None] & (cols < W)[None, :])


# -- forward -------------------------------------------------------------------------------------


@triton.jit
def forward(
    q, k, v, gate_k, L, out, residue, lse, count, start, mask, first, past,
    q_b, q_h, q_i, k_b, k_h, k_j, v_b, v_h, v_j, g_b, g_h, g_j, m_b, m_h, m_i, m_j,
    H, GROUPS, NQ, NK, row0, ROWS, W, LENGTH, scale, last, sharp,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    CAUSAL: tl.constexpr, DOCS: tl.constexpr, MASK: tl.constexpr, GATES: tl.constexpr,
    SOFT: tl.constexpr, FB: tl.constexpr, PIECES: tl.constexpr, PRECISION: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """A tile of queries against the keys that it sees, from the diagonal to the start.

    While it counts, C keys at a time, then N; C divides N.

    Writes out (b h i dv), what rounding took from it (where PIECES > 0), lse (b h i), the log2 of
    Σ 2^logit, and per row the count at which it stopped counting and the key of that, int32.
    """
    tiles = tl.cdiv(ROWS, M)
    bh, tile = _mine(tiles)
    batch, head = bh // H, bh % H
    tile = tiles - 1 - tile  # the longest rows first
    local = tile * M + tl.arange(0, M)
    rows = tl.where(local < ROWS, row0 + local, -1)
    offset = NK - NQ
    dims, vdims = tl.arange(0, BD), tl.arange(0, BDV)
    ks = k + batch * k_b + (head // GROUPS) * k_h
    vs = v + batch * v_b + (head // GROUPS) * v_h
    gs = gate_k + batch * g_b + (head // GROUPS) * g_h
    ms = mask + batch * m_b + head * m_h
    Ls = L + bh * ROWS * W
    table_rows = tl.where(local < ROWS, local, 0) * W

    its_q = _load(q + batch * q_b + head * q_h, row0 + local, row0 + ROWS, q_i, dims, D, BD)
    last_bias = tl.load(Ls + table_rows + last)
    lo, hi, sure = 0, NK, NK
    if CAUSAL:
        hi = tl.minimum(NK, row0 + (tile + 1) * M + offset)
        sure = row0 + tile * M + offset + 1
    its_first = tl.zeros([M], tl.int32)
    its_past = its_first
    all_begun = 0
    if DOCS:
        its_first = tl.load(first + rows, rows >= 0, other=NK)
        all_begun = tl.max(its_first)
        lo = tl.min(its_first) // N * N
        if not CAUSAL:
            its_past = tl.load(past + rows, rows >= 0, other=0)
            hi = tl.max(its_past)
            sure = tl.min(tl.where(rows >= 0, its_past, NK))

    top = tl.full([M], -float("inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, BDV], tl.float32)
    triangle = _triangle(C, True, tl.float16)
    full = last << FB
    counted = tl.where(rows >= 0, 0, full)
    stopped = tl.full([M], 0, tl.int32) + hi
    its_ends = (table_rows + last)[:, None]
    j0 = (hi + C - 1) // C * C - C
    going = j0 >= lo
    while going:
        keys = j0 + tl.arange(0, C)
        its_k = _load(ks, keys, NK, k_j, dims, D, BD)
        its_v = _load(vs, keys, NK, v_j, vdims, DV, BDV)
        s = _products(its_q, its_k, PRECISION) * scale
        a = s
        if GATES:
            its_g = _load(gs, keys, NK, g_j, dims, D, BD)
            a = _products(its_q, its_g, PRECISION) * scale
        if GATES:  # a count that is not a number makes its key's bias none
            s = tl.where(a == a, s, a)  # noqa: PLR0124
        if (j0 < all_begun) | (j0 + C > sure) | (MASK > 0):
            s, a = _masked(
                s, a, rows, keys, offset, NK, its_first, its_past, ms, m_i, m_j, CAUSAL, DOCS, MASK
            )  # fmt: skip
            strays = _strays(its_v)
            if tl.max(strays, 0) > 0:
                seen = _seen(
                    rows, keys, offset, NK, its_first, its_past, ms, m_i, m_j, CAUSAL, DOCS, MASK
                )  # fmt: skip
                acc, its_v = _meet(acc, its_v, strays, seen)
        gates = _sigmoid(a)
        base, rest, limit = _count(counted, last, FB)
        here = _number(tl.sum(gates, 1))
        p = _sums(gates, triangle, 2 if PIECES else 0, True, PRECISION) + rest[:, None]
        cells, steps = (table_rows + base)[:, None], _steps(rest + here, limit)
        r = tl.minimum(p, limit[:, None])
        bias, _ = _interpolate(Ls, cells, its_ends, r, steps, 0.0, sharp, SOFT)
        s += bias
        live = (counted < full) & (its_first < j0 + C)
        counted = tl.where(live, counted + _fixed(here, FB), counted)
        stopped = tl.where(live, j0, stopped)
        new_top = tl.maximum(top, tl.max(s, 1))
        shift = tl.where(new_top == -float("inf"), 0.0, new_top)
        prob = tl.exp2(s - shift[:, None])
        fade = tl.exp2(top - shift)
        total = total * fade + tl.sum(prob, 1)
        acc = acc * fade[:, None]
        acc = _dot(prob.to(its_v.dtype), its_v, acc, PRECISION)
        top = new_top
        counting = (j0 > sure) | (j0 % N > 0)
        if j0 % N == 0:
            live = (counted < full) & (its_first < j0)
            counting = counting | (tl.max(live.to(tl.int32)) > 0)
        going = (j0 > lo) & counting
        j0 -= C

    # from here on every row's bias is that of the last position
    for j in range(lo, j0 + C, N):
        keys = j + tl.arange(0, N)
        its_k = _load(ks, keys, NK, k_j, dims, D, BD)
        s = _products(its_q, its_k, PRECISION)
        if DOCS or MASK > 0:
            seen = _seen(
                rows, keys, offset, NK, its_first, its_past, ms, m_i, m_j, CAUSAL, DOCS, MASK
            )  # fmt: skip
            s = tl.where(seen, s, -float("inf"))
        new_top = tl.maximum(top, tl.max(s, 1) * scale + last_bias)
        shift = new_top
        if DOCS or MASK > 0:
            shift = tl.where(new_top == -float("inf"), 0.0, new_top)
        prob = tl.exp2(s * scale - (shift - last_bias)[:, None])
        fade = tl.exp2(top - shift)
        total = total * fade + tl.sum(prob, 1)
        its_v = _load(vs, keys, NK, v_j, vdims, DV, BDV)
        acc = acc * fade[:, None]
        if DOCS or MASK > 0:
            strays = _strays(its_v)
            if tl.max(strays, 0) > 0:
                acc, its_v = _meet(acc, its_v, strays, seen)
        acc = _dot(prob.to(its_v.dtype), its_v, acc, PRECISION)
        top = new_top

    empty = (total == 0.0) & (local < ROWS)
    if tl.max(empty.to(tl.int32)) > 0:  # is there no key, or none with a logit above −∞?
        some = tl.zeros([M], tl.int32)
        for j in range(lo, hi, N):
            keys = j + tl.arange(0, N)
            seen = _seen(
                rows, keys, offset, NK, its_first, its_past, ms, m_i, m_j, CAUSAL, DOCS, MASK
            )  # fmt: skip
            some = tl.maximum(some, tl.max(seen.to(tl.int32), 1))
        empty = empty & (some == 0)
    acc = acc / tl.where(empty, 1.0, total)[:, None]
    inside = local < ROWS
    at = (bh * NQ + rows[:, None]) * DV + vdims[None, :]
    there = inside[:, None] & (vdims < DV)[None, :]
    rounded = acc.to(out.dtype.element_ty)
    tl.store(out + at, rounded, there)
    if PIECES > 0:
        tl.store(residue + at, (acc - rounded.to(tl.float32)).to(out.dtype.element_ty), there)
    at = bh * NQ + rows
    tl.store(lse + at, tl.where(empty, float("inf"), top + tl.log2(total)), inside)
    tl.store(count + at, counted, inside)
    tl.store(start + at, stopped, inside)


# -- backward ------------------------------------------------------------------------------------


@triton.jit
def backward_q(
    q, k, v, gate_k, e, L, out, residue, dout, lse, count, start, mask, first, past,
    dq, dL, dL_rounded, D_rows, edge_count, edge_lift, counts_from,
    q_b, q_h, q_i, k_b, k_h, k_j, v_b, v_h, v_j, g_b, g_h, g_j, m_b, m_h, m_i, m_j, e_h, e_p,
    H, GROUPS, NQ, NK, row0, ROWS, P, W, EDGES, LENGTH, scale, log2_scale, last, sharp,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    CAUSAL: tl.constexpr, DOCS: tl.constexpr, MASK: tl.constexpr, GATES: tl.constexpr,
    SOFT: tl.constexpr, FB: tl.constexpr, PIECES: tl.constexpr, PRECISION: tl.constexpr,
    PIECE: tl.constexpr, M: tl.constexpr, N: tl.constexpr, C: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """A tile of queries, from the start to the diagonal: dq and the table logits' gradient.

    Leaves for `backward_k`: D (b h i); for each tile of N keys that is counted in, the rows' count
    right of it and their lift, Σ dp of all keys left of it, (b h EDGES ROWS); and for each piece of
    PIECE rows the first key that is counted in, (b h pieces). dL is (b h ROWS W) in float32, and
    rounded to the inputs' dtype (b h ROWS P).
    """
    tiles = tl.cdiv(ROWS, M)
    bh, tile = _mine(tiles)
    batch, head = bh // H, bh % H
    tile = tiles - 1 - tile
    local = tile * M + tl.arange(0, M)
    inside = local < ROWS
    rows = tl.where(inside, row0 + local, -1)
    offset = NK - NQ
    dims, vdims = tl.arange(0, BD), tl.arange(0, BDV)
    ks = k + batch * k_b + (head // GROUPS) * k_h
    vs = v + batch * v_b + (head // GROUPS) * v_h
    gs = gate_k + batch * g_b + (head // GROUPS) * g_h
    ms = mask + batch * m_b + head * m_h
    table_rows = tl.where(inside, local, 0) * W
    Ls, dLs = L + bh * ROWS * W, dL + bh * ROWS * W

    its_q = _load(q + batch * q_b + head * q_h, row0 + local, row0 + ROWS, q_i, dims, D, BD)
    of_bh = bh * NQ * DV
    its_dout = _load(dout + of_bh, row0 + local, row0 + ROWS, DV, vdims, DV, BDV)
    its_out = _load(out + of_bh, row0 + local, row0 + ROWS, DV, vdims, DV, BDV)
    wide_out = its_out.to(tl.float32)
    if PIECES > 0:
        wide_out += _load(residue + of_bh, row0 + local, row0 + ROWS, DV, vdims, DV, BDV)
    its_D = tl.sum(its_dout.to(tl.float32) * wide_out, 1)
    tl.store(D_rows + bh * NQ + rows, its_D, inside)
    its_lse = tl.load(lse + bh * NQ + rows, inside, other=float("inf"))
    counted = tl.load(count + bh * NQ + rows, inside, other=0)
    stopped = tl.load(start + bh * NQ + rows, inside, other=NK)
    last_bias = tl.load(Ls + table_rows + last)

    lo, hi, sure = 0, NK, NK
    if CAUSAL:
        hi = tl.minimum(NK, row0 + (tile + 1) * M + offset)
        sure = row0 + tile * M + offset + 1
    its_first = tl.zeros([M], tl.int32)
    its_past = its_first
    all_begun = 0
    if DOCS:
        its_first = tl.load(first + rows, inside, other=NK)
        all_begun = tl.max(its_first)
        lo = tl.min(its_first) // N * N
        if not CAUSAL:
            its_past = tl.load(past + rows, inside, other=0)
            hi = tl.max(its_past)
            sure = tl.min(tl.where(inside, its_past, NK))
    counts = tl.maximum(tl.minimum(tl.min(stopped), tl.minimum(sure, hi)), 0) // N * N
    all_count = tl.max(stopped)
    pieces = tile * (M // PIECE) + tl.arange(0, M // PIECE)
    of_pieces = counts_from + bh * ((ROWS + PIECE - 1) // PIECE) + pieces
    tl.store(of_pieces, pieces * 0 + counts, pieces * PIECE < ROWS)

    acc = tl.zeros([M, BD], tl.float32)
    for j in range(lo, counts, N):
        keys = j + tl.arange(0, N)
        its_k = _load(ks, keys, NK, k_j, dims, D, BD)
        its_v = _load(vs, keys, NK, v_j, vdims, DV, BDV)
        s = _products(its_q, its_k, PRECISION)
        prob = tl.exp2(s * log2_scale + (last_bias - its_lse)[:, None])
        if DOCS or MASK > 0:
            seen = _seen(
                rows, keys, offset, NK, its_first, its_past, ms, m_i, m_j, CAUSAL, DOCS, MASK
            )  # fmt: skip
            prob = tl.where(seen, prob, 0.0)
            if (j < all_begun) | (MASK > 0):
                its_k, its_v = _calm(its_k), _calm(its_v)
        dp = _products(its_dout, its_v, PRECISION)
        ds = prob * (dp - its_D[:, None])
        acc = _dot(ds.to(its_k.dtype), its_k, acc, PRECISION)

    furthest = tl.minimum(counted >> FB, last)
    lift = tl.zeros([M], tl.float32)
    ds_sum = tl.zeros([M], tl.float32)
    bottom = furthest  # dL is written down to bottom + 2; of the next two there is so far:
    above = tl.zeros([M], tl.float32)
    at_bottom = tl.zeros([M], tl.float32)
    from_here = _triangle(C, True, tl.float16)
    to_here = _triangle(C, False, tl.bfloat16)
    edges = bh * EDGES * ROWS + local
    its_ends = (table_rows + last)[:, None]
    j_count = tl.maximum(counts, lo)
    next_k = _load(ks, j_count + tl.arange(0, C), NK, k_j, dims, D, BD)
    next_v = _load(vs, j_count + tl.arange(0, C), NK, v_j, vdims, DV, BDV)
    for j in tl.range(j_count, hi, C, num_stages=1):
        keys = j + tl.arange(0, C)
        its_k, its_v = next_k, next_v
        next_k = _load(ks, keys + C, NK, k_j, dims, D, BD)
        next_v = _load(vs, keys + C, NK, v_j, vdims, DV, BDV)
        s = _products(its_q, its_k, PRECISION) * log2_scale
        its_g = its_k
        a = s
        if GATES:
            its_g = _load(gs, keys, NK, g_j, dims, D, BD)
            a = _products(its_q, its_g, PRECISION) * log2_scale
        if (j < all_begun) | (j + C > sure) | (MASK > 0):
            s, a = _masked(
                s, a, rows, keys, offset, NK, its_first, its_past, ms, m_i, m_j, CAUSAL, DOCS, MASK
            )  # fmt: skip
            its_k, its_v, its_g = _calm(its_k), _calm(its_v), _calm(its_g)
        g = _sigmoid(a)
        if j < all_count:
            g = tl.where(keys[None, :] >= stopped[:, None], g, 0.0)
        counted = tl.maximum(counted - _fixed(_number(tl.sum(g, 1)), FB), 0)
        base, rest, limit = _count(counted, last, FB)
        passed = bottom - base
        steps = tl.max(passed) + 1
        p = _sums(g, from_here, 2 if PIECES else 0, True, PRECISION) + rest[:, None]
        cells = (table_rows + base)[:, None]
        r = tl.minimum(p, limit[:, None])
        bias, rise = _interpolate(Ls, cells, its_ends, r, steps, its_lse[:, None], sharp, SOFT)
        prob = tl.exp2(s + bias)
        dp = _products(its_dout, its_v, PRECISION)
        ds = prob * (dp - its_D[:, None])

        at = edges + (j // N) * ROWS
        if ((j + C) % N == 0) | (j + C >= hi):
            tl.store(edge_count + at, counted, inside)
        if j % N == 0:
            tl.store(edge_lift + at, lift, inside)
        lifts = ds * (rise * _slope(r, sharp, SOFT))
        da = (_sums(lifts, to_here, PIECES, False, PRECISION) + lift[:, None]) * (g - g * g)
        lift += tl.sum(lifts, 1)

        # the ramps' sums; what the walk has passed is written
        before = tl.sum(ds, 1)
        ds_sum += before
        new_bottom = tl.zeros([M], tl.float32)
        new_above = new_bottom
        for n in tl.range(0, steps + 1, num_stages=1):
            value = before
            if n < steps:
                before = tl.sum(ds * _between(tl.clamp(r - n, 0.0, 1.0), sharp, SOFT), 1)
                value -= before
            value += tl.where(n == passed, at_bottom, 0.0)
            value += tl.where(n == passed + 1, above, 0.0)
            if n >= 2:
                tl.store(dLs + (table_rows + base + n), value, inside & (n <= passed + 1))
            new_bottom = tl.where(n == 0, value, new_bottom)
            new_above = tl.where(n == 1, value, new_above)
        bottom, at_bottom, above = base, new_bottom, new_above

        if GATES:
            acc = _dot(da.to(its_g.dtype), its_g, acc, PRECISION)
        else:
            ds += da
        acc = _dot(ds.to(its_k.dtype), its_k, acc, PRECISION)
    tl.store(dLs + (table_rows + bottom), at_bottom, inside)
    tl.store(dLs + (table_rows + bottom + 1), above, inside & (bottom < last))
    acc = acc * scale
    tl.debug_barrier()  # what other threads of this program stored is read below

    es = e + head * e_h
    rounded = dL_rounded + bh * ROWS * P + tl.where(inside, local, 0).to(tl.int64) * P
    for p0 in range(0, P, BP):
        f = p0 + tl.arange(0, BP)
        reached = inside[:, None] & (f[None, :] <= tl.minimum(furthest + 1, last)[:, None])
        gradient = tl.load(dLs + table_rows[:, None] + f[None, :], reached, 0.0)
        # what a saturated row's plain tiles give the last position: a row's ds sum to 0
        saturated = (f[None, :] == last) & (furthest == last)[:, None]
        gradient = tl.where(saturated, gradient - ds_sum[:, None], gradient)
        there = inside[:, None] & (f < P)[None, :]
        tl.store(rounded[:, None] + f[None, :], gradient.to(dL_rounded.dtype.element_ty), there)
        its_e = _calm(_load(es, f, P, e_p, dims, D, BD))
        acc = _dot(gradient.to(its_e.dtype), its_e, acc, PRECISION)
    at = dq + (bh * NQ + rows[:, None]) * D + dims[None, :]
    tl.store(at, acc.to(dq.dtype.element_ty), inside[:, None] & (dims < D)[None, :])


@triton.jit
def _queries_of(
    j0, row0, ROWS, NK, offset, first, past,
    CAUSAL: tl.constexpr, DOCS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """From which tile of M queries to which query the chunk's queries see keys j0 … j0 + N."""
    begin, end = 0, ROWS
    if CAUSAL:
        begin = tl.maximum(0, j0 - offset - row0) // M * M
    if DOCS:
        keys = j0 + tl.arange(0, N)
        ends = tl.load(past + keys, keys < NK, other=0)
        end = tl.minimum(end, tl.max(ends) - row0)
        if not CAUSAL:
            begins = tl.load(first + keys, keys < NK, other=NK)
            begin = tl.maximum(0, tl.min(begins) - row0) // M * M
    return begin, end


@triton.jit
def _counting_until(
    froms, begin, end, edge, ROWS, PIECE: tl.constexpr, ALIGN: tl.constexpr
):  # fmt: skip
    """The multiple of ALIGN queries after which none counts left of the key ``edge``.

    The same for all kernels: ``begin`` is a multiple of ALIGN, too.
    """
    pieces = (ROWS + PIECE - 1) // PIECE
    until = begin
    for c0 in range(begin // PIECE, tl.cdiv(end, PIECE), 64):
        c = c0 + tl.arange(0, 64)
        counting = tl.load(froms + c, c < pieces, other=edge) < edge
        until = tl.maximum(until, tl.max(tl.where(counting, (c + 1) * PIECE, 0)))
    until = tl.minimum(until, tl.maximum(end, 0))
    return tl.cdiv(until, ALIGN) * ALIGN


@triton.jit
def backward_k(
    q, k, v, gate_k, L, dout, lse, D_rows, mask, first, past,
    part_k, part_v, dgate, edge_count, edge_lift, counts_from,
    q_b, q_h, q_i, k_b, k_h, k_j, v_b, v_h, v_j, g_b, g_h, g_j, m_b, m_h, m_i, m_j,
    H, GROUPS, NQ, NK, row0, ROWS, W, EDGES, LENGTH, scale, log2_scale, last, sharp,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    CAUSAL: tl.constexpr, DOCS: tl.constexpr, MASK: tl.constexpr, GATES: tl.constexpr,
    SOFT: tl.constexpr, FB: tl.constexpr, PIECES: tl.constexpr, PRECISION: tl.constexpr,
    PIECE: tl.constexpr, ADD: tl.constexpr, ALIGN: tl.constexpr, PLAIN: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """A tile of keys, against the queries until none counts in its PLAIN keys: dk, dv, dgate.

    Float32, without dk's scale; with ADD they are added to what is there: of queries before row0.
    `backward_k_plain` does the queries after these; PLAIN is its N, and N divides it.
    """
    bh, tile = _mine(tl.cdiv(NK, N))
    KH = H // GROUPS
    batch, key_head = bh // KH, bh % KH
    j0 = tile * N
    keys = j0 + tl.arange(0, N)
    offset = NK - NQ
    dims, vdims = tl.arange(0, BD), tl.arange(0, BDV)
    its_k = _load(k + batch * k_b + key_head * k_h, keys, NK, k_j, dims, D, BD)
    its_v = _load(v + batch * v_b + key_head * v_h, keys, NK, v_j, vdims, DV, BDV)
    its_g = its_k
    if GATES:
        its_g = _load(gate_k + batch * g_b + key_head * g_h, keys, NK, g_j, dims, D, BD)
    wide_j0 = j0 // PLAIN * PLAIN
    begin, _ = _queries_of(j0, row0, ROWS, NK, offset, first, past, CAUSAL, DOCS, M, N)
    wide_begin, end = _queries_of(
        wide_j0, row0, ROWS, NK, offset, first, past, CAUSAL, DOCS, ALIGN, PLAIN
    )

    acc_k = tl.zeros([N, BD], tl.float32)
    acc_v = tl.zeros([N, BDV], tl.float32)
    acc_g = tl.zeros([N, BD], tl.float32)
    from_here = _triangle(N, True, tl.float16)
    to_here = _triangle(N, False, tl.bfloat16)
    for group in range(0, GROUPS):
        head = key_head * GROUPS + group
        of = batch * H + head
        qs, ms = q + batch * q_b + head * q_h, mask + batch * m_b + head * m_h
        douts = dout + of * NQ * DV
        froms = counts_from + of * ((ROWS + PIECE - 1) // PIECE)
        Ls = L + of * ROWS * W
        until = _counting_until(froms, wide_begin, end, wide_j0 + PLAIN, ROWS, PIECE, ALIGN)
        for i in tl.range(begin, until, M, num_stages=1):
            local = i + tl.arange(0, M)
            inside = local < ROWS
            rows = tl.where(inside, row0 + local, -1)
            its_q = _load(qs, row0 + local, row0 + ROWS, q_i, dims, D, BD)
            its_dout = _load(douts, row0 + local, row0 + ROWS, DV, vdims, DV, BDV)
            its_lse = tl.load(lse + of * NQ + rows, inside, other=float("inf"))
            its_D = tl.load(D_rows + of * NQ + rows, inside, other=0.0)
            counting = inside & (tl.load(froms + local // PIECE, inside, other=NK) < j0 + N)
            table_rows = tl.where(inside, local, 0) * W
            its_past = tl.zeros([M], tl.int32)
            if DOCS and not CAUSAL:
                its_past = tl.load(past + rows, inside, other=0)
            # rows that see none of the keys may lie in a tile of queries that did not come here
            if CAUSAL:
                counting = counting & (rows + offset >= j0)
            elif DOCS:
                counting = counting & (its_past > j0)
            edge = (of * EDGES + tile) * ROWS + local
            counted = tl.load(edge_count + edge, counting, other=0)
            counted = tl.where(counting, counted, last << FB)
            lift = tl.load(edge_lift + edge, counting, other=0.0)
            s = _products(its_q, its_k, PRECISION) * log2_scale
            a = s
            if GATES:
                a = _products(its_q, its_g, PRECISION) * log2_scale
            partly = (i + M > ROWS) | (j0 + N > NK) | DOCS | (MASK > 0)
            if CAUSAL:
                partly = partly | (row0 + i + offset < j0 + N - 1)
            if partly:
                its_first = tl.zeros([M], tl.int32)
                if DOCS:
                    its_first = tl.load(first + rows, inside, other=NK)
                s, a = _masked(
                    s, a, rows, keys, offset, NK, its_first, its_past, ms, m_i, m_j,
                    CAUSAL, DOCS, MASK,
                )  # fmt: skip
            g = _sigmoid(a)
            slopes = (g - g * g).to(tl.float16 if PIECES else tl.float32)
            base, rest, limit = _count(counted, last, FB)
            p = _sums(g, from_here, 2 if PIECES else 0, True, PRECISION) + rest[:, None]
            its_ends, less = (table_rows + last)[:, None], its_lse[:, None]
            # in halves, as the ramps that they need are half as many
            g_left, g_right = _halves(g)
            p_left, p_right = _halves(p)
            here = _number(tl.sum(g_right, 1))
            cells, steps = (table_rows + base)[:, None], _steps(rest + here, limit)
            r_right = tl.minimum(p_right, limit[:, None])
            b_right, rise_right = _interpolate(
                Ls, cells, its_ends, r_right, steps, less, sharp, SOFT
            )
            rise_right *= _slope(r_right, sharp, SOFT)
            farther, rest, limit = _count(counted + _fixed(here, FB), last, FB)
            cells, steps = (table_rows + farther)[:, None], _steps(rest + tl.sum(g_left, 1), limit)
            r_left = tl.minimum(p_left - (farther - base).to(tl.float32)[:, None], limit[:, None])
            b_left, rise_left = _interpolate(Ls, cells, its_ends, r_left, steps, less, sharp, SOFT)
            rise_left *= _slope(r_left, sharp, SOFT)
            bias, rise = _whole(b_left, b_right), _whole(rise_left, rise_right)
            prob = tl.exp2(s + bias)
            acc_v = _dot(tl.trans(prob.to(its_dout.dtype)), its_dout, acc_v, PRECISION)
            dp = _products(its_dout, its_v, PRECISION)
            ds = prob * (dp - its_D[:, None])
            lifts = ds * rise
            da = _sums(lifts, to_here, PIECES, False, PRECISION) + lift[:, None]
            da = da * slopes.to(tl.float32)
            if GATES:
                acc_g = _dot(tl.trans(da.to(its_q.dtype)), its_q, acc_g, PRECISION)
            else:
                ds += da
            acc_k = _dot(tl.trans(ds.to(its_q.dtype)), its_q, acc_k, PRECISION)

    at = (bh * NK + keys[:, None]) * D + dims[None, :]
    inside = (keys < NK)[:, None] & (dims < D)[None, :]
    _put(part_k + at, acc_k, inside, ADD)
    if GATES:
        _put(dgate + at, acc_g * scale, inside, ADD)
    at = (bh * NK + keys[:, None]) * DV + vdims[None, :]
    _put(part_v + at, acc_v, (keys < NK)[:, None] & (vdims < DV)[None, :], ADD)


@triton.jit
def _put(at, values, inside, ADD: tl.constexpr):
    """Store, or add to what is there."""
    if ADD:
        values += tl.load(at, inside, other=0.0)
    tl.store(at, values, inside)


@triton.jit
def backward_k_plain(
    q, k, v, L, dout, lse, D_rows, mask, first, past, part_k, part_v, dk, dv, counts_from,
    q_b, q_h, q_i, k_b, k_h, k_j, v_b, v_h, v_j, m_b, m_h, m_i, m_j,
    H, GROUPS, NQ, NK, row0, ROWS, W, LENGTH, scale, log2_scale, last,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    CAUSAL: tl.constexpr, DOCS: tl.constexpr, MASK: tl.constexpr, PRECISION: tl.constexpr,
    PIECE: tl.constexpr, ALIGN: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """A tile of keys, against the queries that are saturated before they come to it.

    Their part of dk and dv is added to that of `backward_k`; dk gets its scale here.
    """
    bh, tile = _mine(tl.cdiv(NK, N))
    KH = H // GROUPS
    batch, key_head = bh // KH, bh % KH
    j0 = tile * N
    keys = j0 + tl.arange(0, N)
    offset = NK - NQ
    dims, vdims = tl.arange(0, BD), tl.arange(0, BDV)
    its_k = _load(k + batch * k_b + key_head * k_h, keys, NK, k_j, dims, D, BD)
    its_v = _load(v + batch * v_b + key_head * v_h, keys, NK, v_j, vdims, DV, BDV)
    begin, end = _queries_of(j0, row0, ROWS, NK, offset, first, past, CAUSAL, DOCS, ALIGN, N)
    at_k = (bh * NK + keys[:, None]) * D + dims[None, :]
    at_v = (bh * NK + keys[:, None]) * DV + vdims[None, :]
    inside_k = (keys < NK)[:, None] & (dims < D)[None, :]
    inside_v = (keys < NK)[:, None] & (vdims < DV)[None, :]
    acc_k = tl.zeros([N, BD], tl.float32)
    acc_v = tl.zeros([N, BDV], tl.float32)
    for group in range(0, GROUPS):
        head = key_head * GROUPS + group
        of = batch * H + head
        qs, ms = q + batch * q_b + head * q_h, mask + batch * m_b + head * m_h
        douts = dout + of * NQ * DV
        froms = counts_from + of * ((ROWS + PIECE - 1) // PIECE)
        until = _counting_until(froms, begin, end, j0 + N, ROWS, PIECE, ALIGN)
        for i in range(until, end, M):
            local = i + tl.arange(0, M)
            inside = local < ROWS
            rows = tl.where(inside, row0 + local, -1)
            its_q = _load(qs, row0 + local, row0 + ROWS, q_i, dims, D, BD)
            its_dout = _load(douts, row0 + local, row0 + ROWS, DV, vdims, DV, BDV)
            its_lse = tl.load(lse + of * NQ + rows, inside, other=float("inf"))
            its_D = tl.load(D_rows + of * NQ + rows, inside, other=0.0)
            last_bias = tl.load(L + (of * ROWS + local) * W + last, inside, other=0.0)
            s = _products(its_k, its_q, PRECISION)
            prob = tl.exp2(s * log2_scale + (last_bias - its_lse)[None, :])
            if DOCS or MASK > 0:
                its_first = tl.zeros([M], tl.int32)
                its_past = its_first
                if DOCS:
                    its_first = tl.load(first + rows, inside, other=NK)
                    if not CAUSAL:
                        its_past = tl.load(past + rows, inside, other=0)
                seen = _seen(
                    rows, keys, offset, NK, its_first, its_past, ms, m_i, m_j, CAUSAL, DOCS, MASK
                )  # fmt: skip
                prob = tl.where(tl.trans(seen), prob, 0.0)
            acc_v = _dot(prob.to(its_dout.dtype), its_dout, acc_v, PRECISION)
            dp = _products(its_v, its_dout, PRECISION)
            ds = prob * (dp - its_D[None, :])
            acc_k = _dot(ds.to(its_q.dtype), its_q, acc_k, PRECISION)

    acc_k += tl.load(part_k + at_k, inside_k, other=0.0)
    acc_v += tl.load(part_v + at_v, inside_v, other=0.0)
    tl.store(dk + at_k, (acc_k * scale).to(dk.dtype.element_ty), inside_k)
    tl.store(dv + at_v, acc_v.to(dv.dtype.element_ty), inside_v)
