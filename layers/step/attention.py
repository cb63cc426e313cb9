"""Attention of one token."""

from __future__ import annotations

from torch import Tensor

from zoo.kernels.step_program import Value
from zoo.layers.attention.causal import CausalAttention
from zoo.layers.attention.gated import GatedAttention
from zoo.layers.attention.rotary import Rotary
from zoo.layers.attention.sliding_window import SlidingWindowAttention
from zoo.layers.step.binders import Cached, Windowed
from zoo.layers.step.writer import Writer, describes


@describes(CausalAttention, SlidingWindowAttention)
def _attention(p: Writer, m: CausalAttention, x: Value) -> Value:
    return p.call(m.out_proj, heads_step(p, m, x))


@describes(GatedAttention)
def _gated_attention(p: Writer, m: GatedAttention, x: Value) -> Value:
    x = p.whole(x)
    y = heads_step(p, m, x)
    return p.call(m.out_proj, p.glu(p.call(m.gate_proj, x), y, "sigmoid"))


def heads_step(p: Writer, m: CausalAttention, x: Value) -> Value:
    """The outputs of all heads beside each other."""
    q, k, v = (p.whole(p.call(proj, x)) for proj in (m.q_proj, m.k_proj, m.v_proj))
    return attend_step(p, m, p.call(m.q_norm, q), p.call(m.k_norm, k), v)


def attend_step(p: Writer, m: CausalAttention, q: Value, k: Value, v: Value) -> Value:
    """The same of queries, keys and values."""
    rotary = None if m.rotary is None else rotation(p, m.rotary)
    turn = p.turn(q, k, v, m.head_dim, rotary)
    scale = m.head_dim**-0.5 if m.scale is None else m.scale
    y, attend = p.attend(q, m.num_kv_heads, m.head_dim, scale, m.softcap, m.sinks)
    binder = Windowed if isinstance(m, SlidingWindowAttention) else Cached
    p.bind(binder(p, turn, attend, m, q, y))
    return y


def rotation(p: Writer, rotary: Rotary) -> tuple[Tensor, float, bool]:
    """Frequencies, a scale, and whether pairs are interleaved."""
    p.expect(rotary, Rotary)
    return rotary.frequency, 1.0 if rotary.scaling is None else rotary.scaling.rotation_scale, rotary.interleaved
