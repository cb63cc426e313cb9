"""Delta rules of one token."""

from __future__ import annotations

import math

import torch

from zoo.kernels.step_program import Value
from zoo.layers.ssm.delta_net import DeltaNet, DeltaNetState, FusedGatedDeltaNet, GatedDeltaNet
from zoo.layers.ssm.kimi_delta import KimiDeltaAttention
from zoo.layers.ssm.rwkv7 import ChannelMix, LowRank, RWKV7Block, RWKV7State, TimeMix
from zoo.layers.step.binders import DTYPES, Held, Recurrent
from zoo.layers.step.recurrent import conv_step, inputs
from zoo.layers.step.writer import Writer, describes


@describes(DeltaNet)
def _delta_net(p: Writer, m: DeltaNet, x: Value) -> Value:
    x = p.whole(x)
    q, k, v, beta = *_heads(p, m, x), p.call(m.b_proj, x)
    return p.call(m.out_proj, p.call(m.o_norm, _corrected(p, m, q, k, v, beta)))


@describes(GatedDeltaNet)
def _gated_delta_net(p: Writer, m: GatedDeltaNet, x: Value) -> Value:
    x = p.whole(x)
    q, k, v, beta, gate = *_heads(p, m, x), p.call(m.b_proj, x), p.call(m.g_proj, x)
    return _gated(p, m, _corrected(p, m, q, k, v, beta, _decay(p, m, p.call(m.a_proj, x))), gate)


@describes(FusedGatedDeltaNet)
def _fused_gated_delta_net(p: Writer, m: FusedGatedDeltaNet, x: Value) -> Value:
    x, heads, served = p.whole(x), m.num_key_heads, m.num_heads // m.num_key_heads
    widths = m.head_dim, m.head_dim, served * m.value_dim, served * m.value_dim
    q, k, v, gate = p.pick(p.call(m.in_proj_qkvz, x), *_interleaved(heads, *widths))
    beta, steps = p.pick(p.call(m.in_proj_ba, x), *_interleaved(heads, served, served))
    return _gated(p, m, _corrected(p, m, q, k, v, beta, _decay(p, m, steps)), gate)


@describes(KimiDeltaAttention)
def _kimi_delta(p: Writer, m: KimiDeltaAttention, x: Value) -> Value:
    x = p.whole(x)
    q, k, v, beta = *_heads(p, m, x), p.call(m.b_proj, x)
    steps, gate = p.call(m.f_b_proj, p.call(m.f_a_proj, x)), p.call(m.g_b_proj, p.call(m.g_a_proj, x))
    y = _corrected(p, m, q, k, v, beta, _decay(p, m, steps))
    return p.call(m.out_proj, p.glu(gate, p.call(m.o_norm, y), "sigmoid"))


def _heads(p: Writer, m: DeltaNet, x: Value) -> list[Value]:
    return [p.call(proj, x) for proj in (m.q_proj, m.k_proj, m.v_proj)]


def _interleaved(heads: int, *widths: int) -> tuple[torch.Tensor, ...]:
    """Columns of the parts that each of the heads has one after another."""
    return torch.arange(heads * sum(widths)).view(heads, -1).split(widths, 1)


def _decay(p: Writer, m: GatedDeltaNet | KimiDeltaAttention, steps: Value) -> Value:
    each = steps.width // m.num_heads
    return p.decay(steps, m.A_log, lambda t: -t.exp().repeat_interleave(each), "softplus", m.dt_bias)


def _corrected(p: Writer, m: DeltaNet, q: Value, k: Value, v: Value, beta: Value, decay: Value | None = None) -> Value:
    """What the memory returns behind the convolutions."""
    (q, q_conv), (k, k_conv), (v, v_conv) = (
        conv_step(p, conv, x) for conv, x in ((m.q_conv1d, q), (m.k_conv1d, k), (m.v_conv1d, v))
    )
    q, k, beta = p.unit(q, m.head_dim, 1e-6), p.unit(k, m.head_dim, 1e-6), p.glu(beta, None, "sigmoid")
    y, memory = p.recall(
        q, k, v, heads=m.num_heads, key_heads=m.num_key_heads, scale=m.head_dim**-0.5, corrected=True, decay=decay,
        weight=p.whole(beta._replace(factor=2.0)) if m.negative_eigenvalues else beta,
    )  # fmt: skip
    convs = inputs("q", q_conv), inputs("k", k_conv), inputs("v", v_conv)
    p.bind(Recurrent(p, DeltaNetState, *convs, Held("memory", memory, 14)))
    return y


def _gated(p: Writer, m: GatedDeltaNet, y: Value, gate: Value) -> Value:
    return p.call(m.out_proj, p.glu(gate, p.call(m.o_norm, y)))


@describes(RWKV7Block)
def _rwkv7(p: Writer, m: RWKV7Block, x: Value) -> Value:
    stream, values = x.split(m.dim, m.dim)
    if m.pre_norm is not None:
        p.accumulate(stream, p.call(m.pre_norm, stream), first=True)
    y, time, memory = _time_mix(p, m.attn, p.call(m.attn_norm, stream), values)
    p.accumulate(stream, y)
    y, channel = _channel_mix(p, m.ffn, p.call(m.ffn_norm, stream))
    p.accumulate(stream, y)
    shifts = Held("time", time, 5, DTYPES), Held("channel", channel, 5, DTYPES)
    p.bind(Recurrent(p, RWKV7State, *shifts, Held("memory", memory, 14)))
    return x


def _time_mix(p: Writer, m: TimeMix, x: Value, first: Value) -> tuple[Value, int, int]:
    """The output, and the numbers of the records that shift the input and step the memory; the first block's values
    are written or mixed in."""
    p.expect(m, TimeMix)
    (to_r, to_w, to_k, to_v, to_a, to_g), time = p.shift(x, *(getattr(m, f"x_{name}") for name in "rwkvag"))
    r, k, v = p.call(m.r_proj, to_r), p.call(m.k_proj, to_k), p.call(m.v_proj, to_v)
    gate, rate = p.call(m.g_lora, to_g), p.glu(p.call(m.a_lora, to_a), None, "sigmoid")
    decay = p.decay(p.call(m.w_lora, to_w), torch.full((x.width,), -(math.e**-0.5)), lambda t: t, "sigmoid")
    if m.v_lora is None:
        p.accumulate(first, v._replace(made=None), first=True)
    else:
        v = p.blend(v, first, p.glu(p.call(m.v_lora, to_v), None, "sigmoid"))
    heads = len(m.r_k)
    along = p.unit(p.scaled(k, m.k_k), m.head_dim, 1e-24)
    k = p.blend(k, p.glu(k, rate, "none"), p.parameter(m.k_a))
    y, memory = p.recall(r, k, v, heads=heads, scale=1.0, decay=decay, turned=(along, rate))
    y = p.bonus(p.call(m.g_norm, y), r, k, m.r_k, v, heads)
    return p.call(m.o_proj, p.glu(gate, y, "none")), time, memory


def _channel_mix(p: Writer, m: ChannelMix, x: Value) -> tuple[Value, int]:
    p.expect(m, ChannelMix)
    (x,), channel = p.shift(x, m.x_k)
    return p.call(m.value, p.glu(p.call(m.key, x), None, "squared_relu")), channel


@describes(LowRank)
def _low_rank(p: Writer, m: LowRank, x: Value) -> Value:
    return p.call(m.lora, x)
