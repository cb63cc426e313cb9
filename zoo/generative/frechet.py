r"""How far apart two sets of images are, as Gaussians of their pixels.

.. math:: d = |\mu_a - \mu_b|^2 + \mathrm{tr}\,(\Sigma_a + \Sigma_b - 2 (\Sigma_a \Sigma_b)^{1/2})

Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", arXiv 1706.08500,
take features of an Inception network for images; here they are the pixels themselves, so that nothing is downloaded and
images of any size have them. Figures are comparable among each other, and with no published FID.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 16  # of the maps that larger images are averaged to: covariances are (C * SIDE * SIDE)^2 at most


def frechet(images: Tensor, others: Tensor) -> float:
    """The distance between images and others, (N, C, H, W) and (M, C, H, W), of pixels in [0, 1].

    0 for the same set; what lacks variance is as far as what is displaced. Images of more than 16 pixels a side are
    averaged over areas first.

    Raises:
        ValueError: for images of other channels or sizes, or none.
    """
    if images.dim() != 4 or images.shape[1:] != others.shape[1:] or not len(images) or not len(others):
        raise ValueError(
            f"the distance is of two sets of images (N, C, H, W) of one size, got {tuple(images.shape)} and "
            f"{tuple(others.shape)}"
        )
    first, second = features(images).cpu().double(), features(others).cpu().double()
    (mean, spread), (other_mean, other_spread) = moments(first), moments(second)
    values, vectors = torch.linalg.eigh(spread)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.mT
    shared = torch.linalg.eigvalsh(root @ other_spread @ root).clamp_min(0).sqrt().sum()
    found = (mean - other_mean).square().sum() + spread.trace() + other_spread.trace() - 2 * shared
    return max(0.0, found.item())


def features(images: Tensor) -> Tensor:
    """Images (N, C, H, W) -> their pixels (N, D), averaged over areas where there are many."""
    height, width = (min(side, SIDE) for side in images.shape[2:])
    return F.adaptive_avg_pool2d(images, (height, width)).flatten(1)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of x (N, D)."""
    mean = x.mean(0)
    return mean, (x - mean).mT @ (x - mean) / len(x)
