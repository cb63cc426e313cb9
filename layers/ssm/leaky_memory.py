"""The expressive leaky memory neuron: synapses, branches, and leaky memories that a small network writes to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels import leaky_memory, linear_recurrence
from zoo.kernels.dispatch import compute_dtype
from zoo.layers.mixer import Mixer, skips_padding
from zoo.layers.options import require_above, require_at_least
from zoo.layers.ssm.state_space import wide
from zoo.layers.state import State, keep_rows

EDGE = 1e-6  # what keeps the outermost time constants off the ends of their range
GAINS: dict[int, Callable[[Tensor, float], Tensor]] = {  # of steps per time constant, and lambda
    1: lambda steps, strength: -strength * torch.expm1(-steps),
    2: lambda steps, strength: -torch.expm1(-strength * steps),
}


@dataclass
class LeakyMemoryState(State):
    """trace (B, num_branches) and memory (B, num_memory), float32."""

    wide: ClassVar[tuple[str, ...]] = ("trace", "memory")

    trace: Tensor
    memory: Tensor


class Synapses(nn.Module):
    r"""Inputs, weighted by what is never negative, and summed over each branch: :math:`\sum_i \max(w_i, 0) \, x_i`.

    Args:
        num_inputs: input channels.
        num_branches: branches, of ``per_branch`` synapses each.
        per_branch: num_inputs / num_branches without overlap.
        overlap: branch j has the synapses from input ceil(num_inputs / num_branches) j on, as many as there are; and
            the inputs of the first and the second half, excitatory and inhibitory ones, are first put in turn.
        initial: weight of every synapse at the start.

    Raises:
        ValueError: for synapses that leave inputs out or, without overlap, are not one an input.
    """

    place: Tensor | None
    inside: Tensor | None

    def __init__(self, num_inputs: int, num_branches: int, per_branch: int, overlap: bool, initial: float = 0.5):
        super().__init__()
        stride = -(-num_inputs // num_branches)
        if per_branch < stride if overlap else num_branches * per_branch != num_inputs:
            raise ValueError(
                f"branches must {'reach' if overlap else 'share'} all inputs: {num_branches} of {per_branch} synapses "
                f"do not fit {num_inputs} inputs"
            )
        self.num_inputs, self.num_branches = num_inputs, num_branches
        self.weight = nn.Parameter(torch.full((num_branches * per_branch,), initial))
        place = stride * torch.arange(num_branches)[:, None] + torch.arange(per_branch)  # (branches, per_branch)
        inside = place < num_inputs
        place = place.clamp(max=num_inputs - 1)
        source = (place % 2) * (num_inputs // 2) + place // 2
        flat = source * num_branches + torch.arange(num_branches)[:, None]  # in a matrix (inputs, branches)
        self.register_buffer("place", flat.flatten() if overlap else None, persistent=False)
        self.register_buffer("inside", inside.flatten() if overlap else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, num_inputs) -> (B, T, num_branches)."""
        weight = F.relu(self.weight)
        if self.place is None or self.inside is None:
            return (weight * x).unflatten(-1, (self.num_branches, -1)).sum(-1)
        matrix = weight.new_zeros(self.num_inputs * self.num_branches).index_add(0, self.place, weight * self.inside)
        return x @ matrix.view(self.num_inputs, self.num_branches)


class ExpressiveLeakyMemory(Mixer):
    r"""A neuron whose branches leave traces, and whose memories decay while a network of both writes to them.

    .. math::
        b_t &= e^{-\Delta / \tau_b} b_{t-1} + S(x_t), \quad \kappa = e^{-\Delta / \tau_m}, \quad
        \bar m_t = \kappa \odot m_{t-1} \\
        m_t &= \bar m_t + g \odot 1.7159 \tanh\big(\tfrac23 \mathrm{MLP}([b_t, \bar m_t])\big), \quad
        g = \lambda (1 - \kappa) \text{ in version 1}, \; 1 - \kappa^\lambda \text{ in version 2}

    with S the ``Synapses``. Traces, and what they add to the MLP's hidden units, are parallel over time; the memories
    are the operation ``leaky_memory``. In the authors' first version each synapse has a trace; under one time constant,
    as they have it, their sum over a branch is that branch's trace.

    Args:
        num_inputs: input channels.
        num_memory: memories, the output's channels.
        num_branches: branches; one for each input when None.
        per_branch: synapses of a branch.
        overlap: synapses overlap between branches, see ``Synapses``; else there is one for each input.
        hidden_dim: hidden units of the MLP, twice the memories when None.
        activation: of the MLP, "relu" or "silu".
        version: 1 or 2, the gain of the drive.
        strength: lambda.
        tau_branch: time constant of the traces, in the unit of ``dt``.
        tau_min, tau_max: range of the memories' time constants, at the start spread evenly over its logarithm.
        learn_tau: these are learnt, within the range.
        dt: length of a step, such as 10 where spikes are counted in bins of 10 ms.

    Raises:
        ValueError: for a size, time constant or version that cannot be, or synapses that do not fit the inputs.

    Paper: Spieler et al., "The Expressive Leaky Memory Neuron", arXiv 2306.16922; as in the authors' code, v1 and v2.
    """

    def __init__(
        self,
        num_inputs: int,
        num_memory: int,
        num_branches: int | None = None,
        per_branch: int = 1,
        overlap: bool = False,
        hidden_dim: int | None = None,
        activation: str = "relu",
        version: int = 2,
        strength: float = 5.0,
        tau_branch: float = 5.0,
        tau_min: float = 1.0,
        tau_max: float = 1000.0,
        learn_tau: bool = False,
        dt: float = 1.0,
    ):
        super().__init__()
        require_at_least(
            1, num_inputs=num_inputs, num_memory=num_memory, num_branches=num_branches, per_branch=per_branch,
            hidden_dim=hidden_dim,
        )  # fmt: skip
        require_above(0, strength=strength, tau_branch=tau_branch, tau_min=tau_min, dt=dt)
        if not tau_max >= tau_min + 3 * EDGE:
            raise ValueError(f"tau_max must be above tau_min, got tau_min {tau_min} and tau_max {tau_max}")
        if version not in GAINS:
            raise ValueError(f"version must be one of {list(GAINS)}, got {version}")
        self.num_memory, self.num_branches = num_memory, num_branches or num_inputs
        self.activation, self.version, self.strength = activation, version, strength
        self.tau_branch, self.tau_min, self.tau_max, self.dt = tau_branch, tau_min, tau_max, dt
        hidden = hidden_dim or 2 * num_memory
        self.synapses = Synapses(num_inputs, self.num_branches, per_branch, overlap)
        self.input_proj = nn.Linear(self.num_branches, hidden)
        self.W_in = nn.Parameter(torch.empty(num_memory, hidden))
        self.W_out = nn.Parameter(torch.empty(hidden, num_memory))
        self.bias = nn.Parameter(torch.empty(num_memory))
        for fan_in, tensors in (
            (self.num_branches + num_memory, (self.input_proj.weight, self.input_proj.bias, self.W_in)),
            (hidden, (self.W_out, self.bias)),
        ):
            for tensor in tensors:
                nn.init.uniform_(tensor, -(fan_in**-0.5), fan_in**-0.5)
        ends = math.log10(tau_min + EDGE), math.log10(tau_max - EDGE)
        tau = torch.logspace(*ends, num_memory, dtype=torch.float64).clamp(tau_min + EDGE, tau_max - EDGE)
        logits = ((tau - tau_min) / (tau_max - tau)).log().to(torch.get_default_dtype())
        if learn_tau:
            self.float32_parameters = ("tau_logits",)
            self.tau_logits = nn.Parameter(logits)
        else:
            self.float32_buffers = ("tau_logits",)
            self.register_buffer("tau_logits", logits)

    @skips_padding
    def forward(self, x: Tensor, state: LeakyMemoryState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, num_inputs) -> the memories (B, T, num_memory)."""
        trace = memory = None
        if state is not None:
            rows = state.advance_sequence(seq_idx)
            trace, memory = keep_rows(state.trace, rows), keep_rows(state.memory, rows)
        drive = self.synapses(x)
        decay = drive.new_full((), -self.dt / self.tau_branch, dtype=compute_dtype(drive)).expand_as(drive)
        b, trace = linear_recurrence(drive, decay, initial_state=trace, seq_idx=seq_idx)
        steps = self.dt / self.tau_memory
        m, memory = leaky_memory(
            self.input_proj(b), self.W_in, self.W_out, self.bias, torch.exp(-steps),
            GAINS[self.version](steps, self.strength), activation=self.activation, initial_state=memory,
            seq_idx=seq_idx,
        )  # fmt: skip
        if state is not None:
            state.trace, state.memory = trace, memory
        return m

    @property
    def tau_memory(self) -> Tensor:
        """The memories' time constants (num_memory,), in the unit of ``dt``."""
        return self.tau_min + (self.tau_max - self.tau_min) * wide(self.tau_logits).sigmoid()

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> LeakyMemoryState:
        """Zeros; the size does not depend on ``max_length``."""
        device, dtype = self.placement(device, dtype)
        sizes = self.num_branches, self.num_memory
        return LeakyMemoryState(
            *(torch.zeros(batch_size, size, device=device, dtype=compute_dtype(dtype)) for size in sizes)
        )

    def state_size(self, length: int) -> int:
        """Constant in ``length``."""
        return self.num_branches + self.num_memory
