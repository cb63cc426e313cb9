"""Feed-forward layers and experts of one token."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.step_program import Chosen, Value
from zoo.layers.mlp import Mlp, SquaredReLU, SwiGLU, clamped_swiglu
from zoo.layers.moe.deepseek import DeepSeekMoE
from zoo.layers.moe.experts import RoutedExperts
from zoo.layers.moe.moe import MoE
from zoo.layers.step.linears import matrix
from zoo.layers.step.writer import Undescribed, Writer, describes

ACTIVATIONS: dict[tuple, str] = {
    (F.silu,): "silu",
    (F.gelu,): "gelu",
    (F.gelu, ("approximate", "none")): "gelu",
    (F.gelu, ("approximate", "tanh")): "gelu_tanh",
    (F.relu,): "relu",
    (torch.sigmoid,): "sigmoid",
}


def activation(act: Callable[..., Tensor]) -> dict[str, Any]:
    """The options of ``Program.glu`` for a function, or one of a gate and another half."""
    function, options = (act.func, act.keywords) if isinstance(act, partial) else (act, {})
    if function is clamped_swiglu:
        return {"activation": "clamped", "alpha": 1.702, "limit": 7.0} | options
    key = (function, *sorted(options.items()))
    if key not in ACTIVATIONS:
        raise Undescribed(f"the activation {getattr(function, '__name__', function)}")
    return {"activation": ACTIVATIONS[key]}


@describes(SwiGLU)
def swiglu_step(p: Writer, module: SwiGLU, x: Value, gate: float = 1.0) -> Value:
    """W2 (act(gate W1 x) * W3 x)."""
    first = p.times(p.call(module.w1, x), gate)
    return p.call(module.w2, p.glu(first, p.call(module.w3, x), **activation(module.act)))


@describes(Mlp)
def _mlp(p: Writer, module: Mlp, x: Value) -> Value:
    """W2 gelu(W1 x), biases included."""
    p.expect(module.act, nn.GELU)
    p.expect(module.drop, nn.Dropout)
    act = partial(F.gelu, approximate=str(module.act.approximate))
    return p.call(module.fc2, p.glu(p.call(module.fc1, x), None, **activation(act)))


@describes(SquaredReLU)
def _squared_relu(p: Writer, module: SquaredReLU, x: Value) -> Value:
    return p.call(module.w2, p.glu(p.call(module.w1, x), None, "squared_relu"))


@describes(MoE)
def moe_step(p: Writer, module: MoE, x: Value, logits: Value | None = None) -> Value:
    """The experts of x, or those that a router chose by other ``logits``."""
    x = p.whole(x)
    logits = p.call(module.router, x) if logits is None else logits
    return experts_step(p, module, x, p.route(logits, module.top_k, score=module.score, normalize=module.normalize))


@describes(DeepSeekMoE)
def _deepseek_moe(p: Writer, module: DeepSeekMoE, x: Value) -> Value:
    x = p.whole(x)
    logits = p.call(module.router, x)
    return experts_step(p, module, x, p.route(logits, module.top_k, bias=module.selection_bias, **module.routing))


def experts_step(p: Writer, m: RoutedExperts, x: Value, chosen: Chosen) -> Value:
    """The weighted sum of the chosen experts, and what every token visits."""
    p.reporting.append(m)
    hidden = p.linear_of(x, matrix(p, m.w1), m.b1, chosen)
    if m.w3 is None:
        hidden = p.glu(hidden, None, **activation(m.act))
    else:
        hidden = p.glu(hidden, p.linear_of(x, matrix(p, m.w3), m.b3, chosen), **activation(m.glu or m.act))
    y = p.combine(p.linear_of(hidden, matrix(p, m.w2), m.b2, chosen), chosen)
    if m.shared is None:
        return y
    p.accumulate(y, p.call(m.shared, x))
    return y._replace(made=None)
