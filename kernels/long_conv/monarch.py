r"""The long convolution by a Monarch decomposition: the Fourier transform as products of small dense matrices.

With N = N1 N2 ... Np, time n = n1 N/N1 + n2 N/(N1 N2) + ... and frequency k = k1 + N1 k2 + N1 N2 k3 + ..., stage p
contracts np into kp for each frequency q = k1 + N1 k2 + ... found so far (Q = N1 ... N(p-1) of them):

.. math:: x_{q, k_p} = \sum_{n_p} \exp(-2 \pi i \, n_p (q + Q k_p) / (Q N_p)) \, x_{q, n_p}

which is the DFT matrix of size Np with the twiddle factors inside. The stages leave the frequencies in the order
(k1, k2, ...), which a product of spectra does not mind, so nothing is ever permuted. The input is real: half of the k1
are enough, and a complex number is two rows (real, imaginary) of a real matrix product. Time rows that are zero by
padding are left out of stage 1. The inverse is the transposed stages in the opposite order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement
from math import pi, prod

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.long_conv import spectral

LARGEST = 64  # of a factor after the first
PASS = 32  # one more way through memory, in the units of ``cost``: shorter sums, which also round less, for more passes


def forward(u: Tensor, kernel: Tensor, D: Tensor | None, gate: Tensor | None, circular: bool) -> Tensor:
    """Same arguments and result as the reference."""
    transform = _transform(u.shape[1], kernel.shape[1], circular)
    return spectral.forward(transform, u, transform.spectrum(kernel.mT[None]), D, gate)


def backward(
    dy: Tensor, u: Tensor, kernel: Tensor, D: Tensor | None, gate: Tensor | None, circular: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of u, kernel, D and gate."""
    transform = _transform(u.shape[1], kernel.shape[1], circular)
    du, dK, dD, dgate = spectral.backward(transform, dy, u, transform.spectrum(kernel.mT[None]), D, gate)
    return du, transform.signal(dK, kernel.shape[1])[0].mT, dD, dgate


@dataclass(frozen=True)
class Monarch:
    """Transform of real signals of up to N = prod(factors) steps; a spectrum is (q, 2, 1, B * D) for the q kept.

    ``circle``: 0, or the length T < N of the circle that the convolution is about. It is then computed as a linear one
    of length ``reach``, whose tail is folded back onto its beginning.
    """

    factors: tuple[int, ...]
    circle: int = 0
    reach: int = 0

    def spectrum(self, x: Tensor, *, extended: bool = False) -> Tensor:
        if extended and self.circle > 0:
            x = torch.cat([x, x[:, : self.reach - self.circle]], 1)
        batch, length, dim = x.shape
        first, _, *others = _matrices(self.factors, x.dtype, x.device)
        rest = prod(self.factors[1:])
        rows = -(-length // rest)
        x = F.pad(x, (0, 0, 0, rows * rest - length)).transpose(0, 1).reshape(rows, rest * batch * dim)
        x = first[:, :rows] @ x
        for matrix in others:
            x = torch.bmm(matrix, x.reshape(matrix.shape[0], matrix.shape[2], -1))
        return x.reshape(-1, 2, batch, dim)

    def multiply(self, spectrum: Tensor, other: Tensor, *, conjugate: bool = False) -> Tensor:
        sign = -1 if conjugate else 1
        (a, b), (c, d) = spectrum.unbind(1), other.unbind(1)
        product = torch.empty_like(other)
        torch.mul(a, c, out=product[:, 0]).addcmul_(b, d, value=-sign)
        torch.mul(a, d, out=product[:, 1]).addcmul_(b, c, value=sign)
        return product

    def sum_batch(self, spectrum: Tensor) -> Tensor:
        return spectrum.sum(2, keepdim=True)

    def signal(self, spectrum: Tensor, length: int, *, folded: bool = False) -> Tensor:
        folded = folded and self.circle > 0
        batch, dim = spectrum.shape[2:]
        _, last, *others = _matrices(self.factors, spectrum.dtype, spectrum.device)
        x = spectrum
        for matrix in reversed(others):
            x = torch.bmm(matrix.mT, x.reshape(matrix.shape[0], matrix.shape[1], -1))
        wanted = self.reach if folded else length
        rows = -(-wanted // prod(self.factors[1:]))
        x = last[:rows] @ x.reshape(last.shape[1], -1)
        x = x.reshape(-1, batch, dim)[:wanted].transpose(0, 1)
        return x[:, :length] + F.pad(x[:, length:], (0, 0, 0, 2 * length - wanted)) if folded else x


@lru_cache(maxsize=256)
def choose_factors(least: int, exact: bool = False) -> tuple[int, ...]:
    """The cheapest factors with product ``least`` if ``exact``, else with a product of at least ``least``.

    The first may be any number; the others are divisors if ``exact``, else powers of two.
    """
    sizes = [m for m in range(2, LARGEST + 1) if (least % m == 0 if exact else m & (m - 1) == 0)]
    tails = [tail for order in range(4) for tail in combinations_with_replacement(sizes, order)]
    fitting = [(-(-least // prod(tail)), *tail) for tail in tails if not exact or least % prod(tail) == 0]
    return min(fitting, key=cost)


def cost(factors: tuple[int, ...]) -> int:
    """Multiply-adds of one transform, about, with PASS for each stage's way through memory.

    The first factor costs a quarter of the others: its input is real, and half of its output is left out.
    """
    return prod(factors) * (factors[0] + 4 * sum(factors[1:]) + PASS * len(factors))


@lru_cache(maxsize=32)
def _transform(length: int, taps: int, circular: bool) -> Monarch:
    """On a circle of T steps: a mixed decomposition of T, or where a large prime factor makes that dearer, a longer
    linear convolution, folded."""
    reach = length + taps - 1
    padded = choose_factors(reach)
    if not circular:
        return Monarch(padded)
    exact = choose_factors(length, exact=True)
    return Monarch(exact) if cost(exact) <= cost(padded) else Monarch(padded, length, reach)


@lru_cache(maxsize=16)
def _matrices(factors: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Stage 1 (2 h, N1), its inverse (N1, 2 h) for h = N1 // 2 + 1, and the other stages (q, 2 Np, 2 Np)."""
    half = torch.arange(factors[0] // 2 + 1)
    paired = (half > 0) & (2 * half < factors[0])  # k1 that stand for N1 - k1 too
    first = _stage(torch.zeros(1, dtype=torch.int64), 1, factors[0])[0].view(factors[0], 2, 2, -1)
    first = first[: len(half), :, 0].flatten(0, 1)
    weight = (1 + paired.double()).repeat_interleave(2)[:, None] / prod(factors)
    stages, frequency, found = [first, (first * weight).mT], half, factors[0]
    for size in factors[1:]:
        stages.append(_stage(frequency, found, size))
        frequency = (frequency[:, None] + found * torch.arange(size)).flatten()
        found *= size
    return tuple(stage.to(device, dtype).contiguous() for stage in stages)


def _stage(frequency: Tensor, found: int, size: int) -> Tensor:
    """(q, 2 size, 2 size): rows (kp, real or imaginary), columns (real or imaginary, np)."""
    time = torch.arange(size)
    turns = time * (frequency[:, None, None] + found * time[:, None]) % (found * size)  # (q, kp, np)
    angle = turns.double() * (2 * pi / (found * size))
    cos, sin = angle.cos(), angle.sin()
    rows = torch.stack([torch.stack([cos, sin], 2), torch.stack([-sin, cos], 2)], 2)  # (q, kp, row, column, np)
    return rows.reshape(-1, 2 * size, 2 * size)
