"""Mean cross-entropy of a linear layer's output, fused so that the full logits are never stored."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernels.cross_entropy import chunked, reference
from zoo.kernels.dispatch import Implementation, Operation, check_floating, check_shape, compute_dtype
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
        weight: (V, D). bias: (V,).
        labels: (M,) integers y in [0, V), or ``ignore_index`` for rows that do not count; others raise an error (on
            CUDA torch's assertion, or a loss of NaN).
        z_loss: the factor zeta, which keeps the logsumexp near 0.
        softcap: the largest logit s; None for f(a) = a.
        label_smoothing: epsilon, the part of the target that is uniform over the vocabulary.
        chunk_size: rows whose logits exist at a time, at most: memory is no more than chunk_size * V numbers, and
            for large V no more than 2^23 (twice that with a softcap).
        impl: "auto" or the name of an implementation ("triton", "chunked", "reference").

    Returns:
        Scalar of the compute dtype; 0 where no row counts.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together, or options out of range.
        RuntimeError: when the named implementation cannot run on the device of hidden.

    Papers: the z-loss: Chowdhery et al., "PaLM", arXiv 2204.02311; the softcap: "Gemma 2", arXiv 2408.00118; label
    smoothing: Szegedy et al., arXiv 1512.00567; logits by tiles: Wijmans et al., "Cut Your Losses", arXiv 2411.09009.
    """
    _check(hidden, weight, labels, bias, softcap, label_smoothing, chunk_size)
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (hidden, weight, bias))
    loss, *_ = _loss(
        hidden, weight, bias, labels.long(), ignore_index, z_loss, softcap, label_smoothing, chunk_size, wanted, impl
    )
    return loss / (labels != ignore_index).sum().clamp(min=1)


operation = Operation(
    "linear_cross_entropy",
    triton_implementation("zoo.kernels.cross_entropy.triton"),
    Implementation("chunked", chunked.forward, chunked.backward),
    Implementation("reference", reference.forward, reference.backward),
)


@torch.library.custom_op("zoo::linear_cross_entropy", mutates_args=())
def _loss(
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
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Summed loss and, with ``gradients``, its gradients of hidden, weight and bias; what is not there is empty."""
    chosen, dtype = operation.resolve(impl, hidden.device), compute_dtype(hidden, weight, bias)
    tensors = chosen.prepare(dtype, hidden, weight, bias, labels)
    options = ignore_index, z_loss, softcap, label_smoothing, chunk_size
    if not gradients:
        none = (hidden.new_empty(0, dtype=dtype) for _ in range(3))
        return chosen.forward(*tensors, *options), *none  # type: ignore[return-value]
    loss, dhidden, dweight, dbias = chosen.backward(*tensors, *options)
    return loss, dhidden, dweight, hidden.new_empty(0, dtype=dtype) if dbias is None else dbias


@torch.library.custom_op("zoo::linear_cross_entropy_backward", mutates_args=())
def _loss_backward(dloss: Tensor, dhidden: Tensor, dweight: Tensor, dbias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the summed loss, times the gradient that arrives at it."""
    return dhidden * dloss, dweight * dloss, dbias * dloss


@_loss.register_fake
def _(hidden, weight, bias, labels, ignore_index, z_loss, softcap, label_smoothing, chunk_size, gradients, impl):
    dtype = compute_dtype(hidden, weight, bias)
    inputs = (hidden, weight, bias) if gradients else (None, None, None)
    like = (hidden.new_empty(0 if t is None else t.shape, dtype=dtype) for t in inputs)
    return hidden.new_empty((), dtype=dtype), *like


@_loss_backward.register_fake
def _(dloss, dhidden, dweight, dbias):
    return torch.empty_like(dhidden), torch.empty_like(dweight), torch.empty_like(dbias)


def _setup_context(ctx, inputs, output):
    ctx.gradients, ctx.dtypes = inputs[-2], [None if t is None else t.dtype for t in inputs[:3]]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # no zeros as large as the weight for what has no gradient
    ctx.save_for_backward(*output[1:])


def _backward(ctx, dloss, *_):
    if dloss is None:
        return (None,) * 11
    if not ctx.gradients:
        raise RuntimeError("zoo::linear_cross_entropy was called with gradients=False: there is nothing to go back by")
    found = _loss_backward(dloss, *ctx.saved_tensors)
    cast = (None if dtype is None else g.to(dtype) for g, dtype in zip(found, ctx.dtypes, strict=True))
    return *cast, *[None] * 8


_loss.register_autograd(_backward, setup_context=_setup_context)


def _check(hidden, weight, labels, bias, softcap, label_smoothing, chunk_size) -> None:
    name = "linear_cross_entropy"
    check_shape(name, "hidden", hidden, "(M, D)", None, None)
    check_shape(name, "weight", weight, "(V, D)", None, hidden.shape[1])
    check_shape(name, "bias", bias, "(V,)", weight.shape[0])
    check_shape(name, "labels", labels, "(M,)", hidden.shape[0])
    check_floating(name, hidden=hidden, weight=weight, bias=bias)
    if labels.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name}: labels must be int64 token ids, got {labels.dtype}")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"{name}: softcap must be None or above 0, got {softcap}")
    if not 0 <= label_smoothing <= 1 or chunk_size < 1 or weight.shape[0] == 0:
        raise ValueError(
            f"{name}: label_smoothing must be in [0, 1], chunk_size and V at least 1, "
            f"got {label_smoothing}, {chunk_size} and {weight.shape[0]}"
        )
