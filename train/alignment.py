"""Embeddings of two kinds of things, brought to one place without training.

Paper: Restrepo et al., "Multimodal Deep Learning for Low-Resource Settings: A Vector Embedding Alignment Approach for
Healthcare Applications", arXiv 2406.02601.
"""

from __future__ import annotations

import dataclasses

import torch.nn.functional as F
from torch import Tensor

from zoo.layers.options import require_at_least


@dataclasses.dataclass(frozen=True)
class Alignment:
    r"""The gap between embeddings u of one kind and v of another, and how much of it is closed.

    .. math::
        \Delta = \overline{u} - \overline{v}, \quad u' = \frac{u - \lambda \Delta / 2}{|\cdot|}, \quad
        v' = \frac{v + \lambda \Delta / 2}{|\cdot|}

    of u and v of length 1, the means those of training data. At lambda 0 nothing but the length changes; at 1 both
    means are the same before the lengths are made 1 again. A linear layer over both side by side undoes any shift, so
    that it is in the lengths, and in distances, that it counts.

    Whether the authors halve the gap and make lengths 1 again is not known to us: ``share`` and ``unit`` are options.

    Args:
        gap: Delta (D,).
        share: lambda.
        unit: lengths are made 1 again.
    """

    gap: Tensor
    share: float = 1.0
    unit: bool = True

    @classmethod
    def fitted(cls, u: Tensor, v: Tensor, share: float = 1.0, unit: bool = True) -> Alignment:
        """Of training embeddings (N, D) and (M, D).

        Raises:
            ValueError: for embeddings of different widths, or a negative share.
        """
        require_at_least(0, share=share)
        if u.dim() != 2 or u.shape[1:] != v.shape[1:]:
            raise ValueError(f"embeddings must be (N, D) and of one width, got {tuple(u.shape)} and {tuple(v.shape)}")
        return cls(F.normalize(u).mean(0) - F.normalize(v).mean(0), share, unit)

    def __call__(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (..., D) of both kinds, of any length -> the same, aligned."""
        shift = self.share * self.gap / 2
        moved = F.normalize(u, dim=-1) - shift, F.normalize(v, dim=-1) + shift
        return (F.normalize(moved[0], dim=-1), F.normalize(moved[1], dim=-1)) if self.unit else moved
