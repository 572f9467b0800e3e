"""The Triton kernels of CoPE attention; `xcope.ops.cope.triton` launches them.

The algorithm and the letters are those of `xcope.ops.cope.walk`. What differs on a GPU:

- Logits, their bias and the table logits are in units of log 2, so that exp is one instruction.
- Counts are integers in units of 2^−FB: sums of them are exact in any order, so that the three
  kernels find the same positions, and a count may be taken back. FB is chosen by the host so
  that max_pos and one tile fit into 31 bits.
- The table logits lie in global memory, (rows W) in float32, W > max_pos; column f + 1 exists for
  every position f, and the columns behind the last position repeat it, so that there the bias does
  not rise. Tiles gather from them through L1.
- The gradient of the table logits is no scatter of atomics. Along a row positions fall by less than
  one from key to key, so each position's keys are one segment; where a segment ends, the running
  sums of ds and ds u are stored, and their differences are the gradient.

Each program owns a tile of queries (`forward`, `backward_q`) or of keys (`backward_k`) and writes
what no other writes.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


# -- elementwise ---------------------------------------------------------------------------------


@triton.jit
def _sigmoid(a):
    """Of a logit in units of log 2. 1 / (1 + 2^−a) as a square: rsqrt is one instruction."""
    root = tl.rsqrt(1.0 + tl.exp2(-a))
    return root * root


@triton.jit
def _fixed(g, FB: tl.constexpr):
    """Numbers in 0 … 1 as integers in units of 2^−FB, FB ≤ 22: the mantissa of g + 2^(23 − FB)."""
    shifted = g + (2.0 ** (23 - FB))
    return shifted.to(tl.int32, bitcast=True) - ((150 - FB) << 23)


@triton.jit
def _fraction(p, FB: tl.constexpr):
    """What a fixed-point number has behind the point: a mantissa of 1 …, less 1."""
    bits = ((p & ((1 << FB) - 1)) << (23 - FB)) | 0x3F800000
    return bits.to(tl.float32, bitcast=True) - 1.0


@triton.jit
def _between(w, sharp, SOFT: tl.constexpr):
    """How far the bias has gone from L[f] to L[f + 1] at the fraction w, and its derivative."""
    if SOFT:
        u = _sigmoid((2.0 * w - 1.0) * (sharp * LOG2E))
        slope = 2.0 * sharp * u * (1.0 - u)
    else:
        u = w
        slope = 1.0
    return u, slope


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
def _load(base, rows, N, stride, cols, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """A tile of a (n d) matrix, zeros outside."""
    inside = (rows < N)[:, None]
    if BLOCK != WIDTH:
        inside = inside & (cols < WIDTH)[None, :]
    return tl.load(base + rows[:, None].to(tl.int64) * stride + cols[None, :], inside, other=0.0)


# -- table logits --------------------------------------------------------------------------------


@triton.jit
def table_logits(
    q, e, L,
    q_b, q_h, q_i, e_h, e_p, H, row0, ROWS, P, W,
    D: tl.constexpr, BD: tl.constexpr, M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """L = log2(e) q eᵀ of the rows row0 …, (b h ROWS W), float32."""
    unit = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * M + tl.arange(0, M)
    cols = tl.program_id(1) * N + tl.arange(0, N)
    dims = tl.arange(0, BD)
    qs = q + (unit // H) * q_b + (unit % H) * q_h
    es = e + (unit % H) * e_h
    its_q = _load(qs, row0 + rows, row0 + ROWS, q_i, dims, D, BD)
    its_e = _load(es, tl.minimum(cols, P - 1), P, e_p, dims, D, BD)
    logits = tl.dot(its_q, tl.trans(its_e), input_precision=PRECISION) * LOG2E
    at = L + unit * ROWS * W + rows[:, None].to(tl.int64) * W + cols[None, :]
    tl.store(at, logits, (rows < ROWS)[:, None] & (cols < W)[None, :])


# -- forward -------------------------------------------------------------------------------------


@triton.jit
def forward(
    q, k, v, gate_k, L, out, lse, count, start, mask, first, past,
    q_b, q_h, q_i, k_b, k_h, k_j, v_b, v_h, v_j, g_b, g_h, g_j, m_b, m_h, m_i, m_j,
    H, GROUPS, NQ, NK, row0, ROWS, W, LENGTH, scale, last, sharp,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    CAUSAL: tl.constexpr, DOCS: tl.constexpr, MASK: tl.constexpr, GATES: tl.constexpr,
    SOFT: tl.constexpr, FB: tl.constexpr, PRECISION: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """A tile of queries against the keys that it sees, from the diagonal to the start.

    Writes out (b h i dv), lse (b h i) = log2 Σ 2^logit, and per row the count at which it stopped
    counting, int32, and the key of that, int32.
    """
    unit = tl.program_id(1).to(tl.int64)
    batch, head = unit // H, unit % H
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest rows first
    local = tile * M + tl.arange(0, M)
    rows = tl.where(local < ROWS, row0 + local, -1)
    offset = NK - NQ
    dims, vdims = tl.arange(0, BD), tl.arange(0, BDV)
    ks = k + batch * k_b + (head // GROUPS) * k_h
    vs = v + batch * v_b + (head // GROUPS) * v_h
    gs = gate_k + batch * g_b + (head // GROUPS) * g_h
    ms = mask + batch * m_b + head * m_h
    Ls = L + unit * ROWS * W + tl.where(local < ROWS, local, 0).to(tl.int64) * W

    its_q = _load(q + batch * q_b + head * q_h, row0 + local, row0 + ROWS, q_i, dims, D, BD)
    last_bias = tl.load(Ls + last)
    lo, hi, sure = 0, NK, NK
    if CAUSAL:
        hi = tl.minimum(NK, row0 + (tile + 1) * M + offset)
        sure = row0 + tile * M + offset + 1
    its_first = tl.zeros([M], tl.int32)
    its_past = its_first
    if DOCS:
        its_first = tl.load(first + rows, rows >= 0, other=NK)
        lo = tl.min(its_first) // N * N
        if not CAUSAL:
            its_past = tl.load(past + rows, rows >= 0, other=0)
            hi = tl.max(its_past)
            sure = tl.min(tl.where(rows >= 0, its_past, NK))

    top = tl.full([M], -float("inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, BDV], tl.float32)
    full = last << FB
    counted = tl.where(rows >= 0, 0, full)
    stopped = tl.full([M], 0, tl.int32) + hi
    j0 = (hi + N - 1) // N * N - N
    going = j0 >= lo
    while going:
        keys = j0 + tl.arange(0, N)
        its_k = _load(ks, keys, NK, k_j, dims, D, BD)
        s = tl.dot(its_q, tl.trans(its_k), input_precision=PRECISION) * scale
        a = s
        if GATES:
            its_g = _load(gs, keys, NK, g_j, dims, D, BD)
            a = tl.dot(its_q, tl.trans(its_g), input_precision=PRECISION) * scale
        seen = _seen(
            rows, keys, offset, NK, its_first, its_past, ms, m_i, m_j, CAUSAL, DOCS, MASK
        )  # fmt: skip
        gates = tl.where(seen, _fixed(_sigmoid(a), FB), 0)
        p = counted[:, None] + tl.cumsum(gates, 1, reverse=True)
        live = (counted < full) & (its_first < j0 + N)
        counted = tl.where(live, counted + tl.sum(gates, 1), counted)
        stopped = tl.where(live, j0, stopped)
        at = Ls[:, None] + tl.minimum(p >> FB, last)
        low, high = tl.load(at), tl.load(at + 1)
        u, _ = _between(_fraction(p, FB), sharp, SOFT)
        s = tl.where(seen, s + low + u * (high - low), -float("inf"))
        new_top = tl.maximum(top, tl.max(s, 1))
        shift = tl.where(new_top == -float("inf"), 0.0, new_top)
        prob = tl.exp2(s - shift[:, None])
        fade = tl.exp2(top - shift)
        total = total * fade + tl.sum(prob, 1)
        its_v = _load(vs, keys, NK, v_j, vdims, DV, BDV)
        acc = acc * fade[:, None]
        acc = tl.dot(prob.to(its_v.dtype), its_v, acc, input_precision=PRECISION)
        top = new_top
        live = (counted < full) & (its_first < j0)
        going = (j0 > lo) & ((j0 > sure) | (tl.max(live.to(tl.int32)) > 0))
        j0 -= N

    # from here on every row's bias is that of the last position
    for j in range(lo, j0 + N, N):
        keys = j + tl.arange(0, N)
        its_k = _load(ks, keys, NK, k_j, dims, D, BD)
        s = tl.dot(its_q, tl.trans(its_k), input_precision=PRECISION)
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
        acc = tl.dot(prob.to(its_v.dtype), its_v, acc, input_precision=PRECISION)
        top = new_top

    empty = total == 0.0
    acc = acc / tl.where(empty, 1.0, total)[:, None]
    inside = local < ROWS
    at = out + (unit * NQ + rows[:, None]) * DV + vdims[None, :]
    tl.store(at, acc.to(out.dtype.element_ty), inside[:, None] & (vdims < DV)[None, :])
    at = unit * NQ + rows
    tl.store(lse + at, tl.where(empty, float("inf"), top + tl.log2(total)), inside)
    tl.store(count + at, counted, inside)
    tl.store(start + at, stopped, inside)


# -- backward ------------------------------------------------------------------------------------


@triton.jit
def backward_q(
    q, k, v, gate_k, e, L, out, dout, lse, count, start, mask, first, past,
    dq, dL, D_rows, X, Y, edge_count, edge_lift, counts_from,
    q_b, q_h, q_i, k_b, k_h, k_j, v_b, v_h, v_j, g_b, g_h, g_j, m_b, m_h, m_i, m_j, e_h, e_p,
    H, GROUPS, NQ, NK, row0, ROWS, P, W, EDGES, LENGTH, scale, log2_scale, last, sharp,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    CAUSAL: tl.constexpr, DOCS: tl.constexpr, MASK: tl.constexpr, GATES: tl.constexpr,
    SOFT: tl.constexpr, FB: tl.constexpr, PRECISION: tl.constexpr, PIECE: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """A tile of queries, from the start to the diagonal: dq and the table logits' gradient.

    Leaves for `backward_k`: D (b h i); for each tile of N keys that is counted in, the rows' count
    right of it and their lift, Σ dp of all keys left of it, (b h EDGES ROWS); and for each piece of
    PIECE rows the first key that is counted in, (b h pieces). X, Y (b h ROWS W): running sums.
    """
    unit = tl.program_id(1).to(tl.int64)
    batch, head = unit // H, unit % H
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    local = tile * M + tl.arange(0, M)
    inside = local < ROWS
    rows = tl.where(inside, row0 + local, -1)
    offset = NK - NQ
    dims, vdims = tl.arange(0, BD), tl.arange(0, BDV)
    ks = k + batch * k_b + (head // GROUPS) * k_h
    vs = v + batch * v_b + (head // GROUPS) * v_h
    gs = gate_k + batch * g_b + (head // GROUPS) * g_h
    ms = mask + batch * m_b + head * m_h
    table_rows = unit * ROWS * W + tl.where(inside, local, 0).to(tl.int64) * W
    Ls, Xs, Ys = L + table_rows, X + table_rows, Y + table_rows

    its_q = _load(q + batch * q_b + head * q_h, row0 + local, row0 + ROWS, q_i, dims, D, BD)
    of_unit = unit * NQ * DV
    its_dout = _load(dout + of_unit, row0 + local, row0 + ROWS, DV, vdims, DV, BDV)
    its_out = _load(out + of_unit, row0 + local, row0 + ROWS, DV, vdims, DV, BDV)
    its_D = tl.sum(its_dout.to(tl.float32) * its_out.to(tl.float32), 1)
    tl.store(D_rows + unit * NQ + rows, its_D, inside)
    its_lse = tl.load(lse + unit * NQ + rows, inside, other=float("inf"))
    counted = tl.load(count + unit * NQ + rows, inside, other=0)
    stopped = tl.load(start + unit * NQ + rows, inside, other=NK)
    last_bias = tl.load(Ls + last)

    lo, hi, sure = 0, NK, NK
    if CAUSAL:
        hi = tl.minimum(NK, row0 + (tile + 1) * M + offset)
        sure = row0 + tile * M + offset + 1
    its_first = tl.zeros([M], tl.int32)
    its_past = its_first
    if DOCS:
        its_first = tl.load(first + rows, inside, other=NK)
        lo = tl.min(its_first) // N * N
        if not CAUSAL:
            its_past = tl.load(past + rows, inside, other=0)
            hi = tl.max(its_past)
            sure = tl.min(tl.where(inside, its_past, NK))
    counts = tl.maximum(tl.minimum(tl.min(stopped), tl.minimum(sure, hi)), 0) // N * N
    pieces = tile * (M // PIECE) + tl.arange(0, M // PIECE)
    at = counts_from + unit * ((ROWS + PIECE - 1) // PIECE) + pieces
    tl.store(at, pieces * 0 + counts, pieces * PIECE < ROWS)

    acc = tl.zeros([M, BD], tl.float32)
    for j in range(lo, counts, N):
        keys = j + tl.arange(0, N)
        its_k = _load(ks, keys, NK, k_j, dims, D, BD)
        its_v = _load(vs, keys, NK, v_j, vdims, DV, BDV)
        s = tl.dot(its_q, tl.trans(its_k), input_precision=PRECISION)
        prob = tl.exp2(s * log2_scale + (last_bias - its_lse)[:, None])
        if DOCS or MASK > 0:
            seen = _seen(
                rows, keys, offset, NK, its_first, its_past, ms, m_i, m_j, CAUSAL, DOCS, MASK
            )  # fmt: skip
            prob = tl.where(seen, prob, 0.0)
        dp = tl.dot(its_dout, tl.trans(its_v), input_precision=PRECISION)
        ds = prob * (dp - its_D[:, None])
        acc = tl.dot(ds.to(its_k.dtype), its_k, acc, input_precision=PRECISION)

    furthest = tl.minimum(counted >> FB, last)
    lift = tl.zeros([M], tl.float32)
    x_sum = tl.zeros([M], tl.float32)
    y_sum = tl.zeros([M], tl.float32)
    edges = unit * EDGES * ROWS + local
    for j in range(tl.maximum(counts, lo), hi, N):
        keys = j + tl.arange(0, N)
        its_k = _load(ks, keys, NK, k_j, dims, D, BD)
        its_v = _load(vs, keys, NK, v_j, vdims, DV, BDV)
        s = tl.dot(its_q, tl.trans(its_k), input_precision=PRECISION) * log2_scale
        its_g = its_k
        a = s
        if GATES:
            its_g = _load(gs, keys, NK, g_j, dims, D, BD)
            a = tl.dot(its_q, tl.trans(its_g), input_precision=PRECISION) * log2_scale
        seen = _seen(
            rows, keys, offset, NK, its_first, its_past, ms, m_i, m_j, CAUSAL, DOCS, MASK
        )  # fmt: skip
        g = _sigmoid(a)
        gates = tl.where(seen & (keys[None, :] >= stopped[:, None]), _fixed(g, FB), 0)
        counted -= tl.sum(gates, 1)
        p = tl.maximum(counted[:, None] + tl.cumsum(gates, 1, reverse=True), 0)
        f = tl.minimum(p >> FB, last)
        u, slope = _between(_fraction(p, FB), sharp, SOFT)
        u = tl.where(f == last, 0.0, u)
        low, high = tl.load(Ls[:, None] + f), tl.load(Ls[:, None] + f + 1)
        rise = high - low
        prob = tl.where(seen, tl.exp2(s + (low + u * rise - its_lse[:, None])), 0.0)
        dp = tl.dot(its_dout, tl.trans(its_v), input_precision=PRECISION)
        ds = prob * (dp - its_D[:, None])

        x = tl.cumsum(ds, 1) + x_sum[:, None]
        y = tl.cumsum(ds * u, 1) + y_sum[:, None]
        ends = (tl.minimum(tl.maximum(p - gates, 0) >> FB, last) != f) & inside[:, None]
        tl.store(Xs[:, None] + f, x, ends)
        tl.store(Ys[:, None] + f, y, ends)
        x_sum += tl.sum(ds, 1)
        y_sum += tl.sum(ds * u, 1)

        tl.store(edge_count + edges + (j // N) * ROWS, counted, inside)
        tl.store(edge_lift + edges + (j // N) * ROWS, lift, inside)
        lifts = ds * (rise * slope) * LN2
        da = (tl.cumsum(lifts, 1) + lift[:, None]) * (g - g * g)
        lift += tl.sum(lifts, 1)
        da = tl.where(seen, da, 0.0)
        if GATES:
            acc = tl.dot(da.to(its_g.dtype), its_g, acc, input_precision=PRECISION)
        else:
            ds += da
        acc = tl.dot(ds.to(its_k.dtype), its_k, acc, input_precision=PRECISION)
    end = tl.minimum(tl.maximum(counted, 0) >> FB, last)
    tl.store(Xs + end, x_sum, inside)
    tl.store(Ys + end, y_sum, inside)
    acc = acc * scale
    tl.debug_barrier()  # what other threads of this program stored is read below

    es = e + head * e_h
    dLs = dL + unit * ROWS * P + tl.where(inside, local, 0).to(tl.int64) * P
    for p0 in range(0, P, BP):
        f = p0 + tl.arange(0, BP)
        reached = inside[:, None] & (f[None, :] <= furthest[:, None])
        beyond = inside[:, None] & (f[None, :] < furthest[:, None])
        x = tl.load(Xs[:, None] + f, reached, 0.0)
        y = tl.load(Ys[:, None] + f, reached, 0.0)
        x_next = tl.load(Xs[:, None] + f + 1, beyond, 0.0)
        y_next = tl.load(Ys[:, None] + f + 1, beyond, 0.0)
        before = inside[:, None] & (f[None, :] <= furthest[:, None] + 1) & (f > 0)[None, :]
        y_before = tl.load(Ys[:, None] + f - 1, before, 0.0)
        from_below = tl.where((f > 0)[None, :], y_before - y, 0.0)
        gradient = (x - x_next) - (y - y_next) + from_below
        # where a row is saturated, ds of the plain tiles belongs to the last position; as a row's
        # ds sum to 0, it is what all other positions have not
        saturated = reached & (f == last)[None, :]
        gradient = tl.where(saturated, x - x_sum[:, None] + from_below, gradient)
        there = inside[:, None] & (f < P)[None, :]
        gradient = tl.where(there, gradient, 0.0)
        tl.store(dLs[:, None] + f, gradient.to(dL.dtype.element_ty), there)
        its_e = _load(es, f, P, e_p, dims, D, BD)
        acc = tl.dot(gradient.to(its_e.dtype), its_e, acc, input_precision=PRECISION)
    at = dq + (unit * NQ + rows[:, None]) * D + dims[None, :]
    tl.store(at, acc.to(dq.dtype.element_ty), inside[:, None] & (dims < D)[None, :])


@triton.jit
def backward_k(
    q, k, v, gate_k, L, dout, lse, D_rows, mask, first, past,
    dk, dv, dgate, edge_count, edge_lift, counts_from,
    q_b, q_h, q_i, k_b, k_h, k_j, v_b, v_h, v_j, g_b, g_h, g_j, m_b, m_h, m_i, m_j,
    H, GROUPS, NQ, NK, row0, ROWS, W, EDGES, LENGTH, scale, log2_scale, last, sharp,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    CAUSAL: tl.constexpr, DOCS: tl.constexpr, MASK: tl.constexpr, GATES: tl.constexpr,
    SOFT: tl.constexpr, FB: tl.constexpr, PRECISION: tl.constexpr, PIECE: tl.constexpr,
    ADD: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """A tile of keys, against the queries that see it: dk, dv and the gates' keys' gradient.

    With ADD they are added to what is there: of queries before row0.
    """
    unit = tl.program_id(1).to(tl.int64)
    KH = H // GROUPS
    batch, key_head = unit // KH, unit % KH
    tile = tl.program_id(0)
    j0 = tile * N
    keys = j0 + tl.arange(0, N)
    offset = NK - NQ
    dims, vdims = tl.arange(0, BD), tl.arange(0, BDV)
    its_k = _load(k + batch * k_b + key_head * k_h, keys, NK, k_j, dims, D, BD)
    its_v = _load(v + batch * v_b + key_head * v_h, keys, NK, v_j, vdims, DV, BDV)
    its_g = its_k
    if GATES:
        its_g = _load(gate_k + batch * g_b + key_head * g_h, keys, NK, g_j, dims, D, BD)

    begin, end = 0, ROWS
    if CAUSAL:
        begin = tl.maximum(0, j0 - offset - row0) // M * M
    if DOCS:
        ends = tl.load(past + keys, keys < NK, other=0)
        end = tl.minimum(end, tl.max(ends) - row0)
        if not CAUSAL:
            begins = tl.load(first + keys, keys < NK, other=NK)
            begin = tl.maximum(0, tl.min(begins) - row0) // M * M

    acc_k = tl.zeros([N, BD], tl.float32)
    acc_v = tl.zeros([N, BDV], tl.float32)
    acc_g = tl.zeros([N, BD], tl.float32)
    pieces = (ROWS + PIECE - 1) // PIECE
    for group in range(0, GROUPS):
        head = key_head * GROUPS + group
        of = batch * H + head
        qs, ms = q + batch * q_b + head * q_h, mask + batch * m_b + head * m_h
        douts = dout + of * NQ * DV
        froms = counts_from + of * pieces
        far = begin  # behind it no tile of queries counts in these keys
        for c0 in range(begin // PIECE, tl.cdiv(end, PIECE), 64):
            c = c0 + tl.arange(0, 64)
            counting = tl.load(froms + c, c < pieces, other=NK) < j0 + N
            far = tl.maximum(far, tl.max(tl.where(counting, (c + 1) * PIECE, 0)))
        far = tl.minimum(tl.cdiv(far, M) * M, tl.cdiv(end, M) * M)

        for i in range(begin, far, M):
            local = i + tl.arange(0, M)
            inside = local < ROWS
            rows = tl.where(inside, row0 + local, -1)
            its_q = _load(qs, row0 + local, row0 + ROWS, q_i, dims, D, BD)
            its_dout = _load(douts, row0 + local, row0 + ROWS, DV, vdims, DV, BDV)
            its_lse = tl.load(lse + of * NQ + rows, inside, other=float("inf"))
            its_D = tl.load(D_rows + of * NQ + rows, inside, other=0.0)
            counting = tl.load(froms + local // PIECE, inside, other=NK) < j0 + N
            Ls = L + (of * ROWS + tl.where(inside, local, 0)) * W
            its_first = tl.zeros([M], tl.int32)
            its_past = its_first
            if DOCS:
                its_first = tl.load(first + rows, inside, other=NK)
                if not CAUSAL:
                    its_past = tl.load(past + rows, inside, other=0)
            seen = _seen(
                rows, keys, offset, NK, its_first, its_past, ms, m_i, m_j, CAUSAL, DOCS, MASK
            )  # fmt: skip
            s = tl.dot(its_q, tl.trans(its_k), input_precision=PRECISION) * log2_scale
            dp = tl.dot(its_dout, tl.trans(its_v), input_precision=PRECISION)
            if tl.max(counting.to(tl.int32)) > 0:
                a = s
                if GATES:
                    a = tl.dot(its_q, tl.trans(its_g), input_precision=PRECISION) * log2_scale
                at = (of * EDGES + tile) * ROWS + local
                counted = tl.load(edge_count + at, counting, other=0)
                counted = tl.where(counting, counted, last << FB)
                lift = tl.load(edge_lift + at, counting, other=0.0)
                g = _sigmoid(a)
                gates = tl.where(seen, _fixed(g, FB), 0)
                p = tl.maximum(counted[:, None] + tl.cumsum(gates, 1, reverse=True), 0)
                f = tl.minimum(p >> FB, last)
                u, slope = _between(_fraction(p, FB), sharp, SOFT)
                low, high = tl.load(Ls[:, None] + f), tl.load(Ls[:, None] + f + 1)
                rise = high - low
                prob = tl.where(seen, tl.exp2(s + (low + u * rise - its_lse[:, None])), 0.0)
                ds = prob * (dp - its_D[:, None])
                lifts = tl.cumsum(ds * (rise * slope) * LN2, 1) + lift[:, None]
                da = tl.where(seen, lifts * (g - g * g), 0.0)
                if GATES:
                    acc_g = tl.dot(
                        tl.trans(da.to(its_q.dtype)), its_q, acc_g, input_precision=PRECISION
                    )
                else:
                    ds += da
            else:
                last_bias = tl.load(Ls + last)
                prob = tl.where(seen, tl.exp2(s + (last_bias - its_lse)[:, None]), 0.0)
                ds = prob * (dp - its_D[:, None])
            prob = tl.trans(prob.to(its_dout.dtype))
            acc_v = tl.dot(prob, its_dout, acc_v, input_precision=PRECISION)
            ds = tl.trans(ds.to(its_q.dtype))
            acc_k = tl.dot(ds, its_q, acc_k, input_precision=PRECISION)

        # these rows are saturated before they come to these keys
        for i in range(far, end, M):
            local = i + tl.arange(0, M)
            inside = local < ROWS
            rows = tl.where(inside, row0 + local, -1)
            its_q = _load(qs, row0 + local, row0 + ROWS, q_i, dims, D, BD)
            its_dout = _load(douts, row0 + local, row0 + ROWS, DV, vdims, DV, BDV)
            its_lse = tl.load(lse + of * NQ + rows, inside, other=float("inf"))
            its_D = tl.load(D_rows + of * NQ + rows, inside, other=0.0)
            last_bias = tl.load(L + (of * ROWS + local) * W + last, inside, other=0.0)
            s = tl.dot(its_k, tl.trans(its_q), input_precision=PRECISION)
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
            acc_v = tl.dot(prob.to(its_dout.dtype), its_dout, acc_v, input_precision=PRECISION)
            dp = tl.dot(its_v, tl.trans(its_dout), input_precision=PRECISION)
            ds = prob * (dp - its_D[None, :])
            acc_k = tl.dot(ds.to(its_q.dtype), its_q, acc_k, input_precision=PRECISION)

    at = (unit * NK + keys[:, None]) * D + dims[None, :]
    inside = (keys < NK)[:, None] & (dims < D)[None, :]
    _put(dk + at, acc_k * scale, inside, ADD)
    if GATES:
        _put(dgate + at, acc_g * scale, inside, ADD)
    at = (unit * NK + keys[:, None]) * DV + vdims[None, :]
    _put(dv + at, acc_v, (keys < NK)[:, None] & (vdims < DV)[None, :], ADD)


@triton.jit
def _put(at, values, inside, ADD: tl.constexpr):
    """Store, or add to what is there."""
    if ADD:
        values += tl.load(at, inside, other=0.0)
    tl.store(at, values.to(at.dtype.element_ty), inside)
