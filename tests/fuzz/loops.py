"""The operations once more, as loops over their definitions, differentiable by autograd, in the dtype of their inputs.

Nothing here is imported from the library: these are what its references are held against.
"""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor


def _restarts(seq_idx: Tensor | None, t: int) -> Tensor | None:
    """(B,): whether another sequence begins at step t."""
    return None if seq_idx is None or t == 0 else seq_idx[:, t] != seq_idx[:, t - 1]


def _forget(state: Tensor, restarts: Tensor | None) -> Tensor:
    if restarts is None:
        return state
    return torch.where(restarts.view(-1, *[1] * (state.dim() - 1)), torch.zeros_like(state), state)


def _shrink(state: Tensor, log_decay: Tensor) -> Tensor:
    """exp(log_decay) state, where the decay of zero leaves nothing and takes no gradient."""
    gone = log_decay == -math.inf
    return torch.where(gone, torch.zeros_like(state), log_decay.masked_fill(gone, 0.0).exp() * state)


def _rate_times_step(rate: Tensor, step: Tensor) -> Tensor:
    """A dt; -inf for a rate of -inf over any time, 0 over none."""
    infinite = rate == -math.inf
    product = rate.masked_fill(infinite, 0.0) * step
    return torch.where(infinite & (step > 0), -math.inf, product)


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def _silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def selective_scan(
    x, dt, A, B, C, *, D=None, z=None, dt_bias=None, dt_softplus=False, initial_state=None, seq_idx=None
):  # fmt: skip
    (batch, length, dim), groups = x.shape, B.shape[2]
    group = torch.arange(dim) // (dim // groups)
    h = x.new_zeros(batch, *A.shape) if initial_state is None else initial_state
    outputs = []
    for t in range(length):
        step = dt[:, t] if dt_bias is None else dt[:, t] + dt_bias
        step = _softplus(step) if dt_softplus else step
        h = _shrink(_forget(h, _restarts(seq_idx, t)), _rate_times_step(A, step[:, :, None]))
        h = h + (step * x[:, t])[:, :, None] * B[:, t, group]
        y = (h * C[:, t, group]).sum(2)
        y = y if D is None else y + D * x[:, t]
        outputs.append(y if z is None else y * _silu(z[:, t]))
    return torch.stack(outputs, 1), h


def ssd(
    x, dt, A, B, C, *, D=None, dt_bias=None, dt_softplus=False, dt_limit=(0.0, math.inf), initial_state=None,
    seq_idx=None,
):  # fmt: skip
    (batch, length, heads, head_dim), groups = x.shape, B.shape[2]
    group = torch.arange(heads) // (heads // groups)
    S = x.new_zeros(batch, heads, head_dim, B.shape[3]) if initial_state is None else initial_state
    outputs = []
    for t in range(length):
        step = dt[:, t] if dt_bias is None else dt[:, t] + dt_bias
        step = _softplus(step) if dt_softplus else step
        step = step if dt_limit == (0.0, math.inf) else step.clamp(*dt_limit)
        S = _shrink(_forget(S, _restarts(seq_idx, t)), _rate_times_step(A, step)[:, :, None, None])
        S = S + torch.einsum("bh,bhp,bhn->bhpn", step, x[:, t], B[:, t, group])
        y = torch.einsum("bhpn,bhn->bhp", S, C[:, t, group])
        outputs.append(y if D is None else y + (D if D.dim() == 2 else D[:, None]) * x[:, t])
    return torch.stack(outputs, 1), S


def linear_attention(q, k, v, *, log_decay=None, scale=None, initial_state=None, seq_idx=None):
    batch, length, heads, dim = q.shape
    S = q.new_zeros(batch, heads, dim, v.shape[3]) if initial_state is None else initial_state
    scale, outputs = dim**-0.5 if scale is None else scale, []
    for t in range(length):
        S = _forget(S, _restarts(seq_idx, t))
        if log_decay is not None:
            now = log_decay[:, t]
            S = _shrink(S, now[..., None] if now.dim() == 3 else now[..., None, None])
        S = S + torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        outputs.append(scale * torch.einsum("bhk,bhkv->bhv", q[:, t], S))
    return torch.stack(outputs, 1), S


def mlstm(
    q, k, v, log_input, log_decay, *, scale=None, eps=1e-6, memory=None, normalizer=None, stabilizer=None, seq_idx=None
):  # fmt: skip
    """C and n themselves, as they are without a stabiliser, which only eps and the final state know."""
    batch, length, heads, dim = q.shape
    C, n, m = q.new_zeros(batch, heads, dim, v.shape[3]), q.new_zeros(batch, heads, dim), q.new_zeros(batch, heads)
    if stabilizer is not None:
        m, grown = stabilizer, stabilizer.exp()
        C, n = grown[..., None, None] * memory, grown[..., None] * normalizer
    scale, outputs = dim**-0.5 if scale is None else scale, []
    for t in range(length):
        C, n, m = (_forget(part, _restarts(seq_idx, t)) for part in (C, n, m))
        g, i, query = log_decay[:, t], log_input[:, t].exp(), scale * q[:, t]
        C = _shrink(C, g[..., None, None]) + torch.einsum("bh,bhk,bhv->bhkv", i, k[:, t], v[:, t])
        n = _shrink(n, g[..., None]) + i[..., None] * k[:, t]
        m = torch.maximum(g + m, log_input[:, t]).clamp(min=-80)
        bound = torch.maximum((query * n).sum(-1).abs(), torch.ones_like(m)) + eps * m.exp()
        outputs.append(torch.einsum("bhk,bhkv->bhv", query, C) / bound[..., None])
    shrunk = (-m).exp()
    return torch.stack(outputs, 1), shrunk[..., None, None] * C, shrunk[..., None] * n, m


def slstm(x, R, *, initial_state=None, seq_idx=None):
    """c and n themselves, as they are without a stabiliser, which only the final state knows."""
    batch, length, _, heads, dim = x.shape
    h = c = n = m = x.new_zeros(batch, heads, dim)
    if initial_state is not None:
        h, c, n, m = initial_state.unbind(1)
        c, n = m.exp() * c, m.exp() * n
    outputs = []
    for t in range(length):
        h, c, n, m = (_forget(part, _restarts(seq_idx, t)) for part in (h, c, n, m))
        logits = [x[:, t, g] + torch.einsum("bhd,hde->bhe", h, R[:, :, g]) for g in range(4)]
        i, f = logits[0].exp(), torch.sigmoid(logits[1])
        m = torch.where(n == 0, logits[0], torch.maximum(m - _softplus(-logits[1]), logits[0]))
        c, n = f * c + i * torch.tanh(logits[2]), f * n + i
        h = torch.sigmoid(logits[3]) * c / n
        outputs.append(h)
    return torch.stack(outputs, 1), torch.stack([h, (-m).exp() * c, (-m).exp() * n, m], 1)


def delta_rule(q, k, v, beta, *, log_decay=None, scale=None, initial_state=None, seq_idx=None):
    batch, length, heads, dim = q.shape
    S = q.new_zeros(batch, heads, dim, v.shape[3]) if initial_state is None else initial_state
    scale, outputs = dim**-0.5 if scale is None else scale, []
    for t in range(length):
        S = _forget(S, _restarts(seq_idx, t))
        if log_decay is not None:
            now = log_decay[:, t]
            S = _shrink(S, now[..., None] if now.dim() == 3 else now[..., None, None])
        error = v[:, t] - torch.einsum("bhk,bhkv->bhv", k[:, t], S)
        S = S + torch.einsum("bhk,bh,bhv->bhkv", k[:, t], beta[:, t], error)
        outputs.append(scale * torch.einsum("bhk,bhkv->bhv", q[:, t], S))
    return torch.stack(outputs, 1), S


def generalized_delta_rule(q, k, v, a, b, *, log_decay, scale=None, initial_state=None, seq_idx=None):
    batch, length, heads, dim = q.shape
    S = q.new_zeros(batch, heads, dim, v.shape[3]) if initial_state is None else initial_state
    scale, outputs = dim**-0.5 if scale is None else scale, []
    for t in range(length):
        S = _forget(S, _restarts(seq_idx, t))
        read = torch.einsum("bhk,bhkv->bhv", a[:, t], S)
        S = _shrink(S, log_decay[:, t, :, :, None]) + torch.einsum("bhk,bhv->bhkv", b[:, t], read)
        S = S + torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        outputs.append(scale * torch.einsum("bhk,bhkv->bhv", q[:, t], S))
    return torch.stack(outputs, 1), S


def momentum_delta_rule(
    q, k, v, rate, log_decay, log_momentum, *, scale=None, initial_state=None, initial_momentum=None, seq_idx=None
):
    batch, length, heads, dim = q.shape
    zeros = q.new_zeros(batch, heads, dim, v.shape[3])
    M, S = (zeros if given is None else given for given in (initial_state, initial_momentum))
    scale, outputs = dim**-0.5 if scale is None else scale, []
    for t in range(length):
        M, S = (_forget(held, _restarts(seq_idx, t)) for held in (M, S))
        error = v[:, t] - torch.einsum("bhk,bhkv->bhv", k[:, t], M)
        S = _shrink(S, log_momentum[:, t, :, None, None])
        S = S + torch.einsum("bhk,bh,bhv->bhkv", k[:, t], rate[:, t], error)
        M = _shrink(M, log_decay[:, t, :, None, None]) + S
        outputs.append(scale * torch.einsum("bhk,bhkv->bhv", q[:, t], M))
    return torch.stack(outputs, 1), M, S


def _taylor(x: Tensor) -> Tensor:
    """1, x, then x_i x_j of i <= j row by row, the order that the state is documented in."""
    dim = x.shape[-1]
    x = x / dim**0.25
    columns, ones = [], torch.ones_like(x[..., 0])
    extended = torch.cat([ones[..., None], x], -1)
    for i in range(dim + 1):
        for j in range(i, dim + 1):
            factor = math.sqrt(0.5) if i == j > 0 else 1.0
            columns.append(factor * extended[..., i] * extended[..., j])
    return torch.stack(columns, -1)


def taylor_attention(q, k, v, *, normalize=True, eps=1e-12, initial_state=None, seq_idx=None):
    batch, length, heads, dim = q.shape
    features = (dim + 1) * (dim + 2) // 2
    S = q.new_zeros(batch, heads, features, v.shape[3] + 1) if initial_state is None else initial_state
    outputs = []
    for t in range(length):
        S = _forget(S, _restarts(seq_idx, t))
        S = S + _taylor(k[:, t])[..., None] * torch.cat([v[:, t], torch.ones_like(v[:, t, :, :1])], -1)[:, :, None]
        y = (_taylor(q[:, t])[..., None] * S).sum(2)
        outputs.append(y[..., :-1] / (y[..., -1:] + eps) if normalize else y[..., :-1])
    return torch.stack(outputs, 1), S


def leaky_memory(x, W_in, W_out, bias, decay, gain, *, activation="relu", initial_state=None, seq_idx=None):
    m, states = x.new_zeros(x.shape[0], len(decay)) if initial_state is None else initial_state, []
    act = _silu if activation == "silu" else lambda u: u * (u > 0)
    for t in range(x.shape[1]):
        m = decay * _forget(m, _restarts(seq_idx, t))
        a = act(x[:, t] + sum(m[:, d, None] * W_in[d] for d in range(len(decay))))
        z = bias + sum(a[:, h, None] * W_out[h] for h in range(W_out.shape[0]))
        m = m + gain * 1.7159 * torch.tanh(2 * z / 3)
        states.append(m)
    return torch.stack(states, 1), m


def linear_recurrence(x, log_decay, *, initial_state=None, seq_idx=None):
    h, states = 0 * x[:, 0] if initial_state is None else initial_state, []
    for t in range(x.shape[1]):
        h = _shrink(_forget(h, _restarts(seq_idx, t)), log_decay[:, t]) + x[:, t]
        states.append(h)
    return torch.stack(states, 1), h


def causal_conv1d(x, weight, bias=None, *, activation=None, initial_state=None, seq_idx=None):
    (batch, length, dim), width = x.shape, weight.shape[1]
    history = x.new_zeros(batch, width - 1, dim) if initial_state is None else initial_state
    outputs = []
    for t in range(length):
        history = torch.cat([_forget(history, _restarts(seq_idx, t)), x[:, t, None]], 1)
        y = (history * weight.mT).sum(1)
        y = y if bias is None else y + bias
        outputs.append(_silu(y) if activation == "silu" else y)
        history = history[:, 1:]
    return torch.stack(outputs, 1), history


def long_conv(u, kernel, *, D=None, gate=None, circular=False):
    length, outputs = u.shape[1], []
    for t in range(length):
        lags = [j for j in range(kernel.shape[1]) if circular or j <= t]
        y = sum(kernel[:, j] * u[:, (t - j) % length] for j in lags)
        y = y if D is None else y + D * u[:, t]
        outputs.append(y if gate is None else y * gate[:, t])
    return torch.stack(outputs, 1)


def hashed_lookup(x, tables, *, temperature=1.0, scaled=False):
    (count, _, dim), bits = tables.shape, x.shape[-1] // tables.shape[0]
    outputs = []
    for token in x.reshape(-1, count, bits):
        y = x.new_zeros(dim) + 0 * (token.sum() + tables.sum())
        for k, z in enumerate(token):
            code = sum(1 << (bits - 1 - i) for i, value in enumerate(z.tolist()) if value >= 0)
            sizes = z.abs() / temperature
            weight = (1 / (1 + torch.exp(-2 * sizes))).prod()
            y = y + (weight * sizes.sum() if scaled else weight) * tables[k, code]
        outputs.append(y)
    empty = x.new_zeros(0, dim) + 0 * (x.sum() + tables.sum())
    return (torch.stack(outputs) if outputs else empty).reshape(*x.shape[:-1], dim)


def deformable_attention_3d(value, depth, locations, weights):
    """Every pixel and bin, with what is left of 1 at its distance along all three axes."""
    (batch, height, width, heads, dim), bins = value.shape, depth.shape[3]
    queries, points = weights.shape[1], weights.shape[3]
    unread = 0 * (value.sum() + depth.sum() + locations.sum() + weights.sum())
    y = [unread + value.new_zeros(dim) for _ in range(batch * queries * heads)]
    for b, q, n, p in product(*map(range, (batch, queries, heads, points))):
        u, v, d = (x * size - 0.5 for x, size in zip(locations[b, q, n, p], (width, height, bins), strict=True))
        for j, i, k in product(*map(range, (height, width, bins))):
            if max(abs(u.item() - i), abs(v.item() - j), abs(d.item() - k)) < 1:
                share = (1 - (u - i).abs()) * (1 - (v - j).abs()) * (1 - (d - k).abs())
                read = weights[b, q, n, p] * share * depth[b, j, i, k] * value[b, j, i, n]
                y[(b * queries + q) * heads + n] = y[(b * queries + q) * heads + n] + read
    return (torch.stack(y) if y else unread + value.new_zeros(0, dim)).view(batch, queries, heads, dim)


def _code(row: list[int], column: int, columns: int, bits: int) -> int:
    """In one row of bytes: blocks of 128 columns, a part for each power of two in the width, its slots in turn."""
    padded = -(-columns // 8) * 8
    block, inside = divmod(column, 128)
    size, start = min(128, padded - 128 * block), block * 16 * bits
    found = shift = 0
    for width in (8, 4, 2, 1):
        if bits & width:
            slot, byte = divmod(inside, size * width // 8)
            found += (row[start + byte] >> slot * width) % 2**width << shift
            start, shift = start + size * width // 8, shift + width
    return found


def lowbit_matmul(x, codes, scale, zero=None, *, bits, bias=None):
    columns, groups = x.shape[-1], scale.shape[1]
    size, outputs = columns // groups, []
    for n, row in enumerate(codes.tolist()):
        q = x.new_tensor([_code(row, c, columns, bits) for c in range(columns)])
        y = x.new_zeros(x.shape[:-1])
        for g in range(groups):
            z = 2 ** (bits - 1) if zero is None else int(zero[n, g])
            part = slice(g * size, (g + 1) * size)
            y = y + scale[n, g] * ((q[part] - z) * x[..., part]).sum(-1)
        outputs.append(y)
    y = torch.stack(outputs, -1)
    return y if bias is None else y + bias


def integer_products(v, step, codes, scale, zero=None, *, bits):
    return lowbit_matmul(v.to(step.dtype), codes, scale, zero, bits=bits) * step


def sparse_matmul(x, values, mask, start=None, *, bias=None):
    given, outputs = iter(values), []
    for row in mask.tolist():
        y = 0 * (x.sum(-1) + values.sum())
        for c in range(x.shape[-1]):
            if row[c // 8] >> c % 8 & 1:
                y = y + next(given) * x[..., c]
        outputs.append(y)
    y = torch.stack(outputs, -1)
    return y if bias is None else y + bias


def rms_norm(x, weight=None, *, z=None, num_groups=1, norm_before_gate=False, eps=1e-5):
    u = x if z is None or norm_before_gate else x * _silu(z)
    parts = [part / torch.sqrt((part * part).mean(-1, keepdim=True) + eps) for part in u.chunk(num_groups, -1)]
    y = torch.cat(parts, -1)
    y = y if weight is None else y * weight
    return y * _silu(z) if z is not None and norm_before_gate else y


def rope(x, cos, sin, *, interleaved=False):
    pairs = cos.shape[-1]
    cos, sin = (table[..., None, :] for table in (cos, sin))  # one angle for all heads
    columns = list(x.unbind(-1))
    for i in range(pairs):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + pairs)
        first, second = x[..., a], x[..., b]
        columns[a] = first * cos[..., i] - second * sin[..., i]
        columns[b] = second * cos[..., i] + first * sin[..., i]
    return torch.stack(columns, -1)


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float | None) -> Tensor:
    """Of one head: q (T, K), k (S, K), v (S, V), seen (T, S)."""
    scores = (q @ k.mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    rows = []
    for row, mask in zip(scores, seen, strict=True):
        chosen = mask.nonzero()[:, 0]
        if len(chosen) == 0:
            rows.append((0 * row[:, None] * v).sum(0))
        else:
            rows.append(torch.softmax(row[chosen], 0) @ v[chosen])
    return torch.stack(rows)


def _over_heads(q, k, v, seen_of, scale):
    """``seen_of(b, h)`` is the mask of a head."""
    (batch, length, heads, _), groups = q.shape, k.shape[2]
    if batch == 0:
        return (q[..., :1].sum() + k.sum() + v.sum()) * v.new_zeros(0, length, heads, v.shape[3])
    return torch.stack([
        torch.stack([
            _attend(q[b, :, h], k[b, :, h // (heads // groups)], v[b, :, h // (heads // groups)], seen_of(b, h), scale)
            for h in range(heads)
        ], 1)
        for b in range(batch)
    ])  # fmt: skip


def sliding_window_attention(q, k, v, *, window, sinks=0, scale=None, seq_idx=None):
    length, keys = q.shape[1], k.shape[1]

    def seen_of(b: int, h: int) -> Tensor:
        seen = torch.zeros(length, keys, dtype=torch.bool)
        for row in range(length):
            i = keys - length + row
            begin = 0
            if seq_idx is not None:
                begin = max((t for t in range(1, i + 1) if seq_idx[b, t] != seq_idx[b, t - 1]), default=0)
            for j in range(begin, i + 1):
                seen[row, j] = j > i - window or j < sinks
        return seen

    return _over_heads(q, k, v, seen_of, scale)


def block_sparse_attention(q, k, v, block_mask, *, block_size, causal=False, scale=None):
    length, keys = q.shape[1], k.shape[1]

    def seen_of(b: int, h: int) -> Tensor:
        mask = block_mask[b % block_mask.shape[0], h % block_mask.shape[1]]
        i, j = torch.arange(length)[:, None], torch.arange(keys)[None]
        return mask[i // block_size, j // block_size] & (not causal or j <= i + keys - length)

    return _over_heads(q, k, v, seen_of, scale)


def linear_cross_entropy(
    hidden, weight, labels, *, bias=None, ignore_index=-100, z_loss=0.0, softcap=None, label_smoothing=0.0
):  # fmt: skip
    total, counted = 0 * (hidden.sum() + weight.sum()), 0
    total = total if bias is None else total + 0 * bias.sum()
    for h, label in zip(hidden, labels.tolist(), strict=True):
        if label == ignore_index:
            continue
        logits = weight @ h if bias is None else weight @ h + bias
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        normaliser = torch.logsumexp(logits, 0)
        total = total + normaliser - (1 - label_smoothing) * logits[label] + z_loss * normaliser**2
        total = total - label_smoothing * logits.mean()
        counted += 1
    return total / max(counted, 1)


def grouped_matmul(x, weight, offsets, *, bias=None):
    rows, bounds = [], offsets.tolist()
    for m in range(x.shape[0]):
        owner = [e for e in range(len(bounds) - 1) if bounds[e] <= m < bounds[e + 1]]
        y = x[m] @ weight[owner[0]] if owner else 0 * (x[m, :1] * weight[0, 0])
        rows.append(y if bias is None or not owner else y + bias[owner[0]])
    unused = 0 * (weight.sum() + x.sum())
    unused = unused if bias is None else unused + 0 * bias.sum()
    return unused + (torch.stack(rows) if rows else x.new_zeros(0, weight.shape[2]))
