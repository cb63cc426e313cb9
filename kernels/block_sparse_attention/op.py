"""Block-sparse attention, dispatched over its implementations and registered as one torch operator."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernels.block_sparse_attention import gathered, reference
from zoo.kernels.dispatch import Implementation, Operation, Sizes, check_shape, compute_dtype
from zoo.kernels.operator import Like, define
from zoo.kernels.triton_support import triton_implementation


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: Tensor,
    *,
    block_size: int,
    causal: bool = False,
    scale: float | None = None,
    impl: str = "auto",
) -> Tensor:
    r"""Softmax attention between chosen pairs of blocks, in time linear in the number of pairs.

    .. math::
        y_i = \sum_{j \in V_i} \frac{\exp(s\, q_i \cdot k_j)}{\sum_{l \in V_i} \exp(s\, q_i \cdot k_l)} v_j, \quad
        V_i = \{j : M_{\lfloor i / b \rfloor, \lfloor j / b \rfloor}\}

    and when ``causal`` only :math:`j \le i + S - T`. Where :math:`V_i` is empty, y and its gradients are zero.

    Args:
        q: queries (B, T, H, K), any floating dtype; sums and softmax are float32 (float64 if any input is float64).
        k: keys (B, S, G, K); when causal S >= T, and the queries are the last T of the S positions.
        v: values (B, S, G, V). Each of the G heads of k and v serves H / G neighbouring heads of q.
        block_mask: M above, boolean (B or 1, H or 1, n, m) for n = ceil(T / b) blocks of queries, counted from the
            first query, and m = ceil(S / b) blocks of keys: True where the query block sees the key block.
        block_size: b above, in steps; the last block of either may be shorter.
        causal: whether no query sees the keys after it, also within a block.
        scale: s above; 1 / sqrt(K) when None.
        impl: "auto" or the name of an implementation ("triton", "gathered", "reference").

    Returns:
        Output (B, T, H, V) in the dtype of q, differentiable in q, k and v.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together or a block size below 1.
        RuntimeError: when the named implementation cannot run on the device of q.

    Paper: Child et al., "Generating Long Sequences with Sparse Transformers", arXiv 1904.10509; blocks as in Zaheer
    et al., "Big Bird", arXiv 2007.14062.
    """
    _check(q, k, v, block_mask, block_size, causal, impl)
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
    return _block_sparse_attention(q, k, v, block_mask, block_size, causal, scale, impl)[0]


operation = Operation(
    "block_sparse_attention",
    triton_implementation("zoo.kernels.block_sparse_attention.triton"),
    Implementation("gathered", gathered.forward, gathered.backward),
    Implementation("reference", reference.forward),
)


def _shapes(
    q: Tensor, k: Tensor, v: Tensor, block_mask: Tensor, block_size: int, causal: bool, scale: float
) -> tuple[Like, Like]:
    """The output, and the logarithms of the softmaxes' sums for the backward."""
    batch, length, heads, _ = q.shape
    return Like(q, (batch, length, heads, v.shape[-1])), Like(q, (batch, heads, length), compute_dtype(q, k, v))


def _flops(q, k, v, *_) -> int:
    """Two products for every query and key: the share of active blocks is data, which shapes do not tell."""
    return 2 * q[0] * q[1] * q[2] * k[1] * (q[3] + v[3])


_block_sparse_attention = define(operation, "q k v", _shapes, flops=_flops, extras=1)


def _check(q, k, v, block_mask, block_size, causal, impl) -> None:
    sizes = Sizes("block_sparse_attention")
    sizes.check("BTHK", q=q)
    sizes.check("BSGK", k=k)
    sizes.check("BSGV", v=v)
    batch, length, heads, keys, groups = (sizes[letter] for letter in "BTHSG")
    operation.check(impl, {"block_mask": block_mask}, q=q, k=k, v=v)
    if min(length, keys, block_size) < 1 or groups == 0 or heads % groups or (causal and keys < length):
        raise ValueError(
            "block_sparse_attention: T, S and block_size must be at least 1, the heads of k must divide those of q, "
            f"and S must be at least T when causal, got T {length}, S {keys}, block_size {block_size}, {groups} heads "
            f"of k, {heads} heads of q, causal {causal}"
        )
    blocks = -(-length // block_size), -(-keys // block_size)
    shared = [1 if size == 1 else full for size, full in zip(block_mask.shape[:2], (batch, heads), strict=False)]
    shared += [None] * (2 - len(shared))
    layout = "(B or 1, H or 1, ceil(T / b), ceil(S / b))"
    check_shape("block_sparse_attention", "block_mask", block_mask, layout, *shared, *blocks)
    if block_mask.dtype != torch.bool:
        raise ValueError(f"block_sparse_attention: block_mask must be boolean, got {block_mask.dtype}")
