"""The gated long convolution and its gradients over any transform that turns it into a product.

For a spectrum X of x, with k the kernel, and dc the gradient of the convolution (dc = gate * dy):

    c = inverse(U K)    du = inverse(conj(K) dC)    dk = inverse(sum over the batch of conj(U) dC)
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Transform(Protocol):
    """A transform of signals (B, T, D) along T; a spectrum is one tensor of any layout."""

    def spectrum(self, x: Tensor, *, extended: bool = False) -> Tensor:
        """Spectrum of x, ``extended`` periodically where the transform is longer than the circle it stands for."""
        ...

    def multiply(self, spectrum: Tensor, other: Tensor, *, conjugate: bool = False) -> Tensor:
        """Product with ``other`` (of batch size 1, or the same), the first factor conjugated if asked to."""
        ...

    def sum_batch(self, spectrum: Tensor) -> Tensor:
        """Sum over the batch, kept as a batch of one."""
        ...

    def signal(self, spectrum: Tensor, length: int, *, folded: bool = False) -> Tensor:
        """The first ``length`` steps, ``folded`` onto the circle where the transform is longer than it."""
        ...


def forward(transform: Transform, u: Tensor, K: Tensor, D: Tensor | None, gate: Tensor | None) -> Tensor:
    """y = gate * (convolution + D u); u (B, T, D), K the spectrum of the kernel."""
    y = transform.signal(transform.multiply(K, transform.spectrum(u)), u.shape[1], folded=True)
    return with_skip_and_gate(y, u, D, gate)


def backward(
    transform: Transform, dy: Tensor, u: Tensor, K: Tensor, D: Tensor | None, gate: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradient of u, spectrum of that of the kernel, gradients of D and gate; each input is transformed once."""
    length = u.shape[1]
    U = transform.spectrum(u)
    dgate = None
    if gate is not None:
        y = transform.signal(transform.multiply(K, U), length, folded=True)
        dgate = dy * with_skip_and_gate(y, u, D, None)
        dy = dy * gate
    dC = transform.spectrum(dy, extended=True)
    du = transform.signal(transform.multiply(K, dC, conjugate=True), length)
    du = du if D is None else torch.addcmul(du, dy, D)
    dK = transform.sum_batch(transform.multiply(U, dC, conjugate=True))
    return du, dK, None if D is None else (dy * u).sum((0, 1)), dgate


def with_skip_and_gate(y: Tensor, u: Tensor, D: Tensor | None, gate: Tensor | None) -> Tensor:
    """gate * (y + D u), of what is there."""
    y = y if D is None else torch.addcmul(y, u, D)
    return y if gate is None else y * gate
