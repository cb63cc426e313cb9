"""Positive orthogonal random features of the exponential kernel."""

from __future__ import annotations

import torch
from torch import Tensor


def orthogonal_gaussian(rows: int, dim: int) -> Tensor:
    """(rows, dim) normal vectors, orthogonal to each other within every group of ``dim`` of them.

    The directions are those of uniformly random rotations and the lengths those of independent normal vectors, so that
    each row by itself is standard normal (what makes the features unbiased) while a group covers the space evenly.
    """
    groups = []
    for _ in range(-(-rows // dim)):
        rotation, triangle = torch.linalg.qr(torch.randn(dim, dim))
        groups.append((rotation * triangle.diagonal().sign()).T)
    lengths = torch.randn(rows, dim).norm(dim=1, keepdim=True)
    return lengths * torch.cat(groups)[:rows]


def log_features(x: Tensor, projection: Tensor) -> Tensor:
    r"""Logarithms of the unscaled features of x (..., d): (..., M), M = 2 * rows of ``projection`` (rows, d).

    .. math::
        \phi(x) = M^{-1/2} \, [\exp(w_i \cdot x - |x|^2 / 2), \; \exp(-w_i \cdot x - |x|^2 / 2)]_i, \quad
        \mathbb{E}_w \, \phi(x) \cdot \phi(y) = \exp(x \cdot y)

    Paper: Choromanski et al., "Rethinking Attention with Performers", arXiv 2009.14794, lemma 1 (hyperbolic form).
    """
    along = x @ projection.T
    return torch.cat([along, -along], dim=-1) - x.square().sum(-1, keepdim=True) / 2


def positive_features(x: Tensor, projection: Tensor) -> Tensor:
    """The features phi(x) (..., M) themselves, in the range of the dtype: for studies of moderate x."""
    return log_features(x, projection).exp() * (2 * len(projection)) ** -0.5
