"""A frozen feed-forward layer cut into blocks of which each token takes a few, with low ranks that learn (SPT)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.kernels.dispatch import full_precision
from zoo.kernels.moe import expert_utilisation, sort_by_expert
from zoo.kernels.moe.experts import Rows
from zoo.layers.linear import WideLinear
from zoo.layers.mlp import SwiGLU
from zoo.layers.moe.experts import RoutedExperts, operand
from zoo.layers.moe.latent import LatentMatrix
from zoo.layers.precision import autocast_dtype


class Frozen:
    """Matrices (E, D, F) multiplied one by one, for what learns is not they: their gradients are not computed."""

    def __init__(self, weight: Tensor):
        self.weight, self.shape = weight, weight.mT.shape

    def matmul(self, x: Tensor, *, index: int) -> Tensor:
        """x (M, D) times matrix ``index`` -> (M, F)."""
        return x @ self.weight[index]


class RoutedBlocks(RoutedExperts):
    r"""The ``top_k`` best of the blocks of a SwiGLU's inner channels, each of frozen matrices and trained low ranks.

    .. math::
        p = \sigma(W_r x), \; \mathcal{E} = \mathrm{top}_k(p), \; c_e = 2 p_e, \quad
        y = \sum_{e \in \mathcal{E}} (c_e W^2_e + \Delta^2_e)
        (\phi(c_e W^1_e x + \Delta^1_e x) \odot (c_e W^3_e x + \Delta^3_e x))

    with :math:`\Delta` of rank r, 0 at first. With all blocks and :math:`p = 1/2` this is the layer as it was.

    Args:
        dim: D.
        hidden_dim: F, of all blocks.
        num_blocks: that F is cut into.
        top_k: blocks a token takes.
        rank: r.
        act: phi.

    Raises:
        ValueError: for blocks that do not divide F, or a top_k outside [1, num_blocks].

    Source: LoRARoutedLLaMaFFN of SPT's code, github.com/ytgui/SPT-proto; paper: arXiv 2312.10365.
    """

    w3: nn.Parameter

    def __init__(self, dim: int, hidden_dim: int, num_blocks: int, top_k: int, rank: int, act=None):
        if num_blocks < 1 or hidden_dim % num_blocks:
            raise ValueError(f"num_blocks must divide the inner channels, got {num_blocks} for {hidden_dim}")
        inner = hidden_dim // num_blocks
        router = WideLinear(dim, num_blocks, bias=True)
        super().__init__(router, dim, inner, num_blocks, top_k, act=act)
        for weight in (self.w1, self.w3, self.w2):
            weight.requires_grad_(False)
        self.delta1 = LatentMatrix(num_blocks, 1, dim, inner, rank)
        self.delta3 = LatentMatrix(num_blocks, 1, dim, inner, rank)
        self.delta2 = LatentMatrix(num_blocks, 1, inner, dim, rank, out=True)
        for delta in (self.delta1, self.delta3):
            nn.init.normal_(delta.shared)
            nn.init.zeros_(delta.each)
        nn.init.normal_(self.delta2.each)
        nn.init.zeros_(self.delta2.shared)

    @torch.no_grad()
    def take(self, layer: SwiGLU) -> None:
        """The matrices of a layer, in blocks."""
        self.w1.copy_(layer.w1.weight.unflatten(0, (self.num_experts, -1)).mT)
        self.w3.copy_(layer.w3.weight.unflatten(0, (self.num_experts, -1)).mT)
        self.w2.copy_(layer.w2.weight.T.unflatten(0, (self.num_experts, -1)))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (..., D) -> (..., D); where ``mask`` (...) is False, as for padding, no block is visited: y = 0."""
        tokens, low = x.flatten(0, -2), autocast_dtype(x.device.type)
        best = self.router(tokens).sigmoid().topk(self.top_k, dim=-1)
        blocks = best.indices if mask is None else best.indices.masked_fill(~mask.flatten()[:, None], self.num_experts)
        tokens, w1, w3, w2, d1, d3, d2 = (
            operand(t, low) for t in (tokens, self.w1, self.w3, self.w2, self.delta1, self.delta3, self.delta2)
        )
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            w1, w3, w2 = Frozen(w1), Frozen(w3), Frozen(w2)
        with full_precision(x.device):
            rows = Rows(tokens, blocks, sort_by_expert(blocks, self.num_experts), "auto")
            c = 2 * best.values.flatten()[rows.order.order, None].to(tokens.dtype)  # (M k, 1)
            scaled = c * rows.gathered()
            gate, up = (rows.product(scaled, w) + rows.into(d) for w, d in ((w1, d1), (w3, d3)))
            hidden = checkpoint(self.gated, gate, up, use_reentrant=False, preserve_rng_state=False)
            y = rows.in_token_order(rows.product(c * hidden, w2) + rows.out(hidden, d2))
        self.report({}, {"tokens_per_block": expert_utilisation(blocks, self.num_experts).counts})
        return y.unflatten(0, blocks.shape).sum(1).view(x.shape)

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """phi(gate) times up, which is cheaper to compute twice than to keep."""
        return self.act(gate) * up
