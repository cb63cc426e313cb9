"""Attention whose weights come from positions, not from what stands there."""

from __future__ import annotations

from torch import Tensor, nn


class PositionalAttention(nn.Module):
    r"""Values are mixed by weights that are the same for every input.

    .. math::
        A_h = \mathrm{softmax}\big((P Q_h) (P K_h)^\top / \sqrt{k}\big), \quad y = W_o [A_1 v_1, \dots, A_H v_H]

    P holds the codes of the positions, of width k; each head's queries and keys are as wide. With the input itself in
    P's place this is the standard attention that the paper compares with.

    Args:
        dim: model width, of values and output.
        num_heads: heads H.
        key_dim: width k of what queries and keys are made of.

    Raises:
        ValueError: when num_heads does not divide dim.

    Paper: "Positional Attention: Expressivity and Learnability of Algorithmic Computation", arXiv 2410.01686; names and
        initial weights as in the authors' code.
    """

    def __init__(self, dim: int, num_heads: int, key_dim: int):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide dim: got dim {dim}, num_heads {num_heads}")
        self.num_heads = num_heads
        self.qk_proj = nn.Linear(key_dim, 2 * key_dim * num_heads)
        self.v_proj, self.o_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        for proj in (self.qk_proj, self.v_proj, self.o_proj):
            nn.init.xavier_uniform_(proj.weight)
            nn.init.zeros_(proj.bias)

    def weights(self, codes: Tensor) -> Tensor:
        """codes (..., T, k) -> A (..., H, T, T)."""
        q, k = self.qk_proj(codes).unflatten(-1, (self.num_heads, -1)).transpose(-3, -2).chunk(2, dim=-1)
        return (q @ k.transpose(-2, -1) * codes.shape[-1] ** -0.5).softmax(-1)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        """x (B, T, dim), codes (T, k), or (B, T, k) -> (B, T, dim)."""
        v = self.v_proj(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, T, d)
        return self.o_proj((self.weights(codes) @ v).transpose(1, 2).flatten(2))
