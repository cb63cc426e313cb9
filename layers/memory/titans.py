"""Titans: a neural memory beside attention, as its context, its gate, or the layer below it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.attention.keys import Keys, Place
from zoo.layers.attention.rotary import Rotary
from zoo.layers.attention.sliding_window import SlidingWindowAttention
from zoo.layers.attention.state import KeyValueState
from zoo.layers.conv import CausalConv1d
from zoo.layers.memory.grid import Grid, Piece
from zoo.layers.memory.neural_memory import GatedMemory, LearnedState, NeuralMemory, load, nothing, store, width_of
from zoo.layers.mixer import Mixer, skips_padding
from zoo.layers.norm import RMSNorm
from zoo.layers.options import require_at_least
from zoo.layers.ssm.delta_net import unit
from zoo.layers.ssm.state_space import wide
from zoo.layers.state import keep_rows
from zoo.layers.states import JointState


class PersistentAttention(SlidingWindowAttention):
    """Attention to a window of steps and to ``num_persistent`` learned keys and values that every step sees.

    Half of a head's channels turn with the position; the learned keys have only the others, so that they are the same
    from everywhere.

    Args:
        dim, num_heads, window, head_dim: of ``SlidingWindowAttention``; a head has at least four channels.
        num_persistent: learned keys and values of each head.

    Raises:
        ValueError: for sizes that do not fit, see ``SlidingWindowAttention``.

    Paper: Behrouz et al., "Titans", arXiv 2501.00663, section 3.3 (persistent memory).
    """

    def __init__(self, dim: int, num_heads: int, window: int, num_persistent: int = 4, head_dim: int | None = None):
        turning = Rotary(2 * (width_of(dim, num_heads, head_dim) // 4))
        super().__init__(dim, num_heads, window, head_dim=head_dim, rotary=turning)
        self.persistent_keys = persistent(num_heads, num_persistent, self.head_dim - turning.dim)
        self.persistent_values = persistent(num_heads, num_persistent, self.head_dim)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, place: Place, state: KeyValueState | None) -> Tensor:
        """In blocks of the window where each row's steps follow one another, by one mask elsewhere. What is no cache
        attends itself."""
        if state is not None and not isinstance(state, KeyValueState):
            return state.attend(q, k, v, place, self)
        if state is None and place.ids is None and q.shape[2] > self.window:
            return self._blocked(q, k, v)
        keys = Keys(k, v, place.position, place.ids)
        if state is not None:
            keys = state.remember(keys, place)
        if keys.position.dim() == 1 or keys.position is place.position:
            place = place._replace(position=keys.position[..., -q.shape[2] :])
        query, key = place.position[..., :, None], keys.position[..., None, :]
        mask = (key <= query) & (query - key < self.window)
        if keys.ids is not None and place.ids is not None:
            mask = mask & (keys.ids[:, None, :] == place.ids[:, :, None])
        return self.attend(q, keys.key, keys.value, mask if mask.dim() == 2 else mask[:, None])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """q (B, H, T, d) over the learned keys and k, v (B, H, S, d), of these where the mask is True."""
        learned = self.learned
        k, v = (
            torch.cat([first.to(t.dtype).expand(len(t), -1, -1, -1), t], dim=2)
            for first, t in zip(learned, (k, v), strict=True)
        )
        return super().attend(q, k, v, F.pad(mask, (learned[0].shape[1], 0), value=True))  # type: ignore[arg-type]

    @property
    def learned(self) -> tuple[Tensor, Tensor]:
        """The learned keys and values (H, num_persistent, d)."""
        keys = self.persistent_keys
        return F.pad(keys, (self.head_dim - keys.shape[-1], 0)), self.persistent_values

    def _blocked(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Each block of queries against the keys of the block before it and its own."""
        length, size = q.shape[2], self.window
        missing = -length % size
        query = F.pad(q, (0, 0, 0, missing)).unflatten(2, (-1, size))  # (B, H, n, w, d)
        key, value = (F.pad(t, (0, 0, size, missing)).unfold(2, 2 * size, size).mT for t in (k, v))
        place, other = torch.arange(size, device=q.device)[:, None], torch.arange(2 * size, device=q.device) - size
        near = (other <= place) & (place - other < size)
        real = other + size * torch.arange(query.shape[2], device=q.device)[:, None, None] >= 0  # (n, 1, 2 w)
        query, key, value = (t.transpose(1, 2).flatten(0, 1) for t in (query, key, value))  # (B n, H, ., d)
        y = self.attend(query, key, value, (near & real).repeat(len(q), 1, 1)[:, None])
        return y.unflatten(0, (len(q), -1)).transpose(1, 2).flatten(2, 3)[:, :, :length]


def persistent(num_heads: int, count: int, head_dim: int) -> nn.Parameter:
    """Learned keys or values (H, count, d)."""
    require_at_least(1, num_persistent=count)
    return nn.Parameter(torch.randn(num_heads, count, head_dim) * head_dim**-0.5)


class MemoryAsGate(Mixer):
    r"""Attention and memory read the same steps, and what the memory returns gates what attention found: Titans' MAG.

    .. math::
        y = W \big( \mathrm{RMSNorm}(\mathrm{attention}(x)) \odot \mathrm{silu}(\mathrm{RMSNorm}(\mathrm{memory}(x)))
        \big)

    Attention sees a window and learned keys. The paper normalises both by learned vectors and names a non-linearity
    without saying which or where; and there the learned tokens pass through the memory too, which here they do not.

    Args:
        attention: of width dim.
        memory: of width dim.
        dim: model width.
        norm_eps: of the norms.

    Paper: Behrouz et al., "Titans", arXiv 2501.00663, section 4.2.
    """

    def __init__(self, attention: PersistentAttention, memory: NeuralMemory, dim: int, norm_eps: float = 1e-5):
        super().__init__()
        self.attention, self.memory = attention, memory
        self.attention_norm, self.memory_norm = RMSNorm(dim, norm_eps), RMSNorm(dim, norm_eps)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, state: JointState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        short, long = (None, None) if state is None else state.parts
        y, m = self.attention(x, short, seq_idx=seq_idx), self.memory(x, long, seq_idx=seq_idx)
        return self.out_proj(self.attention_norm(y) * F.silu(self.memory_norm(m)))

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> JointState:
        """The window and what the memory learned."""
        parts = (self.attention, self.memory)
        return JointState(tuple(part.init_state(batch_size, max_length, device, dtype) for part in parts))

    def state_size(self, length: int) -> int:
        """Constant in ``length``."""
        return self.attention.state_size(length) + self.memory.state_size(length)


class MemoryAsLayer(MemoryAsGate):
    r"""Attention reads what the memory returns: Titans' MAL, y = attention(RMSNorm(memory(x))).

    Args: those of ``MemoryAsGate``.

    Paper: Behrouz et al., "Titans", arXiv 2501.00663, section 4.3.
    """

    def __init__(self, attention: PersistentAttention, memory: NeuralMemory, dim: int, norm_eps: float = 1e-5):
        super().__init__(attention, memory, dim, norm_eps)
        del self.attention_norm, self.out_proj

    def forward(self, x: Tensor, state: JointState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        short, long = (None, None) if state is None else state.parts
        m = self.memory(x, long, seq_idx=seq_idx)
        return self.attention(self.memory_norm(m), short, seq_idx=seq_idx)


@dataclass
class MemoryContextState(LearnedState):
    """What was learned, and the segment under way: key and value (B, H, 2, segment, d), of what the memory returned
    for its steps and of the steps themselves; inputs (B, d_conv - 1, 4 H d): newest inputs of the convolution."""

    key: Tensor
    value: Tensor
    inputs: Tensor


class MemoryAsContext(Mixer):
    r"""Attention within segments, that also sees what a memory of all earlier segments returns: Titans' MAC.

    .. math::
        h = M_{c}(q(x)), \quad y = v(x) + \mathrm{attention}([P; h; x]), \quad
        o = W \big( \mathrm{RMSNorm}(y) \odot \mathrm{silu}(\mathrm{RMSNorm}(M(q(y)))) \big)

    P are ``num_persistent`` learned keys and values, M_c is the memory before the segment, and M learns from y as
    ``MemoryNetwork`` does, whose chunks are the segments. A step sees of h and x what belongs to steps up to its own.
    What is projected from x, to ask the memory and to attend, goes through a short convolution. The paper names
    residual connections throughout and no place for them: here a step's own value v(x) joins what attention finds, or
    what the memory learns of a step would be a mean over its segment until attention is sharp.

    Args:
        dim: model width.
        num_heads: heads of attention and of the memory.
        segment: steps of a segment.
        num_persistent: learned keys and values.
        head_dim: channels of a head; dim / num_heads when None.
        depth, expand, max_rate, clip: of ``GatedMemory``.
        d_conv: taps of the convolution.
        norm_eps: of the norms.

    Raises:
        ValueError: where num_heads does not divide dim and there is no head_dim, or a size is below 1.

    Paper: Behrouz et al., "Titans", arXiv 2501.00663, sections 4.1 and 4.4. What the memory learns from attention has
    no convolution of its own here.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        segment: int,
        num_persistent: int = 4,
        head_dim: int | None = None,
        *,
        depth: int = 2,
        expand: int = 2,
        max_rate: float | None = None,
        clip: float | None = None,
        d_conv: int = 4,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        self.num_heads, self.head_dim, self.segment = num_heads, width_of(dim, num_heads, head_dim), segment
        inner = num_heads * self.head_dim
        self.memory = GatedMemory(inner, num_heads, self.head_dim, depth, expand, segment, max_rate, clip)
        self.persistent_keys, self.persistent_values = (
            persistent(num_heads, num_persistent, self.head_dim) for _ in range(2)
        )
        self.rotary = Rotary(self.head_dim)
        self.in_proj = nn.Linear(dim, 4 * inner, bias=False)  # of the steps, to ask the memory and to attend
        self.conv1d = CausalConv1d(4 * inner, d_conv, bias=False)
        self.context_proj = nn.Linear(inner, 2 * inner, bias=False)  # of what it returns, to keys and values
        self.memory_proj = nn.Linear(inner, 3 * inner, bias=False)  # of what attention found, to learn it
        self.attention_norm, self.memory_norm = RMSNorm(inner, norm_eps), RMSNorm(inner, norm_eps)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    @skips_padding
    def forward(self, x: Tensor, state: MemoryContextState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        rows = None if state is None else state.advance_sequence(seq_idx)
        past = None if state is None else keep_rows(state.inputs, rows)
        steps, inputs = self.conv1d(self.in_proj(x), past, seq_idx)
        asked, qkv = steps.tensor_split([self.num_heads * self.head_dim], dim=-1)
        asked = unit(self.heads(F.silu(asked)))
        grid = Grid(x, self.segment, None if state is None else state.phase, seq_idx, rows)
        learned, outputs = load(self.memory, state, wide(asked)), []
        held = self.empty(x) if state is None else (state.key, state.value)
        for piece in grid:
            learned = self.memory.open(learned, piece)
            h = self.memory.network.recall(learned.anchor, wide(piece.take(asked)).transpose(1, 2))
            y, held = self.attend(piece, piece.take(qkv), h.transpose(1, 2).flatten(2).to(x.dtype), held)
            q, k, v = (wide(self.heads(F.silu(t))) for t in self.memory_proj(y).chunk(3, dim=-1))
            m, learned = self.memory.learn(learned, piece, unit(q), unit(k), v, self.memory.read_gates(y))
            m = self.memory_norm(m.flatten(2).to(x.dtype))
            outputs.append(self.attention_norm(y) * F.silu(m))
        if state is not None:
            state.key, state.value = (t.to(state.key.dtype) for t in held)
            state.inputs = inputs
            store(self.memory, state, learned, grid)
        return self.out_proj(grid.join(outputs))

    def heads(self, x: Tensor) -> Tensor:
        """(B, T, H d) to (B, T, H, d)."""
        return x.unflatten(-1, (self.num_heads, -1))

    def attend(self, piece: Piece, qkv: Tensor, h: Tensor, held: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple]:
        """Steps of a segment to the learned keys, and to those of h and x from the segment's start to their own.

        Args:
            qkv: (B, n, 3 H d), of the steps.
            h: (B, n, H d), what the memory returns for them.
            held: keys and values (B, H, 2, segment, d), of the steps before in their slots.

        Returns:
            (B, n, H d) with the steps' own values, and keys and values with those of these steps.
        """
        slots = torch.arange(piece.first, piece.first + h.shape[1], device=h.device)
        q, k, v = map(self.heads, qkv.chunk(3, dim=-1))
        context = map(self.heads, self.context_proj(h).chunk(2, dim=-1))
        q, *keys = self.rotary(slots, q, next(context), k)
        values = (next(context), v)
        held = tuple(
            _written(old, torch.stack([one.transpose(1, 2) for one in new], dim=2), piece)
            for old, new in zip(held, (keys, values), strict=True)
        )  # type: ignore[assignment]
        end = piece.first + h.shape[1]
        more = (self.persistent_keys, self.persistent_values)
        key, value = (
            torch.cat([first.to(t.dtype).expand(len(t), -1, -1, -1), t[..., :end, :].flatten(2, 3)], dim=2)
            for first, t in zip(more, held, strict=True)
        )
        seen = (torch.arange(end, device=h.device) <= slots[:, None]).repeat(1, 2)
        mask = F.pad(seen, (self.persistent_keys.shape[1], 0), value=True)
        y = F.scaled_dot_product_attention(q.transpose(1, 2), key.to(q.dtype), value.to(q.dtype), attn_mask=mask)
        return (y.transpose(1, 2) + v).flatten(2), held

    def empty(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, 2, segment, d) of no steps."""
        zeros = x.new_zeros(len(x), self.num_heads, 2, self.segment, self.head_dim)
        return zeros, zeros

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> MemoryContextState:
        """Nothing learned, an empty segment; the size does not depend on ``max_length``."""
        device, dtype = self.placement(device, dtype)
        like = torch.empty(batch_size, device=device, dtype=dtype)
        inputs = like.new_zeros(batch_size, self.conv1d.kernel_size[0] - 1, self.conv1d.in_channels)
        return MemoryContextState(*nothing(self.memory, batch_size, device, dtype), *self.empty(like), inputs)

    def state_size(self, length: int) -> int:
        """Constant in ``length``."""
        held = self.segment + self.conv1d.kernel_size[0] - 1
        return 4 * self.num_heads * held * self.head_dim + 3 * self.memory.network.numbers + 1


def _written(old: Tensor, new: Tensor, piece: Piece) -> Tensor:
    """(B, H, 2, segment, d) with the steps (B, H, 2, n, d) of a piece in their slots."""
    if piece.valid is not None:
        return torch.where(piece.valid[:, None, None, :, None], new.to(old.dtype), old)
    end = piece.first + new.shape[3]
    return torch.cat([old[..., : piece.first, :], new.to(old.dtype), old[..., end:, :]], dim=3)
