"""S4: state spaces with a diagonal plus low-rank matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from zoo.layers.ssm.hippo import DiagonalPlusLowRank, legs_dplr
from zoo.layers.ssm.state_space import (
    Recurrence,
    Span,
    StateSpaceKernel,
    StateSpaceMixer,
    as_complex,
    as_real,
    wide,
)

NODES = 3  # nodes of the generating function over the length of the kernel
BLOCK = 2**20  # complex numbers of an intermediate result, half of which are conjugates


class S4Kernel(StateSpaceKernel):
    r"""The kernel :math:`K_l = C \bar A^l \bar B` of :math:`A = \Lambda - P P^*`, discretised bilinearly.

    Its generating function is four Cauchy products, by the Woodbury identity:

    .. math::
        \hat K(w) = \sum_{l \ge 0} K_l w^l
        = \tfrac{2}{1 + w} \big[ k_{CB} - k_{CP} (1 + k_{P^*P})^{-1} k_{P^*B} \big], \quad
        k_{ab} = \sum_n \frac{a_n b_n}{z - \Lambda_n}, \; z = \tfrac{2}{\Delta} \tfrac{1 - w}{1 + w}

    with the sums over the modes and their conjugates. The paper cuts the series off at the length L by a factor
    :math:`I - \bar A^L`, and its code makes :math:`C (I - \bar A^L)` the parameter, which ties it to that length. Here
    C itself is the parameter, and the function is taken at M = 3 L nodes on a circle of radius r < 1: the terms from M
    on fold back with a factor r^M, rounding grows by r^-L at most, and :math:`r = \epsilon^{1 / 4 L}` balances the two
    near :math:`\epsilon^{3/4}`, for every L and without a power of A. The rounding of the sums comes on top: errors in
    float32 measured up to 7.7e-5 of the largest K, where :math:`\epsilon^{3/4}` is 6e-6.

    Args: those of ``StateSpaceKernel``.
    """

    float32_parameters = (*StateSpaceKernel.float32_parameters, "P")
    learning_rates = dict.fromkeys(float32_parameters, 1e-3)

    def __init__(
        self,
        dim: int,
        initial: DiagonalPlusLowRank,
        directions: int = 1,
        num_ssm: int = 1,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
    ):
        super().__init__(dim, initial, directions, num_ssm, dt_min, dt_max)
        self.P = self.shared_parameter(torch.view_as_real(initial.P))

    def forward(self, length: int) -> Tensor:
        """The inverse Fourier transform of the generating function on the circle, (directions, D, length).

        So many channels at a time that what is large, a number a mode and node, stays in the processor's cache; it is
        computed again in the backward pass, not kept.
        """
        systems = self.eigenvalues, self.input_vector, self.low_rank, self.dt, self.output_vectors.transpose(0, 1)
        channels = max(1, BLOCK // (self.d_state // 2 * NODES * length))
        if torch.compiler.is_compiling() or channels >= self.dim:
            return _kernel(*systems, length)
        return _InBlocks.apply(length, channels, *systems)

    def step(self, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """x' = A x + B u in O(N), y = 2 Re(C x')."""
        modes = self._next_modes(u[..., None], as_complex(x))
        return 2 * (self.output_vectors[0] * modes).real.sum(-1), as_real(modes)

    def recurrence(self) -> Recurrence:
        """What ``_next_modes`` solves, of which the low rank is all that is not diagonal."""
        A, P, rate = self.eigenvalues, self.low_rank, 2 / self.dt
        keep, Q, b = (rate + A) / (rate - A), P / (rate - A), 2 * self.input_vector / (rate - A)
        below = 1 + _inner(P, Q)
        return Recurrence(
            keep, b - Q * _inner(P, b) / below, 2 * self.output_vectors[0], Q, P.conj() * (1 + keep) / below
        )

    def span(self, length: int) -> Span:
        """The powers of A, as a dense matrix of real numbers, by doubling."""
        unit = torch.eye(self.d_state + 1, device=self.C.device, dtype=self.dt.dtype)[:, None]  # states, and the input
        response = as_real(self._next_modes(unit[..., -1:], as_complex(unit[..., :-1].contiguous())))
        A, b = response[:-1].permute(1, 2, 0), response[-1, :, None]  # (D, N, N), (D, 1, N)
        c = as_real(2 * self.output_vectors.conj())
        outputs, inputs, power = c[0, :, None] @ A, b, A
        while outputs.shape[1] < length:
            outputs = torch.cat([outputs, outputs @ power], dim=1)
            inputs = torch.cat([inputs, inputs @ power.mT], dim=1)
            power = power @ power
        inputs = inputs[:, :length].flip(1)
        return Span(self(length)[0], outputs[:, :length], inputs, torch.linalg.matrix_power(A, length))

    def advance(self, power: Tensor, x: Tensor) -> Tensor:
        """A matrix product a channel."""
        return torch.einsum("dmn,bdn->bdm", power, x)

    @property
    def low_rank(self) -> Tensor:
        """P, complex (D, N / 2)."""
        return self.of_channels(torch.view_as_complex(wide(self.P)))

    def _next_modes(self, u: Tensor, modes: Tensor) -> Tensor:
        """(2/dt - A) x' = (2/dt + A) x + 2 B u for u (B, D, 1) and complex modes (B, D, N / 2).

        The inverse on the left is that of a diagonal, corrected by Sherman and Morrison's formula.
        """
        A, P, rate = self.eigenvalues, self.low_rank, 2 / self.dt
        x = ((rate + A) * modes - P * _inner(P, modes) + 2 * self.input_vector * u) / (rate - A)
        Q = P / (rate - A)
        return x - Q * _inner(P, x) / (1 + _inner(P, Q))


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """a^* b over the modes and their conjugates, (..., 1)."""
    return 2 * (a.conj() * b).real.sum(-1, keepdim=True)


class _InBlocks(torch.autograd.Function):
    """``_kernel`` of some channels after the others; each block of them is computed again for its gradients."""

    @staticmethod
    def forward(length: int, channels: int, *systems: Tensor) -> Tensor:
        return torch.cat([_kernel(*part, length=length) for part in _blocks(channels, systems)], dim=1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.length, ctx.channels, *systems = inputs
        ctx.save_for_backward(*systems)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dkernel):
        found = []
        for part, arriving in zip(
            _blocks(ctx.channels, ctx.saved_tensors), dkernel.split(ctx.channels, dim=1), strict=True
        ):
            leaves = [t.detach().requires_grad_() for t in part]
            with torch.enable_grad():
                kernel = _kernel(*leaves, length=ctx.length)
            found.append(torch.autograd.grad(kernel, leaves, arriving))
        return None, None, *(torch.cat(gradients) for gradients in zip(*found, strict=True))


def _blocks(channels: int, systems: Iterable[Tensor]) -> Iterable[tuple[Tensor, ...]]:
    return zip(*(t.split(channels) for t in systems), strict=True)


def _kernel(A: Tensor, B: Tensor, P: Tensor, dt: Tensor, C: Tensor, length: int) -> Tensor:
    """Of some channels: A, B, P (D, N / 2), dt (D, 1), C (D, directions, N / 2) -> (directions, D, length)."""
    count, directions = NODES * length, C.shape[1]
    radius = torch.finfo(dt.dtype).eps ** (1 / ((NODES + 1) * length))
    angle = torch.arange(count // 2 + 1, device=dt.device, dtype=dt.dtype) * (-2 * math.pi / count)
    w = torch.polar(torch.full_like(angle, radius), angle)
    products = torch.cat([C * B[:, None], C * P[:, None], (P.conj() * B)[:, None], (P.conj() * P)[:, None]], dim=1)
    cauchy = dt[..., None] * _cauchy(products, dt * A, 2 * (1 - w) / (1 + w))  # (D, 2 directions + 2, nodes)
    CB, CP, PB, PP = cauchy.split([directions, directions, 1, 1], dim=1)
    K = torch.fft.irfft(2 / (1 + w) * (CB - CP * PB / (1 + PP)), count)[..., :length]
    return (K * radius ** -torch.arange(length, device=dt.device, dtype=dt.dtype)).transpose(0, 1)


def _cauchy(v: Tensor, A: Tensor, z: Tensor) -> Tensor:
    r""":math:`\sum_n v_n / (z - A_n)` over the modes and their conjugates, which share a denominator.

    v (D, R, N / 2), A (D, N / 2), nodes z (Z,) -> (D, R, Z), complex.
    """
    A = A[..., None]
    shared = 1 / ((z - A) * (z - A.conj()))  # (D, N / 2, Z)
    numerators = torch.cat([2 * v.real, -2 * (v * A.mT.conj()).real], dim=1)
    by_z, constant = as_complex(numerators @ as_real(shared)).chunk(2, dim=1)
    return z * by_z + constant


class S4(StateSpaceMixer):
    r"""The S4 layer: a diagonal plus low-rank state space a channel, GELU, and a gated linear layer.

    .. math::
        x_t = \bar A x_{t-1} + \bar B u_t, \quad y_t = C x_t + D u_t, \quad
        \mathrm{out} = \mathrm{GLU}(W \, \mathrm{gelu}(y) + b)

    with the bilinear :math:`\bar A = (I - \Delta A / 2)^{-1} (I + \Delta A / 2)` and
    :math:`\bar B = (I - \Delta A / 2)^{-1} \Delta B`.

    Args:
        dim: model width, and number of systems.
        d_state: state size N, N / 2 complex modes.
        init: N to the initial A and B, of ``zoo.layers.ssm.hippo``.
        dt_min, dt_max: range of the initial step sizes, log-uniform.
        num_ssm: distinct A and B, shared by the channels in turn.
        bidirectional: also read the future, by a second C; without a state then.
        drop_rate: dropout before W.
        chunk_size: steps at a time when there is a state; it changes the speed, not the result.

    Raises:
        ValueError: for an odd d_state, or a num_ssm that does not divide dim.

    Paper: Gu et al., "Efficiently Modeling Long Sequences with Structured State Spaces", arXiv 2111.00396; with
    P P^* for the low-rank part (Goel et al., "It's Raw!", arXiv 2202.09729), which keeps A stable.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 64,
        *,
        init: Callable[[int], DiagonalPlusLowRank] = legs_dplr,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        num_ssm: int = 1,
        bidirectional: bool = False,
        drop_rate: float = 0.0,
        chunk_size: int = 64,
    ):
        kernel = S4Kernel(dim, init(d_state), 1 + bidirectional, num_ssm, dt_min, dt_max)
        super().__init__(kernel, drop_rate, chunk_size)
