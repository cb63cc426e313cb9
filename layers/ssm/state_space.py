"""What S4 and S4D share: one linear time-invariant system a channel, as a convolution or as a recurrence."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.dispatch import compute_dtype, full_precision
from zoo.layers.mixer import Mixer, skips_padding
from zoo.layers.options import require_at_least
from zoo.layers.precision import KeepsFloat32
from zoo.layers.ssm.convolution import convolve, sequence_starts
from zoo.layers.ssm.hippo import Diagonal, DiagonalPlusLowRank
from zoo.layers.state import State, keep_rows


class Span(NamedTuple):
    """L steps at once, between states of N real numbers a channel.

    kernel (D, L): C A^l B. outputs (D, L, N): C A^(l+1), what the steps read from the state before them. inputs
    (D, L, N): A^(L-1-l) B, what they leave in the state after them. power: A^L, for ``StateSpaceKernel.advance``.
    """

    kernel: Tensor
    outputs: Tensor
    inputs: Tensor
    power: Tensor


class Recurrence(NamedTuple):
    """A step x' = a x + b u - q 2 Re(v x), y = Re(c x') of complex modes (D, N / 2); without q diagonal."""

    a: Tensor
    b: Tensor
    c: Tensor
    q: Tensor | None = None
    v: Tensor | None = None


class Systems(KeepsFloat32, ABC):
    """What a layer of linear systems asks of them.

    Attributes:
        dim: channels D.
        d_state: numbers N in the state of a channel.
        directions: 1, or 2 with a kernel of the future.
    """

    dim: int
    d_state: int
    directions: int

    @abstractmethod
    def forward(self, length: int) -> Tensor:
        """The convolution kernels for lags l < length, (directions, D, length); the second's are l + 1 steps ahead."""

    @abstractmethod
    def step(self, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the recurrence: input u (B, D), state x (B, D, N) -> output (B, D) and the next state."""

    @abstractmethod
    def span(self, length: int) -> Span:
        """``length`` steps at once."""

    @abstractmethod
    def advance(self, power: Tensor, x: Tensor) -> Tensor:
        """A^L x for the ``power`` of a span and states x (B, D, N)."""


class StateSpaceKernel(Systems):
    r"""Parameters and discrete forms of :math:`x' = A x + B u, \; y = 2 \, \mathrm{Re}(C x)` in each of D channels.

    The N / 2 complex modes stand for N in conjugate pairs. A state holds them as N real numbers: real and imaginary
    part of the first, of the second, and so on. All is computed in float32 at least, whatever the dtype of the model
    and under autocast.

    The dynamics (step sizes, A and B) learn at a rate of at most 0.001, as in the authors' configurations:
    ``learning_rates``, which ``zoo.train.optim`` reads.

    Args:
        dim: channels D.
        initial: A and B at the start.
        directions: 1, or 2 for a second C, of the future.
        num_ssm: distinct A and B, which the channels take in turn.
        dt_min, dt_max: range of the initial step sizes.

    Raises:
        ValueError: when num_ssm does not divide dim, or the step sizes are not 0 < dt_min <= dt_max.
    """

    float32_parameters: tuple[str, ...] = ("log_dt", "log_A_real", "A_imag", "B")
    learning_rates: Mapping[str, float] = dict.fromkeys(float32_parameters, 1e-3)

    def __init__(
        self,
        dim: int,
        initial: Diagonal | DiagonalPlusLowRank,
        directions: int = 1,
        num_ssm: int = 1,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
    ):
        super().__init__()
        if num_ssm < 1 or dim % num_ssm:
            raise ValueError(f"num_ssm must divide dim: got dim {dim}, num_ssm {num_ssm}")
        if not 0 < dt_min <= dt_max:
            raise ValueError(f"step sizes must satisfy 0 < dt_min <= dt_max, got dt_min {dt_min}, dt_max {dt_max}")
        self.dim, self.num_ssm, self.d_state, self.directions = dim, num_ssm, 2 * len(initial.Lambda), directions
        self.log_dt = nn.Parameter(torch.empty(dim).uniform_(math.log(dt_min), math.log(dt_max)))
        self.log_A_real = self.shared_parameter((-initial.Lambda.real).log())
        self.A_imag = self.shared_parameter(initial.Lambda.imag)
        self.B = self.shared_parameter(torch.view_as_real(initial.B))
        self.C = nn.Parameter(torch.randn(directions, dim, self.d_state // 2, 2) / math.sqrt(2))

    def shared_parameter(self, value: Tensor) -> nn.Parameter:
        """A parameter with a copy of ``value`` for each of the num_ssm systems."""
        copies = torch.empty(self.num_ssm, *value.shape)
        return nn.Parameter(copies.copy_(value))

    def of_channels(self, values: Tensor) -> Tensor:
        """(num_ssm, N / 2) -> (D, N / 2)."""
        return values.repeat(self.dim // self.num_ssm, 1)

    @property
    def dt(self) -> Tensor:
        """Step sizes (D, 1)."""
        return wide(self.log_dt).exp()[:, None]

    @property
    def eigenvalues(self) -> Tensor:
        """The diagonal of A, complex (D, N / 2), with a negative real part."""
        return self.of_channels(torch.complex(-wide(self.log_A_real).exp(), wide(self.A_imag)))

    @property
    def input_vector(self) -> Tensor:
        """B, complex (D, N / 2)."""
        return self.of_channels(torch.view_as_complex(wide(self.B)))

    @property
    def output_vectors(self) -> Tensor:
        """C, complex (directions, D, N / 2)."""
        return torch.view_as_complex(wide(self.C).contiguous())  # channels_last takes it for a batch of maps


@dataclass
class StateSpaceState(State):
    """x (B, D, N), float32: the modes' real and imaginary parts in turn."""

    wide: ClassVar[tuple[str, ...]] = ("x",)

    x: Tensor


class LinearSystems(Mixer):
    r"""A linear time-invariant system a channel, and a skip connection: :math:`y = \mathrm{SSM}(u) + D \odot u`.

    Without a state, SSM is a convolution with the kernel :math:`C \bar A^l \bar B`; packed sequences are convolved each
    by itself. With a state, a single step is the recurrence, and more steps are, ``chunk_size`` at a time, the
    convolution plus what the state before them decays to.

    Args:
        kernel: the systems, one a channel. With two directions the mixer sees the future and has no state.
        chunk_size: steps a chunk with a state; it changes the speed, not the result.
    """

    def __init__(self, kernel: Systems, chunk_size: int = 64):
        super().__init__()
        require_at_least(1, chunk_size=chunk_size)
        self.kernel, self.chunk_size = kernel, chunk_size
        self.D = nn.Parameter(torch.randn(kernel.dim))

    @skips_padding
    def forward(self, x: Tensor, state: StateSpaceState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        return self.systems(x, state, seq_idx)

    def systems(self, x: Tensor, state: StateSpaceState | None, seq_idx: Tensor | None) -> Tensor:
        """The systems and the skip connection."""
        with full_precision(x.device):
            y = self.convolution(x, seq_idx) if state is None else self.recurrence(x, state, seq_idx)
        return y + self.D * x

    def convolution(self, u: Tensor, seq_idx: Tensor | None) -> Tensor:
        """The systems over whole sequences u (B, T, D)."""
        past, *future = self.kernel(u.shape[1])
        return convolve(u, past, *future, seq_idx=seq_idx)

    def recurrence(self, u: Tensor, state: StateSpaceState, seq_idx: Tensor | None) -> Tensor:
        """The systems over u (B, T, D) from a state, which advances."""
        whole, rest = divmod(u.shape[1], self.chunk_size)
        lengths = [self.chunk_size] * whole + [rest] * (rest > 0)
        chunks = wide(u).split(lengths, dim=1)
        ids = [None] * len(chunks) if seq_idx is None else seq_idx.split(lengths, dim=1)
        spans = {length: self.kernel.span(length) for length in set(lengths) - {1}}
        outputs = []
        rows, before = state.advance_sequence(seq_idx), None
        for chunk, chunk_ids in zip(chunks, ids, strict=True):
            if before is not None and chunk_ids is not None:
                rows = before[:, -1] == chunk_ids[:, 0]
            x, before = keep_rows(state.x, rows), chunk_ids
            if chunk.shape[1] == 1:
                y, state.x = self.kernel.step(chunk[:, 0], x)
                outputs.append(y[:, None])
            else:
                y, state.x = self._span(spans[chunk.shape[1]], chunk, x, chunk_ids)
                outputs.append(y)
        return torch.cat(outputs, dim=1).to(u.dtype)

    def _span(self, span: Span, u: Tensor, x: Tensor, seq_idx: Tensor | None) -> tuple[Tensor, Tensor]:
        y = convolve(u, span.kernel, seq_idx=seq_idx)
        seen = torch.einsum("bdn,dtn->btd", x, span.outputs)
        x = self.kernel.advance(span.power, x)
        if seq_idx is not None:
            index = sequence_starts(seq_idx).cumsum(1)[..., None]
            seen = seen.where(index == 1, 0)
            u = u.where(index == index[:, -1:], 0)
            x = x.where(index[:, -1:] == 1, 0)
        return y + seen, (x + torch.einsum("btd,dtn->bdn", u, span.inputs)).contiguous()  # as steps take it

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> StateSpaceState:
        """Zeros; the size does not depend on ``max_length``.

        Raises:
            ValueError: for a bidirectional mixer.
        """
        if self.kernel.directions > 1:
            raise ValueError(
                f"a bidirectional {type(self).__name__} reads the future and has no state: call it on whole sequences, "
                "or build it with bidirectional=False"
            )
        device, dtype = self.placement(device, dtype)
        shape = (batch_size, self.kernel.dim, self.kernel.d_state)
        return StateSpaceState(torch.zeros(shape, device=device, dtype=compute_dtype(dtype)))

    def state_size(self, length: int) -> int:
        """Constant in ``length``."""
        return self.kernel.dim * self.kernel.d_state


class StateSpaceMixer(LinearSystems):
    r"""A state-space model a channel, and a gated linear layer that mixes the channels.

    .. math:: y = \mathrm{GLU}(W \, \mathrm{gelu}(\mathrm{SSM}(u) + D \odot u) + b)

    Args:
        kernel: the systems, one a channel. With two directions the mixer sees the future and has no state.
        drop_rate: dropout before W.
        chunk_size: steps a chunk with a state; it changes the speed, not the result.
    """

    def __init__(self, kernel: StateSpaceKernel, drop_rate: float, chunk_size: int):
        super().__init__(kernel, chunk_size)
        self.drop = nn.Dropout(drop_rate)
        self.output_linear = nn.Linear(kernel.dim, 2 * kernel.dim)

    @skips_padding
    def forward(self, x: Tensor, state: StateSpaceState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        return F.glu(self.output_linear(self.drop(F.gelu(self.systems(x, state, seq_idx)))), dim=-1)


def wide(tensor: Tensor) -> Tensor:
    """In float32, or float64 if it is."""
    return tensor.to(compute_dtype(tensor))


def as_complex(x: Tensor) -> Tensor:
    """Real (..., N) -> complex (..., N / 2)."""
    return torch.view_as_complex(wide(x).unflatten(-1, (-1, 2)))


def as_real(x: Tensor) -> Tensor:
    """Complex (..., N / 2) -> real (..., N)."""
    return torch.view_as_real(x.resolve_conj()).flatten(-2)
