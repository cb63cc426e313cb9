"""Multi-head damped exponential moving averages: Mega's linear systems, with real decays."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.layers.options import require_at_least
from zoo.layers.ssm.state_space import LinearSystems, Span, Systems, wide

TILE = 64  # lags of a kernel are made as (L / TILE) x TILE products of powers


class EMAKernel(Systems):
    r"""Of each channel the sum of N damped averages.

    .. math::
        p = \sigma(\delta), \quad q = 1 - p \, \sigma(\alpha), \quad
        h_t = q \odot h_{t-1} + p \odot \beta \, u_t, \quad y_t = N^{-1/2} \gamma^\top h_t

    so that the convolution's kernel is :math:`N^{-1/2} \sum_n \gamma_n p_n \beta_n q_n^l`. A second direction has
    parameters of its own and sees the present too.

    Args:
        dim: channels D.
        d_state: averages N of a channel.
        directions: 1, or 2.

    Papers: Ma et al., "Mega", arXiv 2209.10655; initial values of Ren et al., "Sparse Modular Activation", 2306.11197.
    """

    float32_parameters = ("delta", "alpha", "beta", "gamma")

    def __init__(self, dim: int, d_state: int = 16, directions: int = 1):
        super().__init__()
        require_at_least(1, dim=dim, d_state=d_state)
        self.dim, self.d_state, self.directions = dim, d_state, directions
        self.delta, self.alpha, self.beta, self.gamma = (
            nn.Parameter(truncated_normal(torch.empty(directions, dim, d_state), std)) for std in (0.2, 0.2, 0.02, 1.0)
        )
        with torch.no_grad():
            self.beta += 1 - 2 * (torch.arange(d_state) % 2)

    def forward(self, length: int) -> Tensor:
        """The kernels (directions, D, length), the future's without its present, which is in the first."""
        _, outputs, inputs, log_q = self.coefficients()
        coarse = torch.arange(0, length, TILE, device=log_q.device)
        powers = torch.exp(log_q[..., None, :] * coarse[:, None])  # (directions, D, L / TILE, N)
        fine = torch.exp(log_q[..., None] * torch.arange(min(length, TILE), device=log_q.device))
        kernels = ((outputs * inputs)[..., None, :] * powers) @ fine
        past, *future = kernels.flatten(-2)[..., :length]
        for ahead in future:
            past = past + nn.functional.pad(ahead[:, :1], (0, length - 1))
        return torch.stack([past, *(nn.functional.pad(ahead[:, 1:], (0, 1)) for ahead in future)])

    def step(self, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """One step: input u (B, D), averages x (B, D, N) -> output (B, D) and the next averages."""
        q, outputs, inputs, _ = (t[0] for t in self.coefficients())
        x = q * x + inputs * wide(u)[..., None]
        return (outputs * x).sum(-1), x

    def span(self, length: int) -> Span:
        """``length`` steps at once."""
        _, outputs, inputs, log_q = (t[0, :, None] for t in self.coefficients())  # (D, 1, N)
        powers = torch.exp(log_q * torch.arange(length + 1, device=log_q.device)[:, None])  # (D, L + 1, N)
        kernel = (outputs * inputs * powers[:, :-1]).sum(-1)
        return Span(kernel, outputs * powers[:, 1:], inputs * powers[:, :-1].flip(1), powers[:, -1])

    def advance(self, power: Tensor, x: Tensor) -> Tensor:
        """Averages x (B, D, N) after a span without input."""
        return power * x

    def coefficients(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, what the output reads, what an input adds, and log q, (directions, D, N)."""
        delta, alpha, beta, gamma = map(wide, (self.delta, self.alpha, self.beta, self.gamma))
        p = delta.sigmoid()
        damping = p * alpha.sigmoid()
        return 1 - damping, gamma * self.d_state**-0.5, p * beta, torch.log1p(-damping)


class MultiHeadEMA(LinearSystems):
    """``EMAKernel``'s averages and a skip connection, (B, T, dim) -> (B, T, dim).

    Args:
        dim: model width.
        d_state: averages of a channel.
        bidirectional: it also reads from the end, and has no state.
    """

    def __init__(self, dim: int, d_state: int = 16, bidirectional: bool = False):
        super().__init__(EMAKernel(dim, d_state, 2 if bidirectional else 1))
        truncated_normal(self.D.data, 1.0)


def truncated_normal(tensor: Tensor, std: float = 0.02) -> Tensor:
    """Filled with normal numbers within two standard deviations, as the authors draw all of them."""
    return nn.init.trunc_normal_(tensor, 0.0, std, -2 * std, 2 * std)
