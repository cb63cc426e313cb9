"""State-space layers in real numbers, for programs of formats that have no complex ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.export.operators import scanned
from zoo.layers.ssm.state_space import StateSpaceKernel, StateSpaceMixer, StateSpaceState, wide


class System(nn.Module):
    """x' = A x + b u, y = c x + d u in each of D channels: A (D, N, N), b and c (D, N), d (D,), as buffers.

    They are what a step of a kernel makes of unit states, and of a unit input.
    """

    def __init__(self, kernel: StateSpaceKernel):
        super().__init__()
        units = torch.eye(kernel.d_state + 1, device=kernel.C.device, dtype=kernel.dt.dtype)
        units = units[:, None].expand(-1, kernel.dim, -1).contiguous()
        y, x = kernel.step(units[..., -1], units[..., :-1].contiguous())  # (N + 1, D), (N + 1, D, N)
        found = x[:-1].permute(1, 2, 0), x[-1], y[:-1].T, y[-1]
        for name, tensor in zip("Abcd", found, strict=True):
            self.register_buffer(name, tensor.detach().clone(memory_format=torch.contiguous_format), persistent=False)


def step(x: Tensor, u: Tensor, A: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """State x (B, D, N) and input u (B, D) of a system -> output (B, D) and the next state."""
    return (c * x).sum(-1) + d * u, (A @ x[..., None])[..., 0] + b * u[..., None]


@contextmanager
def real_systems(model: nn.Module) -> Iterator[None]:
    """Within it the model's state-space layers that read the past alone compute step by step, with real numbers."""
    mixers = [m for m in model.modules() if isinstance(m, StateSpaceMixer) and m.kernel.directions == 1]
    for mixer in mixers:
        assert isinstance(mixer.kernel, StateSpaceKernel)  # of all such layers
        mixer.system = System(mixer.kernel)
        mixer.convolution = partial(_convolution, mixer)  # type: ignore[method-assign]
        mixer.recurrence = partial(_recurrence, mixer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for mixer in mixers:
            del mixer.system, mixer.convolution, mixer.recurrence


def _convolution(mixer: StateSpaceMixer, u: Tensor, seq_idx: None) -> Tensor:
    """Of whole sequences u (B, T, D): a loop."""
    system: Any = mixer.system
    start = torch.zeros(u.shape[0], *system.b.shape, dtype=system.b.dtype, device=u.device)
    y, _ = scanned(step, (start,), (wide(u),), (system.A, system.b, system.c, system.d))
    return y.to(u.dtype)


def _recurrence(mixer: StateSpaceMixer, u: Tensor, state: StateSpaceState, seq_idx: None) -> Tensor:
    """Of one step u (B, 1, D) from a state, which advances."""
    system: Any = mixer.system
    y, state.x = step(state.x, wide(u)[:, 0], system.A, system.b, system.c, system.d)
    return y[:, None].to(u.dtype)
