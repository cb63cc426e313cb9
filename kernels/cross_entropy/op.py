"""Mean cross-entropy of a linear layer's output, fused so that the full logits are never stored."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from zoo.kernels.autograd import recomputed_gradients, recorded_gradients
from zoo.kernels.cross_entropy import chunked, reference
from zoo.kernels.dispatch import Implementation, Operation, Sizes, compute_dtype, under_transforms
from zoo.kernels.operator import Like, first_derivatives_only, register, schema
from zoo.kernels.triton_support import triton_implementation


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    chunk_size: int = 1024,
    impl: str = "auto",
) -> Tensor:
    r"""Mean cross-entropy over the counted rows, in nats, of the logits :math:`c_v = f(w_v \cdot h + b_v)`.

    .. math::
        l = \log \sum_v e^{c_v}, \quad
        L = l - (1 - \epsilon) \, c_y - \frac{\epsilon}{V} \sum_v c_v + \zeta \, l^2, \quad
        f(a) = s \tanh(a / s)

    The gradients are computed with the loss, from the same logits, where autograd will want them.

    Args:
        hidden: (M, D), any floating dtype; logits and sums are float32 (float64 if any input is float64).
        weight: (V, D).
        bias: (V,).
        labels: (M,) integers y in [0, V), or ``ignore_index`` for rows that do not count; others raise an error (on
            CUDA torch's assertion, or a loss of NaN).
        z_loss: the factor zeta, which keeps the logsumexp near 0.
        softcap: the largest logit s; None for f(a) = a.
        label_smoothing: epsilon, the part of the target that is uniform over the vocabulary.
        chunk_size: rows whose logits exist at a time, at most: memory is no more than chunk_size * V numbers, and for
            large V no more than 2^23 (twice that with a softcap).
        impl: "auto" or the name of an implementation ("triton", "chunked", "reference").

    Returns:
        Scalar of the compute dtype; 0 where no row counts.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together, or options out of range.
        RuntimeError: when the named implementation cannot run on the device of hidden.

    Papers: the z-loss: Chowdhery et al., "PaLM", arXiv 2204.02311; the softcap: "Gemma 2", arXiv 2408.00118; label
    smoothing: Szegedy et al., arXiv 1512.00567; logits by tiles: Wijmans et al., "Cut Your Losses", arXiv 2411.09009.
    """
    _check(hidden, weight, labels, bias, softcap, label_smoothing, chunk_size, impl)
    options = ignore_index, z_loss, softcap, label_smoothing, chunk_size
    loss = _loss(hidden, weight, bias, labels.long(), *options, impl)
    return loss / (labels != ignore_index).sum().clamp(min=1)


operation = Operation(
    "linear_cross_entropy",
    triton_implementation("zoo.kernels.cross_entropy.triton"),
    Implementation("chunked", chunked.forward, chunked.backward),
    Implementation("reference", reference.forward),
)


def _shapes(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    ignore_index: int,
    z_loss: float,
    softcap: float | None,
    label_smoothing: float,
    chunk_size: int,
    gradients: bool,
) -> tuple[Like, Like, Like, Like]:
    """Summed loss and, with ``gradients``, its gradients of hidden, weight and bias; what is not there is empty."""
    dtype = compute_dtype(hidden, weight, bias)
    sizes = ((0,) if t is None or not gradients else t.shape for t in (hidden, weight, bias))
    return Like(hidden, (), dtype), *(Like(hidden, size, dtype) for size in sizes)  # type: ignore[return-value]


def _run(*inputs: Any) -> tuple[Tensor, ...]:
    inputs, (gradients, impl) = inputs[:-2], inputs[-2:]
    chosen, dtype = operation.resolve(impl, inputs[0].device), compute_dtype(*inputs[:3])
    tensors, options = chosen.prepare(dtype, *inputs[:4]), inputs[4:]
    if not gradients:
        found = [chosen.forward(*tensors, *options)]
    elif chosen.backward is None:
        one = inputs[0].new_ones((), dtype=dtype)
        found = [
            chosen.forward(*tensors, *options),
            *recomputed_gradients(lambda *t: (chosen.forward(*t, *options),), tensors, (one,)),
        ]
    else:
        found = [t for t in chosen.backward(*tensors, *options) if t is not None]
    return *found, *(inputs[0].new_empty(0, dtype=dtype) for _ in range(4 - len(found)))


def _fake(*inputs: Any) -> tuple[Tensor, ...]:
    return tuple(like.make() for like in _shapes(*inputs[:-1]))


def _save(ctx, inputs, output) -> None:
    """The gradients; the inputs only where second derivatives can be asked for."""
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # no zeros as large as the weight for what has no gradient
    ctx.plain = operation.plain(inputs[-1], inputs[0].device)
    ctx.save_for_backward(*output[1:], *(inputs[:4] if ctx.plain else ()))
    ctx.options, ctx.dtypes = inputs[4:], [None if t is None else t.dtype for t in inputs[:3]]


def _gradients(ctx, dloss, *_) -> tuple[Tensor | None, ...]:
    *options, gradients, _ = ctx.options
    if dloss is None:
        return (None,) * 11
    if not gradients:
        raise RuntimeError("zoo::linear_cross_entropy was called with gradients=False: there is nothing to go back by")
    dhidden, dweight, dbias, *inputs = ctx.saved_tensors
    if torch.is_grad_enabled() and inputs:
        found = recorded_gradients(lambda *t: (_plain_loss(ctx.plain, *t, *options),), inputs, (dloss,))
        return *found, *[None] * 7
    found = _scaled(dloss, dhidden, dweight, dbias)
    return *(None if dtype is None else g.to(dtype) for g, dtype in zip(found, ctx.dtypes, strict=True)), *[None] * 8


def _plain_loss(chosen: Implementation, *inputs: Any) -> Tensor:
    return chosen.forward(*chosen.prepare(compute_dtype(*inputs[:3]), *inputs[:4]), *inputs[4:])


def _flops(hidden, weight, *inputs) -> int:
    """The logits, and with them the two products of the gradients where those are asked for."""
    return (6 if inputs[-2] else 2) * hidden[0] * prod(weight)


_fused = register("linear_cross_entropy", *schema(_shapes), _run, _fake, _save, _gradients, _flops)
_scaled = register(
    "linear_cross_entropy_backward",
    ["Tensor dloss", "Tensor dhidden", "Tensor dweight", "Tensor dbias"],
    3,
    lambda dloss, *gradients: tuple(g * dloss for g in gradients),
    lambda dloss, *gradients: tuple(map(torch.empty_like, gradients)),
    *first_derivatives_only(operation),
    lambda *_: 0,
)


def _loss(*inputs: Any) -> Tensor:
    """The summed loss for the arguments of ``_shapes`` but the last, and the name of an implementation."""
    inputs, impl = inputs[:-1], inputs[-1]
    if not torch.compiler.is_compiling():
        impl = operation.choice(impl)
    if under_transforms() and (plain := operation.plain(impl, inputs[0].device)):
        return _plain_loss(plain, *inputs)
    wanted = under_transforms() or (
        torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs[:3])
    )
    return _fused(*inputs, wanted, impl)[0]


def _check(hidden, weight, labels, bias, softcap, label_smoothing, chunk_size, impl) -> None:
    name = "linear_cross_entropy"
    sizes = Sizes(name)
    sizes.check("MD", hidden=hidden)
    sizes.check("VD", weight=weight)
    sizes.check("V", bias=bias)
    sizes.check("M", labels=labels)
    operation.check(impl, {"labels": labels}, hidden=hidden, weight=weight, bias=bias)
    if labels.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name}: labels must be int64 token ids, got {labels.dtype}")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"{name}: softcap must be None or above 0, got {softcap}")
    if not 0 <= label_smoothing <= 1 or chunk_size < 1 or weight.shape[0] == 0:
        raise ValueError(
            f"{name}: label_smoothing must be in [0, 1], chunk_size and V at least 1, "
            f"got {label_smoothing}, {chunk_size} and {weight.shape[0]}"
        )
