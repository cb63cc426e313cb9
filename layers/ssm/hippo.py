"""Initial state matrices of S4 and S4D: HiPPO-LegS, its diagonal approximations, and random ones to compare with.

A matrix of size N = d_state comes as N / 2 complex eigenvalues and vectors in their basis; the other half are their
conjugates. All are float64 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class DiagonalPlusLowRank(NamedTuple):
    """A = diag(Lambda) - P P^* and input vector B, each (N / 2,), complex."""

    Lambda: Tensor
    P: Tensor
    B: Tensor


class Diagonal(NamedTuple):
    """A = diag(Lambda) and input vector B, each (N / 2,), complex."""

    Lambda: Tensor
    B: Tensor


def legs_matrix(d_state: int) -> tuple[Tensor, Tensor]:
    r"""HiPPO-LegS: :math:`A_{nk} = -\sqrt{(2n+1)(2k+1)}` below the diagonal, :math:`-(n+1)` on it, and
    :math:`B_n = \sqrt{2n+1}`.

    Paper: Gu et al., "HiPPO: Recurrent Memory with Optimal Polynomial Projections", arXiv 2008.07669.
    """
    n = torch.arange(d_state, dtype=torch.float64, device="cpu")
    B = (2 * n + 1).sqrt()
    return -(torch.outer(B, B).tril(-1) + torch.diag(n + 1)), B


def legs_dplr(d_state: int, largest: float = 2.0) -> DiagonalPlusLowRank:
    r"""HiPPO-LegS in the basis V where it is diagonal plus rank one.

    With :math:`P_n = \sqrt{n + 1/2}` the matrix :math:`A + P P^\top` is :math:`-I/2` plus a skew-symmetric one, which a
    unitary V diagonalises. The phases of its columns are free, and chosen at the end so that V^* P is real. Before, in
    those that the eigensolver finds and that leave :math:`V^* B = \sqrt 2 V^* P` almost imaginary, the authors' current
    code clips the imaginary part of V^* B, as is done here: of N = 64 from up to 40.8 to 2.

    Args:
        d_state: N.
        largest: bound of the imaginary parts; infinite for HiPPO-LegS itself.

    Paper: Gu et al., "Efficiently Modeling Long Sequences with Structured State Spaces", arXiv 2111.00396, theorem 1;
    the bound: state-spaces/s4, src/models/hippo/hippo.py.
    """
    modes = len(_modes(d_state))
    if torch.get_default_device().type == "meta":  # only shapes are asked for
        Lambda, B = diagonal_lin(d_state)
        return DiagonalPlusLowRank(Lambda, B, B)
    A, B = legs_matrix(d_state)
    P = B / math.sqrt(2)
    frequency, V = torch.linalg.eigh(-1j * (A + torch.outer(P, P) + 0.5 * torch.eye(d_state, device="cpu")))
    frequency, V = -frequency[:modes].flip(0), V[:, :modes].flip(1)  # the conjugates of the positive frequencies
    P, B = (V.mH @ vector.to(V.dtype) for vector in (P, B))
    B = torch.complex(B.real, B.imag.clamp(-largest, largest)) * P.conj() / P.abs()
    return DiagonalPlusLowRank(-0.5 + 1j * frequency, P.abs().to(V.dtype), B.conj().resolve_conj())


def random_dplr(d_state: int) -> DiagonalPlusLowRank:
    """Frequencies exp(normal), complex normal P, B = 1: what HiPPO is compared with."""
    Lambda, B = diagonal_random(d_state)
    return DiagonalPlusLowRank(Lambda, torch.randn(d_state // 2, dtype=Lambda.dtype, device="cpu"), B)


def diagonal_legs(d_state: int) -> Diagonal:
    """S4D-LegS: ``legs_dplr`` without its low-rank part."""
    Lambda, _, B = legs_dplr(d_state)
    return Diagonal(Lambda, B)


def diagonal_inv(d_state: int) -> Diagonal:
    r"""S4D-Inv: imaginary parts :math:`\frac{N}{\pi} (\frac{N}{2n+1} - 1)`, close to those of S4D-LegS."""
    return _oscillating(lambda n: d_state / math.pi * (d_state / (2 * n + 1) - 1), d_state)


def diagonal_inv2(d_state: int) -> Diagonal:
    r"""Imaginary parts :math:`\frac{N}{\pi} (\frac{N}{n+1} - 1)`."""
    return _oscillating(lambda n: d_state / math.pi * (d_state / (n + 1) - 1), d_state)


def diagonal_lin(d_state: int) -> Diagonal:
    r"""S4D-Lin: imaginary parts :math:`\pi n`."""
    return _oscillating(lambda n: math.pi * n, d_state)


def diagonal_quad(d_state: int) -> Diagonal:
    r"""Imaginary parts :math:`(2n+1)^2 / \pi`."""
    return _oscillating(lambda n: (2 * n + 1) ** 2 / math.pi, d_state)


def diagonal_random(d_state: int) -> Diagonal:
    """Imaginary parts exp(normal)."""
    return _oscillating(lambda n: torch.randn_like(n).exp(), d_state)


def diagonal_real(d_state: int) -> Diagonal:
    """S4D-Real: -(n + 1), without oscillation."""
    n = _modes(d_state)
    return Diagonal(torch.complex(-(n + 1), torch.zeros_like(n)), torch.ones_like(n).to(torch.complex128))


def _oscillating(frequency: Callable[[Tensor], Tensor], d_state: int) -> Diagonal:
    """-1/2 + i frequency(n) for n < N / 2, B = 1 (the S4D paper, arXiv 2206.11893, sections 4.2 and 4.3)."""
    n = _modes(d_state)
    return Diagonal(torch.complex(torch.full_like(n, -0.5), frequency(n)), torch.ones_like(n).to(torch.complex128))


def _modes(d_state: int) -> Tensor:
    """0, ..., N / 2 - 1."""
    if d_state < 2 or d_state % 2:
        raise ValueError(f"d_state must be even and at least 2, as modes come in conjugate pairs: got {d_state}")
    return torch.arange(d_state // 2, dtype=torch.float64, device="cpu")
