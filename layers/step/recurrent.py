"""State spaces, gated recurrences and convolutions of one token, and mixers side by side."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from zoo.kernels.step_program import Value
from zoo.kernels.step_program.records import DTYPES
from zoo.layers.conv import CausalConv1d
from zoo.layers.conv.gated_conv import DoubleGatedConv, GatedConv, GatedConvState
from zoo.layers.norm import GatedRMSNorm
from zoo.layers.parallel import ParallelMixers
from zoo.layers.ssm.griffin import RGLRU, SHARPNESS, GriffinRecurrence, GriffinState
from zoo.layers.ssm.mamba import Mamba, MambaState
from zoo.layers.ssm.mamba2 import Mamba2, Mamba2State, SiluGate
from zoo.layers.step.binders import Held, Recurrent
from zoo.layers.step.writer import Undescribed, Writer, describes


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
    x, conv = conv_step(p, m.conv1d, x)
    x, B, C = x.split(m.d_inner, grouped, grouped)
    y, ssm = p.ssd(x, dt, B, C, m.A_log, m.dt_bias, m.D, m.dt_limit, m.num_groups)
    p.bind(Recurrent(p, Mamba2State, inputs("conv", conv), Held("ssm", ssm, 11)))
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
    x, conv = conv_step(p, m.conv1d, x)
    dt, B, C = p.call(m.x_proj, x).split(m.dt_rank, m.d_state, m.d_state)
    dt = p.call(m.dt_proj, p.call(m.dt_norm, dt))
    y, ssm = p.scan(x, dt, p.call(m.b_norm, B), p.call(m.c_norm, C), z, m.A_log, m.D)
    p.bind(Recurrent(p, MambaState, inputs("conv", conv), Held("ssm", ssm, 12)))
    return p.call(m.out_proj, y)


@describes(GatedConv)
def _gated_conv(p: Writer, m: GatedConv, x: Value) -> Value:
    u, gate = p.whole(p.call(m.in_proj, x)).split(m.width, m.width)
    u, conv = conv_step(p, m.conv, u)
    p.bind(Recurrent(p, GatedConvState, inputs("conv", conv)))
    return p.call(m.out_proj, p.glu(u, gate, "none"))


@describes(DoubleGatedConv)
def _double_gated_conv(p: Writer, m: DoubleGatedConv, x: Value) -> Value:
    before, behind, u = p.whole(p.call(m.in_proj, x)).split(m.width, m.width, m.width)
    u, conv = conv_step(p, m.conv, p.glu(before, u, "none"))
    p.bind(Recurrent(p, GatedConvState, inputs("conv", conv)))
    return p.call(m.out_proj, p.glu(u, behind, "none"))


@describes(GriffinRecurrence)
def _griffin(p: Writer, m: GriffinRecurrence, x: Value) -> Value:
    x = p.whole(x)
    gate, (u, conv) = p.call(m.gate_proj, x), conv_step(p, m.conv1d, p.call(m.x_proj, x))
    lru = m.rg_lru
    p.expect(lru, RGLRU)
    r, i = p.call(lru.r_gate, u), p.call(lru.i_gate, u)
    y, memory = p.leak(u, r, i, lru.Lambda, lambda t: -SHARPNESS * F.softplus(t))
    p.bind(
        Recurrent(
            p, GriffinState, inputs("conv", conv), Held("memory", memory, 9), Held("begun", memory, 11, (torch.int64,))
        )
    )
    return p.call(m.out_proj, p.glu(gate, y, "gelu_tanh"))


def inputs(name: str, conv: int) -> Held:
    """Of a convolution, kept by a state."""
    return Held(name, conv, 6, DTYPES)


def conv_step(p: Writer, conv: CausalConv1d, x: Value) -> tuple[Value, int]:
    """What it makes of x, and the number of its record."""
    p.expect(conv, CausalConv1d)
    return p.conv(x, conv.weight, conv.bias, conv.activation == "silu")
