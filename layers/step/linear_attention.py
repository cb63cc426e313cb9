"""Linear attention of one token, and the mLSTM and the sLSTM, whose memories are of its kind."""

from __future__ import annotations

import torch

from zoo.kernels.step_program import Value
from zoo.layers.attention.gated_linear import GatedLinearAttention, Retention, RetentionState
from zoo.layers.attention.lightning import LightningAttention
from zoo.layers.attention.memory import MemoryMixer, MemoryState
from zoo.layers.attention.taylor import TaylorAttention, TaylorAttentionState
from zoo.layers.ssm.expanded_mlstm import ExpandedMLSTM, ExpandedMLSTMState
from zoo.layers.ssm.mlstm import MLSTM, MLSTMCell, MLSTMState
from zoo.layers.ssm.slstm import SLSTM, SLSTMState
from zoo.layers.step.attention import rotation
from zoo.layers.step.binders import Held, Recurrent
from zoo.layers.step.recurrent import conv_step, inputs
from zoo.layers.step.writer import Writer, describes


@describes(GatedLinearAttention)
def _gated_linear(p: Writer, m: GatedLinearAttention, x: Value) -> Value:
    x = p.whole(x)
    q, k, v, gate = (p.call(proj, x) for proj in (m.q_proj, m.k_proj, m.v_proj, m.g_proj))
    rate = torch.full((q.width,), -1 / m.gate_temperature)
    decay = p.decay(p.call(m.gk_proj, x), rate, lambda t: t, "softplus_of_negative")
    y = _remembered(p, m, q, k, v, decay)
    return p.call(m.out_proj, p.glu(gate, p.call(m.o_norm, y)))


@describes(Retention)
def _retention(p: Writer, m: Retention, x: Value) -> Value:
    x = p.whole(x)
    q, k, v, gate = (p.call(proj, x) for proj in (m.q_proj, m.k_proj, m.v_proj, m.g_proj))
    place = Held("position", p.rotate(q, k, m.key_dim, rotation(p, m.rotary)), 11, (torch.int64,))
    y = _remembered(p, m, q, k, v, _constant_decay(p, m), RetentionState, place)
    return p.call(m.out_proj, p.glu(gate, p.call(m.o_norm, y)))


@describes(LightningAttention)
def _lightning(p: Writer, m: LightningAttention, x: Value) -> Value:
    x, heads = p.whole(x), m.num_heads
    columns = torch.arange(3 * heads * m.key_dim).view(heads, 3, -1).unbind(1)
    q, k, v = p.pick(p.glu(p.call(m.qkv_proj, x), None), *columns)
    y = p.call(m.norm, _remembered(p, m, q, k, v, _constant_decay(p, m)))
    return p.call(m.out_proj, p.glu(p.call(m.output_gate, x), y, "sigmoid"))


def _constant_decay(p: Writer, m: Retention | LightningAttention) -> Value:
    return p.parameter(m.log_decay(torch.zeros(1, 1, 1)).exp())


def _remembered(
    p: Writer, m: MemoryMixer, q: Value, k: Value, v: Value, decay: Value, kind: type[MemoryState] = MemoryState,
    *more: Held,
) -> Value:  # fmt: skip
    scale = m.key_dim**-0.5 if m.scale is None else m.scale
    y, memory = p.recall(q, k, v, heads=m.num_heads, scale=scale, decay=decay)
    p.bind(Recurrent(p, kind, Held("memory", memory, 14), *more))
    return y


@describes(TaylorAttention)
def _taylor(p: Writer, m: TaylorAttention, x: Value) -> Value:
    x, heads = p.whole(x), m.num_heads
    q, k, v = p.features(p.call(m.q_proj, x), p.call(m.k_proj, x), p.call(m.v_proj, x), heads)
    y, memory = p.recall(q, k, v, heads=heads, scale=1.0)
    p.bind(Recurrent(p, TaylorAttentionState, Held("memory", memory, 14)))
    return p.call(m.out_proj, p.quotient(y, heads, m.eps))


@describes(MLSTM)
def _mlstm(p: Writer, m: MLSTM, x: Value) -> Value:
    x = p.whole(x)
    y, held = _mlstm_cell(p, m.cell, p.call(m.q_proj, x), p.call(m.k_proj, x), p.call(m.v_proj, x), x)
    p.bind(Recurrent(p, MLSTMState, *held))
    return p.call(m.out_proj, p.glu(p.call(m.g_proj, x), y, "sigmoid"))


@describes(ExpandedMLSTM)
def _expanded_mlstm(p: Writer, m: ExpandedMLSTM, x: Value) -> Value:
    u, z = p.whole(p.call(m.up_proj, x)).split(m.inner_dim, m.inner_dim)
    a, conv = conv_step(p, m.conv1d, u)
    heads = p.empty(3 * m.inner_dim)
    q, k, v = heads.split(*[m.inner_dim] * 3)
    for part, proj, of in ((q, m.q_proj, a), (k, m.k_proj, a), (v, m.v_proj, u)):
        p.accumulate(part, p.call(proj, of), first=True)
    y, held = _mlstm_cell(p, m.cell, q, k, v, heads)
    p.bind(Recurrent(p, ExpandedMLSTMState, *held, inputs("conv", conv)))
    p.accumulate(y, p.scaled(a, m.skip))
    return p.call(m.out_proj, p.glu(z, y))


def _mlstm_cell(p: Writer, m: MLSTMCell, q: Value, k: Value, v: Value, x: Value) -> tuple[Value, list[Held]]:
    """The normalised output, and what the state keeps."""
    p.expect(m, MLSTMCell)
    i, f = p.call(m.i_proj, x), p.call(m.f_proj, x)
    if m.gate_softcap is not None:
        i, f = p.capped(i, m.gate_softcap), p.capped(f, m.gate_softcap)
    heads, scale = m.num_heads, (q.width // m.num_heads) ** -0.5
    gates, gate = p.gates(q, k, i, f, heads, scale, m.eps)
    y, memory = p.recall(q, k, v, heads=heads, scale=scale, decay=gates.keep, weight=gates.enter, read=gates.read)
    return p.call(m.norm, y), [Held("memory", memory, 14), Held("normalizer", gate, 8), Held("stabilizer", gate, 10)]


@describes(SLSTM)
def _slstm(p: Writer, m: SLSTM, x: Value) -> Value:
    x = p.whole(x)
    a, conv = conv_step(p, m.conv1d, x)
    logits = p.empty(4 * m.dim)
    parts = zip(logits.split(*[m.dim] * 4), (m.i_gate, m.f_gate, m.z_gate, m.o_gate), (a, a, x, x), strict=True)
    for part, gate, of in parts:
        p.accumulate(part, p.call(gate, of), first=True)
    y, cell = p.slstm(logits, m.R)
    p.bind(Recurrent(p, SLSTMState, inputs("conv", conv), Held("cell", cell, 5)))
    return p.call(m.norm, y)
