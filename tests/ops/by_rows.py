"""CoPE attention and attention with an index bias, row by row, of the keys that a row sees alone.

As slow and plain as can be: nothing here knows of keys that are not seen.
"""

import torch


def rows_of(q, k, v, seen, attend):
    """``attend`` of each row of the batch, head, query and its keys; (b h i dv)."""
    b, h, i, _ = q.shape
    k, v = (t.repeat_interleave(h // t.shape[1], dim=1) for t in (k, v))
    seen = seen.expand(b, h, i, k.shape[2])
    out = [
        attend(k, row, head, query, keys).softmax(0) @ v[row, head][keys]
        if len(keys := seen[row, head, query].nonzero()[:, 0])
        else v.new_zeros(v.shape[-1])
        for row, head, query in torch.cartesian_prod(*map(torch.arange, (b, h, i))).tolist()
    ]
    return torch.stack(out).view(b, h, i, -1)


def cope_by_rows(q, k, v, pos_emb, seen, scale, gate_k=None, head_mix=None, bias=None):
    """The paper's formulas; bias (b h i j)."""
    gate_k = None if gate_k is None else gate_k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)

    def logits(k, row, head, query, keys, biased):
        s = scale * (k[row, head][keys] @ q[row, head, query])
        return s + bias[row, head, query][keys] if biased and bias is not None else s

    def gate_logits(k, row, head, query, keys):
        return logits(k if gate_k is None else gate_k, row, head, query, keys, gate_k is None)

    def attend(k, row, head, query, keys):
        a = gate_logits(k, row, head, query, keys)
        if head_mix is not None:
            of_heads = [gate_logits(k, row, other, query, keys) for other in range(q.shape[1])]
            a = sum(head_mix[head, other] * of for other, of in enumerate(of_heads))
        table = pos_emb if pos_emb.ndim == 2 else pos_emb[head]
        counts = [a.sigmoid()[at:].sum() for at in range(len(keys))]
        p = torch.stack(counts).clamp(max=len(table) - 1)
        f = p.detach().floor()
        w, f = p - f, f.nan_to_num().long()
        c = (f + 1).clamp(max=len(table) - 1)
        low, high = ((table[at] * q[row, head, query]).sum(-1) for at in (f, c))
        return logits(k, row, head, query, keys, True) + (1 - w) * low + w * high

    return rows_of(q, k, v, seen, attend)


def biased_by_rows(q, k, v, bias, seen, scale):
    """bias (b h i j), or None."""

    def attend(k, row, head, query, keys):
        s = scale * (k[row, head][keys] @ q[row, head, query])
        return s if bias is None else s + bias[row, head, query][keys]

    return rows_of(q, k, v, seen, attend)
