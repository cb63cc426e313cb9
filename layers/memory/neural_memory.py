"""The neural memory of Titans as a mixer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels import momentum_delta_rule
from zoo.layers.conv import CausalConv1d
from zoo.layers.memory.grid import Grid, Piece
from zoo.layers.memory.network import Gates, Learned, MemoryNetwork
from zoo.layers.mixer import Mixer, skips_padding
from zoo.layers.norm import RMSNorm, gated
from zoo.layers.options import require_above, require_at_least
from zoo.layers.ssm.delta_net import unit
from zoo.layers.ssm.state_space import wide
from zoo.layers.state import State, keep_rows


@dataclass
class LearnedState(State):
    """change, momentum and anchor (B, numbers), float32, see ``Learned``; phase (B,) int64, steps of the chunk that is
    under way."""

    wide: ClassVar[tuple[str, ...]] = ("change", "momentum", "anchor")

    change: Tensor
    momentum: Tensor
    anchor: Tensor
    phase: Tensor


@dataclass
class NeuralMemoryState(LearnedState):
    """That, and q, k, v (B, d_conv - 1, channels): newest inputs of the convolutions."""

    q: Tensor
    k: Tensor
    v: Tensor


class GatedMemory(nn.Module):
    r"""A memory and the gates by which it learns from steps x.

    .. math::
        \theta = \theta_{max} \, \sigma(w_\theta x + b_\theta), \quad \alpha = \sigma(w_\alpha x + b_\alpha), \quad
        \eta = \sigma(w_\eta x + b_\eta)

    Args:
        dim: width of x.
        num_heads, head_dim, depth, expand, clip: of the ``MemoryNetwork``.
        chunk_size: steps whose gradients are taken at one place.
        max_rate: theta_max; 1 / chunk_size when None, which keeps a chunk of equal keys from overshooting.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int,
        depth: int = 2,
        expand: int = 2,
        chunk_size: int = 16,
        max_rate: float | None = None,
        clip: float | None = None,
    ):
        super().__init__()
        require_at_least(1, chunk_size=chunk_size)
        if max_rate is not None:
            require_above(0, max_rate=max_rate)
        self.num_heads, self.chunk_size, self.max_rate = num_heads, chunk_size, max_rate or 1 / chunk_size
        self.network = MemoryNetwork(num_heads, head_dim, depth, expand, clip)
        self.gates = nn.Linear(dim, 3 * num_heads)
        with torch.no_grad():  # it forgets little at first
            self.gates.bias.copy_(torch.tensor([0.0, -4.0, 0.0]).repeat_interleave(num_heads))

    def read_gates(self, x: Tensor) -> Tensor:
        """x (B, T, dim) -> rate, log(1 - alpha) and log(eta) (B, T, 3, H), float32 or wider."""
        rate, forget, momentum = wide(self.gates(x)).unflatten(-1, (3, self.num_heads)).unbind(-2)
        return torch.stack([self.max_rate * rate.sigmoid(), F.logsigmoid(-forget), F.logsigmoid(momentum)], dim=-2)

    @property
    def is_linear(self) -> bool:
        """One matrix whose gradients are all taken at the newest weights: what ``momentum_delta_rule`` computes."""
        return len(self.network.weights) == 1 and self.chunk_size == 1 and self.network.clip is None

    def scan(self, learned: Learned, q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> tuple[Tensor, Learned]:
        """All steps of a linear memory at once: q, k and v (B, T, H, d) and gates (B, T, 3, H) -> y (B, T, H, d), and
        what is learned."""
        (start,), (change,), (momentum,) = self.network.initial(), learned.change, learned.momentum
        states = {"initial_state": start + change, "initial_momentum": momentum}
        y, weight, momentum = momentum_delta_rule(q, k, v, *gates.unbind(2), scale=1.0, **states)
        change = [weight - start]
        return y, Learned(change, [momentum], change)

    def empty(self, batch: int, like: Tensor) -> Learned:
        """Before the first step."""
        zeros = self.network.unpack(like.new_zeros(batch, self.network.numbers))
        return Learned(zeros, zeros, zeros)

    def open(self, learned: Learned, piece: Piece) -> Learned:
        """Forget everything in the rows where a sequence begins."""
        if piece.fresh is None:
            return learned
        return Learned(*([keep_rows(layer, ~piece.fresh) for layer in layers] for layers in learned))

    def learn(self, learned: Learned, piece: Piece, q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> tuple:
        """A piece of steps: q, k and v (B, n, H, d) and gates (B, n, 3, H) -> y (B, n, H, d), and what is learned."""
        heads = (t.transpose(1, 2) for t in (q, k, v))
        y, after = self.network.learn(learned, *heads, Gates(*gates.permute(2, 0, 3, 1)), piece.valid)  # pyright: ignore[reportCallIssue]
        return y.transpose(1, 2), after._replace(anchor=_closed(after, piece.complete))


def _closed(learned: Learned, complete: bool | Tensor) -> list[Tensor]:
    """The anchor of what comes next: the weights themselves where a chunk is over."""
    if isinstance(complete, bool):
        return learned.change if complete else learned.anchor
    where = complete.view(-1, 1, 1, 1)
    return [torch.where(where, new, old) for new, old in zip(learned.change, learned.anchor, strict=True)]


class NeuralMemory(Mixer):
    r"""A memory that learns at test time, behind short convolutions: Titans' LMM.

    .. math::
        q, k, v = \mathrm{silu}(\mathrm{conv}(W_{q, k, v} x)), \quad
        y = W_o \big( \mathrm{RMSNorm}(\mathrm{memory}(q / |q|, k / |k|, v)) \odot \mathrm{silu}(W_g x) \big)

    with the memory and its learning of ``MemoryNetwork`` and the gates of ``GatedMemory``. Chunks count from the first
    step of a sequence, and ``chunk_size`` is part of the function: with 1 each gradient is taken at the newest weights,
    and a memory of one matrix is computed by ``momentum_delta_rule``.

    Args:
        dim: model width.
        num_heads: heads H.
        head_dim: channels of a query, key and value; dim / num_heads when None.
        depth, expand, chunk_size, max_rate, clip: of ``GatedMemory``.
        d_conv: taps of the convolutions.
        norm_eps: of the norm over the outputs.

    Raises:
        ValueError: where num_heads does not divide dim and there is no head_dim, or a size is below 1.

    Paper: Behrouz, Zhong and Mirrokni, "Titans: Learning to Memorize at Test Time", arXiv 2501.00663, sections 3 and
    4.4. It names no initial weights and no activation; GELU is that of public code (lucidrains/titans-pytorch).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int | None = None,
        *,
        depth: int = 2,
        expand: int = 2,
        chunk_size: int = 16,
        max_rate: float | None = None,
        clip: float | None = None,
        d_conv: int = 4,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        self.num_heads, self.head_dim, self.d_conv = num_heads, width_of(dim, num_heads, head_dim), d_conv
        inner = num_heads * self.head_dim
        self.q_proj, self.k_proj, self.v_proj, self.g_proj = (nn.Linear(dim, inner, bias=False) for _ in range(4))
        self.q_conv1d, self.k_conv1d, self.v_conv1d = (
            CausalConv1d(inner, d_conv, bias=False, activation="silu") for _ in range(3)
        )
        self.memory = GatedMemory(dim, num_heads, self.head_dim, depth, expand, chunk_size, max_rate, clip)
        self.o_norm = RMSNorm(self.head_dim, norm_eps)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    @skips_padding
    def forward(self, x: Tensor, state: NeuralMemoryState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        rows = None if state is None else state.advance_sequence(seq_idx)
        past = {name: None if state is None else keep_rows(getattr(state, name), rows) for name in "qkv"}
        q, q_inputs = self.q_conv1d(self.q_proj(x), past["q"], seq_idx)
        k, k_inputs = self.k_conv1d(self.k_proj(x), past["k"], seq_idx)
        v, v_inputs = self.v_conv1d(self.v_proj(x), past["v"], seq_idx)
        q, k, v = (wide(t).unflatten(-1, (self.num_heads, -1)) for t in (q, k, v))  # (B, T, H, d)
        q, k, gates = unit(q), unit(k), self.memory.read_gates(x)
        grid = Grid(x, self.memory.chunk_size, None if state is None else state.phase, seq_idx, rows)
        learned = load(self.memory, state, q)
        if self.memory.is_linear and seq_idx is None:
            y, learned = self.memory.scan(learned, q, k, v, gates)
        else:
            y, learned = self._by_chunks(grid, learned, q, k, v, gates)
        if state is not None:
            state.q, state.k, state.v = q_inputs, k_inputs, v_inputs
            store(self.memory, state, learned, grid)
        gate = self.g_proj(x).unflatten(-1, (self.num_heads, -1))
        return self.out_proj(gated(self.o_norm, y.to(x.dtype), gate).flatten(-2))

    def _by_chunks(self, grid: Grid, learned: Learned, *steps: Tensor) -> tuple[Tensor, Learned]:
        """q, k, v and gates (B, T, ...) -> y (B, T, H, d), and what is learned."""
        outputs = []
        for piece in grid:
            learned = self.memory.open(learned, piece)
            y, learned = self.memory.learn(learned, piece, *(piece.take(t) for t in steps))  # pyright: ignore[reportCallIssue]
            outputs.append(y)
        return grid.join(outputs), learned

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> NeuralMemoryState:
        """Nothing learned; the size does not depend on ``max_length``."""
        device, dtype = self.placement(device, dtype)
        inner = self.num_heads * self.head_dim
        q, k, v = (torch.zeros(batch_size, self.d_conv - 1, inner, device=device, dtype=dtype) for _ in range(3))
        return NeuralMemoryState(*nothing(self.memory, batch_size, device, dtype), q, k, v)

    def state_size(self, length: int) -> int:
        """Constant in ``length``."""
        return 3 * (self.d_conv - 1) * self.num_heads * self.head_dim + 3 * self.memory.network.numbers + 1


def width_of(dim: int, num_heads: int, head_dim: int | None) -> int:
    """Of a head."""
    require_at_least(1, dim=dim, num_heads=num_heads, head_dim=head_dim)
    if head_dim is None and dim % num_heads:
        raise ValueError(f"num_heads must divide dim where head_dim is None, got dim {dim}, num_heads {num_heads}")
    return head_dim or dim // num_heads


def nothing(
    memory: GatedMemory, batch_size: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """change, momentum, anchor and phase of a state before the first step."""
    shape, kind = (batch_size, memory.network.numbers), torch.promote_types(dtype, torch.float32)
    change, momentum, anchor = (torch.zeros(shape, device=device, dtype=kind) for _ in range(3))
    return change, momentum, anchor, torch.zeros(batch_size, dtype=torch.int64, device=device)


def load(memory: GatedMemory, state: LearnedState | None, like: Tensor) -> Learned:
    """What a state has learned, in the dtype of ``like`` (B, ...); nothing without one."""
    if state is None:
        return memory.empty(len(like), like)
    flat = (state.change, state.momentum, state.anchor)
    return Learned(*(memory.network.unpack(tensor.to(like.dtype)) for tensor in flat))


def store(memory: GatedMemory, state: LearnedState, learned: Learned, grid: Grid) -> None:
    """Keep it in a state."""
    state.change, state.momentum, state.anchor = (memory.network.pack(layers) for layers in learned)
    state.phase = grid.phase
