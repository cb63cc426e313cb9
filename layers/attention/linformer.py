"""Linformer's attention: keys and values are mixed along the sequence down to a fixed number."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.options import require_at_least


class SequenceProjection(nn.Module):
    """E x: ``rank`` mixtures of the positions of a sequence, one matrix for all heads or one for each.

    Initially uniform within rank^-0.5. A shorter sequence is one that ends in zeros.

    Args:
        length: positions there are at most, n.
        rank: mixtures, k.
        num_heads: heads with a matrix of their own, or 1.

    Paper: Wang et al., "Linformer", arXiv 2006.04768, section 4.
    """

    def __init__(self, length: int, rank: int, num_heads: int = 1):
        super().__init__()
        require_at_least(1, length=length, rank=rank)
        self.weight = nn.Parameter(torch.empty(num_heads, rank, length).uniform_(-(rank**-0.5), rank**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, T, d) -> (B, H, rank, d).

        Raises:
            ValueError: for more positions than there are weights for.
        """
        if x.shape[-2] > self.weight.shape[-1]:
            raise ValueError(
                f"Linformer's projections are for sequences of at most {self.weight.shape[-1]} tokens, got "
                f"{x.shape[-2]}: make the model with a larger max_length"
            )
        return self.weight[..., : x.shape[-2]].to(x.dtype) @ x


class LinformerAttention(nn.Module):
    r"""Softmax attention of every token to mixtures of all tokens, in time linear in their number.

    .. math::
        y = W_o \, \mathrm{softmax}(q (E k)^\top / \sqrt{d}) \, F v

    It reads the whole sequence: a causal mask could not be applied behind E and F.

    Args:
        dim: model width.
        num_heads: heads.
        keys, values: E and F, which may be one module.

    Raises:
        ValueError: when num_heads does not divide dim.

    Paper: Wang et al., "Linformer", arXiv 2006.04768, equation 7.
    """

    def __init__(self, dim: int, num_heads: int, keys: SequenceProjection, values: SequenceProjection):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide dim: got dim {dim}, num_heads {num_heads}")
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.keys, self.values = keys, values
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, T, dim), and mask (B, T), False at padding, which comes last and changes nothing -> (B, T, dim)."""
        q, k, v = (
            proj(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # (B, H, T, d)
        if mask is not None:
            k, v = (heads.masked_fill(~mask[:, None, :, None], 0) for heads in (k, v))
        y = F.scaled_dot_product_attention(q, self.keys(k), self.values(v))
        return self.out_proj(y.transpose(1, 2).flatten(2))
