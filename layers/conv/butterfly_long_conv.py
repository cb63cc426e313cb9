"""The bidirectional long convolution in a learned basis."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.long_conv import butterfly_conv, dft_factors
from zoo.layers.conv.long_conv_mixer import BidirectionalLongConv

LARGEST = 16  # size of a matrix of the butterfly, as in the authors' code


class ButterflyLongConv(BidirectionalLongConv):
    r"""A bidirectional convolution whose Fourier transforms of input and kernel are learned, and whose inverse is not.

    .. math:: y = \mathrm{Re} \; \mathrm{DFT}^{-1}\big( B_u(u) \cdot B_k([K, 0, K']) \big) + D u

    over N steps, the power of two from 2 L on, with u padded by zeros. B_u and B_k are products of sparse matrices made
    of small dense ones of up to 16 x 16, which all channels and all stages of one size share. They start at the
    transform, and y at the convolution of ``BidirectionalLongConv``; once learned, every step reads the whole sequence.

    Args: those of ``BidirectionalLongConv``, with two directions, and
        dft_rate: largest peak learning rate of the matrices, which ``zoo.train.optim`` reads.

    Raises:
        ValueError: for one direction.

    Paper: Fu et al., arXiv 2302.06646, section 4; sizes and rate of the authors' code.
    """

    def __init__(self, dim: int, kernel_length: int, *, directions: int = 2, dft_rate: float = 1e-3, **options: Any):
        if directions != 2:
            raise ValueError(f"a learned butterfly reads the whole sequence and needs two directions, got {directions}")
        super().__init__(dim, kernel_length, directions=directions, **options)
        self.steps = 1 << (2 * kernel_length - 1).bit_length()
        self.sizes, left = [], self.steps
        while left > 1:
            self.sizes.append(min(left, LARGEST))
            left //= self.sizes[-1]
        names = [f"{of}_dft_{size}" for of in ("input", "kernel") for size in sorted(set(self.sizes))]
        self.float32_parameters = (*self.float32_parameters, *names)
        self.learning_rates = self.learning_rates | dict.fromkeys(names, dft_rate)
        for name in names:
            (matrix,) = dft_factors(int(name.rpartition("_")[2]))
            self.register_parameter(name, nn.Parameter(torch.view_as_real(matrix)))

    def forward(self, u: Tensor) -> Tensor:
        """u (B, T, dim) -> (B, T, dim).

        Raises:
            ValueError: for more steps than N - L, where the convolution would wrap around.
        """
        longest = self.steps - self.kernel_length
        if u.shape[1] > longest:
            raise ValueError(f"the butterfly of {self.steps} steps takes sequences up to {longest}, got {u.shape[1]}")
        past, future = self.taps().chunk(2)
        around = (0, self.steps - self.kernel_length)
        kernel = F.pad(past, around) + F.pad(future, around).flip(-1)
        inverse = [f.conj() / len(f) for f in dft_factors(*self.sizes, dtype=torch.complex128, device=u.device)]
        return butterfly_conv(
            u, kernel, self._factors("input"), kernel_factors=self._factors("kernel"), inverse_factors=inverse, D=self.D
        )

    def _factors(self, of: str) -> list[Tensor]:
        return [torch.view_as_complex(getattr(self, f"{of}_dft_{size}")) for size in self.sizes]
