"""A linear layer with a low-rank one beside it, which alone learns."""

from __future__ import annotations

from torch import Tensor, nn


class LoRA(nn.Module):
    """y = layer(x) + B (A x) with A (r, in) normal and B (out, r) zero at first, without a factor.

    Args:
        layer: whose parameters are frozen.
        rank: r.

    Paper: Hu et al., "LoRA", arXiv 2106.09685; as SPT has it, github.com/ytgui/SPT-proto.
    """

    def __init__(self, layer: nn.Linear, rank: int):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        like = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        self.down = nn.Linear(layer.in_features, rank, bias=False, **like)
        self.up = nn.Linear(rank, layer.out_features, bias=False, **like)
        nn.init.normal_(self.down.weight)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        return self.layer(x) + self.up(self.down(x))
