"""Learned convolutions as long as the sequence, and the gated block of H3 over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels import ConvOutput, long_conv, packed_long_conv
from zoo.layers.mixer import Mixer, skips_padding
from zoo.layers.precision import KeepsFloat32
from zoo.layers.state import State, keep_rows

KernelInit = Callable[[int, int], Tensor]


def random_kernel(dim: int, kernel_length: int) -> Tensor:
    """Normal, standard deviation 0.002; (dim, kernel_length)."""
    return 0.002 * torch.randn(dim, kernel_length)


def decaying_kernel(dim: int, kernel_length: int) -> Tensor:
    """Normal, 0.02 exp(-(dim / 2)^(i / dim) j / kernel_length) at tap j of channel i: each channel its own reach."""
    rate = max(1, dim // 2) ** (torch.arange(dim) / dim)
    return (
        0.02 * torch.randn(dim, kernel_length) * torch.exp(-rate[:, None] * torch.arange(kernel_length) / kernel_length)
    )


class LearnedTaps(KeepsFloat32):
    r"""The taps of long convolutions, each a parameter, regularised at each use, and the skip weight D.

    .. math::
        K = \mathrm{dropout}(\mathrm{squash}_\lambda(\mathrm{smooth}_w(\mathrm{kernel}))), \quad
        \mathrm{squash}_\lambda(k) = \mathrm{sign}(k) \max(|k| - \lambda, 0)

    smooth is the mean over w neighbouring taps, with zeros beyond both ends; with ``smooth_freq`` it is the sum of w
    neighbouring frequencies of the kernel's real Fourier transform, n frequencies away by :math:`e^{-n^2 / 2}`, with
    zeros beyond both ends, as in the authors' code. It leaves L taps of the same steps: what is causal stays so.

    Args:
        dim: channels.
        kernel_length: taps L of a direction, the present input included.
        lam: the threshold of squash; taps within it are 0, and their parameters get no gradient.
        smooth_window: w, odd; 1 smooths nothing.
        smooth_freq: smooth the frequencies in place of the taps.
        kernel_dropout: probability of dropping a tap in training mode.
        init: (dim, kernel_length) -> the initial kernel.
        directions: kernels a channel; ``kernel`` has directions dim rows.
        learning_rate: largest peak rate of ``kernel``, which ``zoo.train.optim`` reads; None for that of the rest.

    Raises:
        ValueError: for a kernel_length below 1, a negative lam, an even smooth_window, a kernel_dropout outside [0, 1),
            or a learning_rate that is not above 0.

    Paper: Fu et al., "Simple Hardware-Efficient Long Convolutions for Sequence Modeling", arXiv 2302.06646, section 3;
    initial values of the authors' code.
    """

    float32_parameters = ("kernel", "D")

    def __init__(
        self,
        dim: int,
        kernel_length: int,
        *,
        lam: float = 0.003,
        smooth_window: int = 1,
        smooth_freq: bool = False,
        kernel_dropout: float = 0.0,
        init: KernelInit = random_kernel,
        directions: int = 1,
        learning_rate: float | None = None,
    ):
        super().__init__()
        if (
            kernel_length < 1
            or not lam >= 0
            or smooth_window < 1
            or smooth_window % 2 == 0
            or not 0 <= kernel_dropout < 1
        ):
            raise ValueError(
                "kernel_length must be at least 1, lam at least 0, smooth_window odd and kernel_dropout in [0, 1): got "
                f"kernel_length {kernel_length}, lam {lam}, smooth_window {smooth_window}, "
                f"kernel_dropout {kernel_dropout}"
            )
        if learning_rate is not None and not learning_rate > 0:
            raise ValueError(f"the learning rate of the taps must be above 0, or None, got {learning_rate}")
        self.kernel_length, self.lam = kernel_length, lam
        self.smooth_window, self.kernel_dropout = smooth_window, kernel_dropout
        self.smooth = smooth_frequencies if smooth_freq else smooth_taps
        self.directions = directions
        self.learning_rates = {} if learning_rate is None else {"kernel": learning_rate}
        self.kernel = nn.Parameter(torch.cat([init(dim, kernel_length) for _ in range(directions)]))
        self.D = nn.Parameter(torch.randn(dim))

    @property
    def whole_in_training(self) -> bool:
        """Taps are dropped for a whole sequence, see ``Mixer``."""
        return self.kernel_dropout > 0

    def taps(self) -> Tensor:
        """K (directions dim, kernel_length)."""
        smooth = self.smooth(self.kernel, self.smooth_window)
        return F.dropout(F.softshrink(smooth, self.lam), self.kernel_dropout, self.training)


def smooth_taps(kernel: Tensor, window: int) -> Tensor:
    """(D, L): the mean over the taps in the window around each."""
    return F.avg_pool1d(kernel, window, stride=1, padding=window // 2)


def smooth_frequencies(kernel: Tensor, window: int) -> Tensor:
    """(D, L): each frequency, and its neighbours weighed by a Gaussian of width 1."""
    reach = window // 2
    weight = torch.exp(-0.5 * torch.arange(-reach, reach + 1, device=kernel.device, dtype=kernel.dtype).square())
    neighbours = F.pad(torch.fft.rfft(kernel), (reach, reach)).unfold(-1, window, 1)
    return torch.fft.irfft((neighbours * weight).sum(-1), n=kernel.shape[-1])


class LongConv(LearnedTaps):
    r"""Depthwise causal convolution whose every tap is a parameter, regularised at each use.

    .. math::
        y_t = \sum_{j=0}^{L-1} K_j u_{t-j} + D u_t

    with the taps K of ``LearnedTaps``, whose arguments it takes. The step t sees the newest L = ``kernel_length``
    inputs and nothing older, however long the sequence.

    Paper: Fu et al., "Simple Hardware-Efficient Long Convolutions for Sequence Modeling", arXiv 2302.06646, section 3.
    """

    def forward(
        self, u: Tensor, past: Tensor | None = None, seq_idx: Tensor | None = None, *, remember: bool = True
    ) -> ConvOutput:
        """u (B, T, dim) after the inputs past (B, P, dim) -> output (B, T, dim) and the newest inputs, at most L - 1,
        or u if they are not to be remembered.

        The past belongs to the first of the packed sequences; what does not belong to the last one is returned as 0.
        """
        taps, inputs = self.taps(), u if past is None else torch.cat([past, u], dim=1)
        before = inputs.shape[1] - u.shape[1]
        if u.shape[1] == 1:
            newest = inputs[:, -self.kernel_length :]
            y = (newest * taps[:, : newest.shape[1]].flip(1).T).sum(1, keepdim=True) + self.D * u
        elif seq_idx is None:
            y = long_conv(inputs, taps, D=self.D)[:, before:]
        else:
            sequence = F.pad((seq_idx[:, 1:] != seq_idx[:, :-1]).cumsum(1), (before + 1, 0))
            y = packed_long_conv(inputs, taps, sequence, D=self.D)[:, before:]
            inputs = inputs.masked_fill((sequence != sequence[:, -1:])[..., None], 0)
        kept = inputs[:, max(0, inputs.shape[1] - self.kernel_length + 1) :] if remember else u
        return ConvOutput(y.to(u.dtype), kept)


@dataclass
class H3ConvState(State):
    """key, product (B, n, dim): what the two convolutions read in the newest n steps, at most kernel_length - 1."""

    key: Tensor
    product: Tensor

    def put(self, rows: Tensor, part: H3ConvState) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As of any state; zeros stand before the newest steps of rows that have seen fewer."""
        longest = max(self.key.shape[1], part.key.shape[1])
        for state in (self, part):
            state.key, state.product = (F.pad(t, (0, 0, longest - t.shape[1], 0)) for t in (state.key, state.product))
        super().put(rows, part)  # pyright: ignore[reportArgumentType]


class H3Conv(Mixer):
    r"""The gated block of H3 with two learned long convolutions in place of its state spaces.

    .. math::
        q, k, v = W_q x + b_q, W_k x + b_k, W_v x + b_v, \quad
        y = W_o \big( q \odot \mathrm{conv}(v \odot \mathrm{conv_k}(k)) \big) + b_o

    Both convolutions are finite: a step sees the newest 2 kernel_length - 1 inputs. Decoding costs kernel_length
    products a step and channel, from a state that grows up to the newest kernel_length - 1 steps.

    Args:
        dim: model width.
        kernel_length, lam, smooth_window, smooth_freq, kernel_dropout, init: of both convolutions, see ``LearnedTaps``.

    Raises:
        ValueError: see ``LearnedTaps``.

    Paper: Fu et al., arXiv 2302.06646, section 5.2; the block is from "Hungry Hungry Hippos", arXiv 2212.14052, with
    heads of width 1 as in the authors' code.
    """

    def __init__(
        self,
        dim: int,
        kernel_length: int,
        *,
        lam: float = 0.003,
        smooth_window: int = 1,
        smooth_freq: bool = False,
        kernel_dropout: float = 0.0,
        init: KernelInit = random_kernel,
    ):
        super().__init__()
        self.dim = dim
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))
        self.k_conv, self.conv = (
            LongConv(
                dim, kernel_length, lam=lam, smooth_window=smooth_window, smooth_freq=smooth_freq,
                kernel_dropout=kernel_dropout, init=init,
            )
            for _ in range(2)
        )  # fmt: skip

    @skips_padding
    def forward(self, x: Tensor, state: H3ConvState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        key, product = None, None
        if state is not None:
            rows = state.advance_sequence(seq_idx)
            key, product = keep_rows(state.key, rows), keep_rows(state.product, rows)
        k, key = self.k_conv(k, key, seq_idx, remember=state is not None)
        y, product = self.conv(k * v, product, seq_idx, remember=state is not None)
        if state is not None:
            state.key, state.product = key, product
        return self.out_proj(q * y)

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> H3ConvState:
        """No steps yet; ``max_length`` needs no memory beforehand."""
        device, dtype = self.placement(device, dtype)
        key, product = (torch.zeros(batch_size, 0, self.dim, device=device, dtype=dtype) for _ in "kp")
        return H3ConvState(key, product)

    def state_size(self, length: int) -> int:
        """Grows with ``length`` up to the newest kernel_length - 1 steps: two inputs a step and channel."""
        return 2 * self.dim * min(length, self.conv.kernel_length - 1)
