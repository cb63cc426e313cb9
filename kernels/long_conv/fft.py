"""The long convolution by torch.fft, in blocks of channels whose spectra stay in the processor's cache.

The backward keeps nothing but the inputs and transforms each of them once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.kernels.long_conv import spectral
from zoo.kernels.stand_in import on_cpu

CHANNELS = 128  # channels a block on the CPU
ELEMENTS = 2**18  # numbers a block at least, where the sequences are short: 1 MB of float32


def forward(u: Tensor, kernel: Tensor, D: Tensor | None, gate: Tensor | None, circular: bool) -> Tensor:
    """Same arguments and result as the reference."""
    transform = RealFFT(transform_length(u, kernel, circular))
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    for channels, batches in _blocks(u, transform.n):
        K = transform.spectrum(kernel[channels].mT[None])
        for batch in batches:
            at = batch, slice(None), channels
            y[at] = spectral.forward(transform, u[at], K, _part(D, channels), _part(gate, at))
    return y


def backward(
    dy: Tensor, u: Tensor, kernel: Tensor, D: Tensor | None, gate: Tensor | None, circular: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of u, kernel, D and gate."""
    transform = RealFFT(transform_length(u, kernel, circular))
    du, dgate = torch.empty_like(u), None if gate is None else torch.empty_like(gate)
    dkernel, dD = torch.empty_like(kernel), None if D is None else torch.zeros_like(D)
    for channels, batches in _blocks(u, transform.n):
        K = transform.spectrum(kernel[channels].mT[None])
        dK = torch.zeros_like(K)
        for batch in batches:
            at = batch, slice(None), channels
            du[at], of_K, of_D, of_gate = spectral.backward(
                transform, dy[at], u[at], K, _part(D, channels), _part(gate, at)
            )
            dK += of_K
            if dD is not None and of_D is not None:
                dD[channels] += of_D
            if dgate is not None and of_gate is not None:
                dgate[at] = of_gate
        dkernel[channels] = transform.signal(dK, kernel.shape[1])[0].mT
    return du, dkernel, dD, dgate


@dataclass(frozen=True)
class RealFFT:
    """Real FFT of n steps, zeros behind; a spectrum is complex (B, D, n // 2 + 1)."""

    n: int

    def spectrum(self, x: Tensor, *, extended: bool = False) -> Tensor:
        return torch.fft.rfft(x.mT.contiguous(), self.n)

    def multiply(self, spectrum: Tensor, other: Tensor, *, conjugate: bool = False) -> Tensor:
        return (spectrum.conj() if conjugate else spectrum) * other

    def sum_batch(self, spectrum: Tensor) -> Tensor:
        return spectrum.sum(0, keepdim=True)

    def signal(self, spectrum: Tensor, length: int, *, folded: bool = False) -> Tensor:
        return torch.fft.irfft(spectrum, self.n)[..., :length].mT


def transform_length(u: Tensor, kernel: Tensor, circular: bool) -> int:
    """T for a circle; else the smallest 2^a times 1, 3, 5 or 9 that holds every sum of a time and a lag."""
    length = u.shape[1]
    return length if circular else smooth_length(length + kernel.shape[1] - 1)


def smooth_length(least: int) -> int:
    """The smallest even 2^a, 3 2^a, 5 2^a or 9 2^a from ``least`` on."""
    return min(odd << max(1, (-(-least // odd) - 1).bit_length()) for odd in (1, 3, 5, 9))


def _blocks(u: Tensor, n: int) -> Iterator[tuple[slice, list[slice]]]:
    """Blocks of channels, each with the blocks of the batch; on other devices than the CPU one of each."""
    batch, _, dim = u.shape
    channels, rows = dim, batch
    if on_cpu(u.device):
        channels = min(CHANNELS, dim)
        rows = max(1, ELEMENTS // (n * channels))
    batches = [slice(b, b + rows) for b in range(0, batch, rows)]
    for d in range(0, dim, channels):
        yield slice(d, d + channels), batches


def _part(tensor: Tensor | None, index: slice | tuple[slice, ...]) -> Tensor | None:
    return None if tensor is None else tensor[index]
