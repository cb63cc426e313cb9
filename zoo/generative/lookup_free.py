r"""Codes that are signs: quantisation without a table to look up, in groups of channels.

Paper: Zhuang et al., "WeTok: Powerful Discrete Tokenization for High-Fidelity Visual Reconstruction", arXiv 2508.05599.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.dispatch import compute_dtype
from zoo.layers.report import Reports


class GroupedLookupFree(Reports):
    r"""q = sign(z), where 0 is negative, with the gradient passed straight through; groups of ``bits`` channels are one
    index each.

    In training it publishes two side losses of z in float32: "commit", the mean square of z - q, and "entropy", the
    mean entropy of one position's softmax over its group's codes less that of the mean softmax,

    .. math:: p(c \mid z) \propto e^{2 z \cdot c / T}

    The mean is over batch, positions and groups, as in the authors' code, or of each group by itself. A group costs
    :math:`2^{bits}` numbers a position, where all channels at once would cost :math:`2^{groups \cdot bits}`; the
    entropy of one position is the same either way, as the softmax is a product over bits.

    Args:
        groups: indices a position.
        bits: channels of a group.
        entropy_weight, commitment_weight: factors of the side losses.
        temperature: T.
        shared_usage: one mean over all groups.
    """

    def __init__(
        self, groups: int, bits: int, *, entropy_weight: float = 0.1, commitment_weight: float = 0.25,
        temperature: float = 0.01, shared_usage: bool = True,
    ):  # fmt: skip
        super().__init__()
        self.groups, self.bits, self.temperature, self.shared_usage = groups, bits, temperature, shared_usage
        self.entropy_weight, self.commitment_weight = entropy_weight, commitment_weight

    def forward(self, z: Tensor) -> Tensor:
        """z (B, groups * bits, H, W) -> q of the same shape."""
        q = torch.where(z > 0, 1.0, -1.0).to(z.dtype)
        return z + (q - z).detach() if z.requires_grad else q

    def losses(self, z: Tensor) -> dict[str, Tensor]:
        """The side losses of z (B, groups * bits, H, W), weighted."""
        z = z.to(compute_dtype(z))
        sample, usage = self.entropies(z)
        commit = F.mse_loss(z, torch.where(z > 0, 1.0, -1.0).to(z.dtype))
        return {"entropy": self.entropy_weight * (sample - usage), "commit": self.commitment_weight * commit}

    def entropies(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean entropy of a position's codes and entropy of their mean, in nats, of z (B, groups * bits, H, W)."""
        parts = self._parts(z)  # (..., groups, bits)
        log_law = (2 / self.temperature * parts @ self._table(z).mT).log_softmax(-1)  # (..., groups, codes)
        law = log_law.exp()
        mean = law.flatten(0, 3 if self.shared_usage else 2).mean(0)
        log_mean = mean.clamp_min(torch.finfo(mean.dtype).tiny).log()
        return -(law * log_law).sum(-1).mean(), -(mean * log_mean).sum(-1).mean()

    def indices(self, z: Tensor) -> Tensor:
        """z or q (B, groups * bits, H, W) -> (B, H, W, groups) int64, bit i of an index being channel i of the
        group."""
        return ((self._parts(z) > 0).long() << torch.arange(self.bits, device=z.device)).sum(-1)

    def codes(self, indices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, H, W, groups) int64 -> q (B, groups * bits, H, W)."""
        bits = (indices[..., None] >> torch.arange(self.bits, device=indices.device)) & 1
        return (2 * bits - 1).to(dtype).flatten(-2).movedim(-1, 1)

    def _parts(self, z: Tensor) -> Tensor:
        return z.movedim(1, -1).unflatten(-1, (self.groups, self.bits))

    def _table(self, z: Tensor) -> Tensor:
        """All codes of a group, (2 ** bits, bits)."""
        every = torch.arange(2**self.bits, device=z.device)[:, None] >> torch.arange(self.bits, device=z.device)
        return (2 * (every & 1) - 1).to(z.dtype)
