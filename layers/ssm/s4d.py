"""S4D: state spaces with a diagonal matrix."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from zoo.layers.ssm.hippo import Diagonal, diagonal_legs
from zoo.layers.ssm.state_space import Recurrence, Span, StateSpaceKernel, StateSpaceMixer, as_complex, as_real

Discretisation = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def zero_order_hold(A: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`\log \bar A` and :math:`\bar B / B` for :math:`\bar A = e^{\Delta A}, \bar B = (\bar A - 1) A^{-1} B`."""
    return dt * A, torch.expm1(dt * A) / A


def bilinear(A: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`\log \bar A` and :math:`\bar B / B` for :math:`\bar A = \frac{1 + \Delta A / 2}{1 - \Delta A / 2}` and
    :math:`\bar B = \frac{\Delta}{1 - \Delta A / 2} B`."""
    below = 1 - dt * A / 2
    return torch.log((1 + dt * A / 2) / below), dt / below


class S4DKernel(StateSpaceKernel):
    r"""The Vandermonde kernel :math:`K_l = 2 \, \mathrm{Re} \sum_n C_n \bar B_n \bar A_n^l`.

    Args: those of ``StateSpaceKernel``, and discretisation, ``zero_order_hold`` or ``bilinear``.
    """

    def __init__(
        self,
        dim: int,
        initial: Diagonal,
        directions: int = 1,
        num_ssm: int = 1,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        discretisation: Discretisation = zero_order_hold,
    ):
        super().__init__(dim, initial, directions, num_ssm, dt_min, dt_max)
        self.discretisation = discretisation

    def forward(self, length: int) -> Tensor:
        """Powers l = i + R j are products of those of i and of R j, about 2 sqrt(length) instead of length."""
        log_A, B = self._discrete()
        radix = math.isqrt(length - 1) + 1
        low = _powers(log_A, radix)
        high = _powers(radix * log_A, -(-length // radix)) * (self.output_vectors * B)[:, :, None]
        return (as_real(2 * high) @ as_real(low.conj()).mT).flatten(-2)[..., :length]

    def step(self, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """x' = A x + B u, y = 2 Re(C x')."""
        log_A, B = self._discrete()
        modes = log_A.exp() * as_complex(x) + B * u[..., None]
        return 2 * (self.output_vectors[0] * modes).real.sum(-1), as_real(modes)

    def recurrence(self) -> Recurrence:
        """A, B and 2 C."""
        log_A, B = self._discrete()
        return Recurrence(log_A.exp(), B, 2 * self.output_vectors[0])

    def span(self, length: int) -> Span:
        """The powers 0 to ``length`` of A."""
        log_A, B = self._discrete()
        powers = _powers(log_A, length + 1)
        outputs = as_real((2 * self.output_vectors[0][:, None] * powers[:, 1:]).conj())
        return Span(self(length)[0], outputs, as_real(B[:, None] * powers[:, :-1].flip(1)), powers[:, -1])

    def advance(self, power: Tensor, x: Tensor) -> Tensor:
        """A product a mode."""
        return as_real(power * as_complex(x))

    def _discrete(self) -> tuple[Tensor, Tensor]:
        """log A and B of the recurrence, (D, N / 2)."""
        log_A, ratio = self.discretisation(self.eigenvalues, self.dt)
        return log_A, ratio * self.input_vector


def _powers(log_A: Tensor, count: int) -> Tensor:
    """A^0, ..., A^(count - 1) for log A (D, N / 2): (D, count, N / 2)."""
    return (log_A[:, None] * torch.arange(count, device=log_A.device)[:, None]).exp()


class S4D(StateSpaceMixer):
    r"""The S4D layer: a diagonal state space a channel, GELU, and a gated linear layer.

    .. math::
        x_t = \bar A x_{t-1} + \bar B u_t, \quad y_t = 2 \, \mathrm{Re}(C x_t) + D u_t, \quad
        \mathrm{out} = \mathrm{GLU}(W \, \mathrm{gelu}(y) + b)

    Args:
        dim: model width, and number of systems.
        d_state: state size N, N / 2 complex modes.
        init: N to the initial A and B, of ``zoo.layers.ssm.hippo``.
        discretisation: ``zero_order_hold`` or ``bilinear``.
        dt_min, dt_max: range of the initial step sizes, log-uniform.
        num_ssm: distinct A and B, shared by the channels in turn.
        bidirectional: also read the future, by a second C; without a state then.
        drop_rate: dropout before W.
        chunk_size: steps at a time when there is a state; it changes the speed, not the result.

    Raises:
        ValueError: for an odd d_state, or a num_ssm that does not divide dim.

    Paper: Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models", arXiv 2206.11893. B
    is that of the authors' code, for LegS twice the paper's and bounded, see ``hippo.legs_dplr``.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 64,
        *,
        init: Callable[[int], Diagonal] = diagonal_legs,
        discretisation: Discretisation = zero_order_hold,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        num_ssm: int = 1,
        bidirectional: bool = False,
        drop_rate: float = 0.0,
        chunk_size: int = 64,
    ):
        kernel = S4DKernel(dim, init(d_state), 1 + bidirectional, num_ssm, dt_min, dt_max, discretisation)
        super().__init__(kernel, drop_rate, chunk_size)
