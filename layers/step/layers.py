"""What each layer computes for one token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from zoo.kernels.step_program import Value
from zoo.layers.attention.causal import CausalAttention
from zoo.layers.attention.rotary import Rotary
from zoo.layers.conv import CausalConv1d
from zoo.layers.linear import WideBias
from zoo.layers.mlp import SwiGLU
from zoo.layers.norm import GatedRMSNorm, RMSNorm
from zoo.layers.parallel import ParallelMixers
from zoo.layers.quant.layers import Linear
from zoo.layers.ssm.mamba import Mamba, MambaState
from zoo.layers.ssm.mamba2 import Mamba2, Mamba2State, SiluGate
from zoo.layers.step.binders import Cached, Recurrent
from zoo.layers.step.writer import Undescribed, Writer, describes


@describes(nn.Identity)
def _identity(p: Writer, module: nn.Identity, x: Value) -> Value:
    return x


@describes(nn.Linear, WideBias)
def _linear(p: Writer, module: nn.Linear, x: Value) -> Value:
    return p.linear(x, module.weight, module.bias)


@describes(Linear)
def _record(p: Writer, module: Linear, x: Value) -> Value:
    record, form = module.weight, module.weight.format
    if form.layout != "int" or form.outliers or form.group_rows > 1 or form.activation_bits is not None:
        raise Undescribed(f"a record of {form}")
    p.visit(record)
    return p.lowbit(x, record.codes, record.scale, record.zero, record.format.bits, module.bias)


@describes(RMSNorm)
def _norm(p: Writer, module: RMSNorm, x: Value) -> Value:
    width = len(module.weight)
    return p.norm(x, module.weight, module.eps, heads=x.width // width)


@describes(SwiGLU)
def swiglu_step(p: Writer, module: SwiGLU, x: Value, gate: float = 1.0) -> Value:
    """W2 (silu(gate W1 x) * W3 x)."""
    if module.act is not F.silu:
        raise Undescribed("another activation")
    first = p.times(p.call(module.w1, x), gate)
    return p.call(module.w2, p.glu(first, p.call(module.w3, x)))


@describes(ParallelMixers)
def _parallel(p: Writer, module: ParallelMixers, x: Value) -> Value:
    x = p.whole(x)
    total = p.empty(x.width)
    for index, mixer in enumerate(module.mixers):
        with p.part(index):
            y = p.call(mixer, x._replace(factor=module.input_scales[index]))
        y = y._replace(factor=y.factor * module.output_scales[index])
        p.accumulate(total, y, first=index == 0)
    return total


@describes(Mamba2)
def _mamba2(p: Writer, m: Mamba2, x: Value) -> Value:
    if m.step_rule is not None:
        raise Undescribed("another rule of steps")
    grouped = m.num_groups * m.d_state
    x = p.whole(p.call(m.in_proj, x))
    if m.multipliers:
        columns = torch.cat([torch.full((width,), scale) for width, scale in m.multipliers])
        p.kept.append(columns)
        x = p.scaled(x, columns)
    z, x, dt = x.split(m.d_inner, m.d_inner + 2 * grouped, m.num_heads)
    x, conv = _conv(p, m.conv1d, x)
    x, B, C = x.split(m.d_inner, grouped, grouped)
    y, ssm = p.ssd(x, dt, B, C, m.A_log, m.dt_bias, m.D, m.dt_limit, m.num_groups)
    p.bind(Recurrent(p, Mamba2State, ("conv", conv, 6), ("ssm", ssm, 11)))
    p.visit(m.norm)
    if type(m.norm) is SiluGate:
        y = p.glu(z, y)
    elif type(m.norm) is GatedRMSNorm:
        y = p.norm(y, m.norm.weight, m.norm.eps, z, m.norm.num_groups)
    else:
        raise Undescribed(type(m.norm).__name__)
    return p.call(m.out_proj, y)


@describes(Mamba)
def _mamba(p: Writer, m: Mamba, x: Value) -> Value:
    if m.step_rule is not None:
        raise Undescribed("another rule of steps")
    x, z = p.whole(p.call(m.in_proj, x)).split(m.d_inner, m.d_inner)
    x, conv = _conv(p, m.conv1d, x)
    dt, B, C = p.call(m.x_proj, x).split(m.dt_rank, m.d_state, m.d_state)
    dt = p.call(m.dt_proj, p.call(m.dt_norm, dt))
    y, ssm = p.scan(x, dt, p.call(m.b_norm, B), p.call(m.c_norm, C), z, m.A_log, m.D)
    p.bind(Recurrent(p, MambaState, ("conv", conv, 6), ("ssm", ssm, 12)))
    return p.call(m.out_proj, y)


def _conv(p: Writer, conv: CausalConv1d, x: Value) -> tuple[Value, int]:
    p.visit(conv)
    if type(conv) is not CausalConv1d:
        raise Undescribed(type(conv).__name__)
    return p.conv(x, conv.weight, conv.bias, conv.activation == "silu")


@describes(CausalAttention)
def _attention(p: Writer, m: CausalAttention, x: Value) -> Value:
    if m.softcap is not None or m.sinks is not None or not (m.rotary is None or type(m.rotary) is Rotary):
        raise Undescribed("attention with a softcap, sinks or other positions")
    q, k, v = (p.whole(p.call(proj, x)) for proj in (m.q_proj, m.k_proj, m.v_proj))
    q, k, rotary = p.call(m.q_norm, q), p.call(m.k_norm, k), m.rotary
    if rotary is not None:
        p.visit(rotary)
        scale = 1.0 if rotary.scaling is None else rotary.scaling.rotation_scale
        rotary = rotary.frequency, scale, rotary.interleaved
    turn = p.turn(q, k, v, m.head_dim, rotary)
    scale = m.head_dim**-0.5 if m.scale is None else m.scale
    y, attend = p.attend(q, m.num_kv_heads, m.head_dim, scale)
    p.bind(Cached(p, turn, attend))
    return p.call(m.out_proj, y)
