"""Leaky integrate-and-fire neurons: spikes of what is added up over time."""

from __future__ import annotations

import torch
import torch.fx
from torch import Tensor, nn

from zoo.layers.options import require_above, require_at_least


class _Spike(torch.autograd.Function):
    """1 from 0 on, with the derivative of a triangle."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return (x >= 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, dy):  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return dy * (1 - x.abs()).clamp(min=0)


@torch.fx.wrap  # tracers keep it whole
def spike(x: Tensor) -> Tensor:
    r"""1 where x is not negative, else 0; as derivative :math:`\max(0, 1 - |x|)`, which stands in for its own."""
    return _Spike.apply(x)  # type: ignore[return-value]


class LeakyIntegrateAndFire(nn.Module):
    r"""Neurons that add up what comes, forget a part of it in each step, and spike at a threshold.

    .. math::
        u_t = (1 - 1 / \tau) v_{t-1} + x_t, \quad s_t = [u_t \ge \theta], \quad v_t = u_t - \theta s_t, \quad v_0 = 0

    In the batch all rows of the first step come first, then those of the second.

    Args:
        steps: time steps in a batch.
        tau: time constant, in steps; 1 forgets everything.
        threshold: theta.

    Attributes:
        carried: v of the last step, from which the next batch then goes on, without a gradient; None to begin with 0.
        carries: it is kept.

    Raises:
        ValueError: for fewer than one step, a tau below 1 or a threshold not above 0.

    Paper: Meng et al., "Towards Memory- and Time-Efficient Backpropagation for Training Spiking Neural Networks", arXiv
    2302.14311, equation 2; the derivative of a spike is that of its authors' code.
    """

    def __init__(self, steps: int, tau: float = 1.1, threshold: float = 1.0):
        super().__init__()
        require_at_least(1, steps=steps, tau=tau)
        require_above(0, threshold=threshold)
        self.steps, self.tau, self.threshold = steps, tau, threshold
        self.carries, self.carried = False, None

    def forward(self, x: Tensor) -> Tensor:
        """Currents x (steps B, ...) -> spikes of the same shape."""
        leak = 1 - 1 / self.tau
        v, spikes = self.carried, []
        currents = x.unflatten(0, (self.steps, x.shape[0] // self.steps))
        for step in range(self.steps):
            u = currents[step] if v is None else leak * v + currents[step]
            s = spike(u - self.threshold)
            v = u - self.threshold * s
            spikes.append(s)
        if self.carries and v is not None:
            self.carried = v.detach()
        return torch.cat(spikes)

    def extra_repr(self) -> str:
        return f"steps={self.steps}, tau={self.tau:g}, threshold={self.threshold:g}"
