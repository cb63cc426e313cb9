"""Sparse and low-rank attention: a window and hashed buckets exactly, the rest through random features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.dispatch import compute_dtype, full_precision
from zoo.layers.attention.lsh import lsh_buckets, random_directions
from zoo.layers.attention.random_features import orthogonal_gaussian
from zoo.layers.attention.rotary import Rotary
from zoo.layers.attention.sparse_low_rank import sparse_low_rank_attention
from zoo.layers.mixer import Mixer, skips_padding
from zoo.layers.options import require_at_least
from zoo.layers.state import State, keep_rows


@dataclass
class ScatterbrainState(State):
    """The newest keys and values (B, window, H, d), oldest first; ``memory`` (B, H, M, d + 1), float32: the sums of
    phi(k) (v, 1) over the keys before them; ``position`` (B,) int64: steps since the sequence began."""

    wide: ClassVar[tuple[str, ...]] = ("memory",)

    key: Tensor
    value: Tensor
    memory: Tensor
    position: Tensor


class ScatterbrainAttention(Mixer):
    r"""Causal softmax attention, exact on a sparse support and approximated by random features elsewhere.

    .. math::
        \tilde A_{ts} = \begin{cases} \exp(q_t \cdot k_s / \sqrt d) & (t, s) \in \mathcal{S} \\
        \phi(q_t) \cdot \phi(k_s) & \text{else} \end{cases}, \quad
        y_t = W_o \frac{\sum_{s \le t} \tilde A_{ts} v_s}{\sum_{s \le t} \tilde A_{ts}}, \quad
        \mathbb{E} \, \phi(q) \cdot \phi(k) = \exp(q \cdot k / \sqrt d)

    phi are the M positive orthogonal random features of ``log_features``: one estimator, unbiased before the common
    normaliser. q and k carry rotary positions, counted from the beginning of their sequence. Two forms of the support:

    - In evaluation mode, and from a state: the ``window`` newest steps, t included. Strictly causal, linear in T, and
      repeated exactly by decoding, whose state is the window's keys and values and the sums of the others' features.
    - In training mode: also the pairs s <= t that share a bucket of ``cluster_size`` neighbours in one of
      ``num_hashes`` sorted hashes of the sequence (the paper's support), each pair once. The values are causal, but
      who shares a bucket depends on later steps. Both forms estimate the same softmax attention; they are one with
      ``num_hashes=0``, and where the window covers the sequence, which is then attended to exactly.

    Features and sums are float32 or wider. The projection of the features and the directions of the hashes are drawn
    once, for all heads, and saved with the model: the queries are trained to them.

    Args:
        dim: model width.
        num_heads: H.
        window: steps a query sees exactly, itself included.
        num_features: M, even.
        cluster_size: steps of a bucket.
        num_hashes: 0 for the window alone.
        head_dim: d, dim / num_heads when None.
        rope_base: wavelength base of the rotary positions, which stand for the paper's absolute ones.

    Raises:
        ValueError: when num_heads does not divide dim into heads of even width, num_features is odd or below 2, window
            or cluster_size is below 1 or num_hashes is negative.

    Paper: Chen et al., "Scatterbrain: Unifying Sparse and Low-rank Attention", arXiv 2110.15343, section 4.
    """

    float32_buffers = ("projection", "directions")
    projection: Tensor
    directions: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int,
        num_features: int,
        *,
        cluster_size: int = 32,
        num_hashes: int = 2,
        head_dim: int | None = None,
        rope_base: float = 10000.0,
    ):
        super().__init__()
        require_at_least(1, num_heads=num_heads, head_dim=head_dim)
        if (head_dim is None and dim % num_heads) or (head_dim or dim // num_heads) % 2:
            raise ValueError(
                "num_heads must divide dim into even heads, or head_dim be given and even: "
                f"got dim {dim}, num_heads {num_heads}, head_dim {head_dim}"
            )
        if min(window, cluster_size) < 1 or num_hashes < 0 or num_features < 2 or num_features % 2:
            raise ValueError(
                "window and cluster_size must be at least 1, num_hashes at least 0 and num_features even and at least "
                f"2: got window {window}, cluster_size {cluster_size}, num_hashes {num_hashes}, num_features "
                f"{num_features}"
            )
        self.num_heads, self.head_dim = num_heads, head_dim or dim // num_heads
        self.window, self.num_features, self.cluster_size = window, num_features, cluster_size
        self.rotary = Rotary(self.head_dim, rope_base)
        inner = num_heads * self.head_dim
        self.q_proj = nn.Linear(dim, inner, bias=False)
        self.k_proj = nn.Linear(dim, inner, bias=False)
        self.v_proj = nn.Linear(dim, inner, bias=False)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.register_buffer("projection", orthogonal_gaussian(num_features // 2, self.head_dim))
        self.register_buffer("directions", random_directions(num_hashes, self.head_dim))

    @property
    def whole_in_training(self) -> bool:
        """Buckets are those of the whole sequence."""
        return len(self.directions) > 0

    @skips_padding
    def forward(self, x: Tensor, state: ScatterbrainState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        memory, positions = self._past(x, state, seq_idx)
        q, k, v = (proj(x).unflatten(-1, (self.num_heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self.rotary(positions, q, k)  # (B, T, H, d)
        if state is None:
            window = min(self.window, x.shape[1])
            k, v = (F.pad(heads, (0, 0, 0, 0, window, 0)) for heads in (k, v))
        else:
            k, v = torch.cat([state.key, k], dim=1), torch.cat([state.value, v], dim=1)
        with full_precision(x.device):
            y, memory = self._attend(q, k, v, positions, memory, seq_idx, hashed=self.training and state is None)
        if state is not None:
            state.key, state.value = k[:, -self.window :], v[:, -self.window :]
            state.memory, state.position = memory, positions[:, -1] + 1
        return self.out_proj(y.to(v.dtype).flatten(2))

    def _attend(self, q, k, v, positions, memory, seq_idx, hashed: bool) -> tuple[Tensor, Tensor]:
        """Output (B, T, H, d) and memory, both float32 or wider."""
        wide, length = compute_dtype(q), q.shape[1]
        q, k = (heads.to(wide) * self.head_dim**-0.25 for heads in (q, k))
        buckets = None
        if hashed and len(self.directions) and length > self.window:
            packed = {} if seq_idx is None else {"positions": positions, "segments": (positions == 0).cumsum(1) - 1}
            buckets = lsh_buckets(q, k[:, -length:], self.directions.to(wide), self.cluster_size, **packed)
        projection = self.projection.to(wide)
        return sparse_low_rank_attention(
            q, k, v.to(wide), projection, positions, memory=memory, seq_idx=seq_idx, buckets=buckets
        )

    def _past(self, x: Tensor, state: ScatterbrainState | None, seq_idx: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """The memory before the first step and the positions (B, T) of the steps within their sequences."""
        if state is None:
            memory, past = None, torch.zeros(len(x), dtype=torch.int64, device=x.device)
        else:
            kept = state.advance_sequence(seq_idx)
            memory, past = keep_rows(state.memory, kept), keep_rows(state.position, kept)
        index = torch.arange(x.shape[1], device=x.device)
        if seq_idx is None:
            return memory, past[:, None] + index
        starts = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))
        return memory, index - torch.where(starts, index, -past[:, None]).cummax(1).values

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> ScatterbrainState:
        """Zeros; the size does not depend on ``max_length``."""
        device, dtype = self.placement(device, dtype)
        shape = (batch_size, self.window, self.num_heads, self.head_dim)
        key, value = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        shape = (batch_size, self.num_heads, self.num_features, self.head_dim + 1)
        memory = torch.zeros(shape, device=device, dtype=compute_dtype(dtype))
        return ScatterbrainState(key, value, memory, torch.zeros(batch_size, device=device, dtype=torch.int64))

    def state_size(self, length: int) -> int:
        """Constant in ``length``: the window's keys and values, the sums of the features, the position."""
        window, memory = 2 * self.window * self.head_dim, self.num_features * (self.head_dim + 1)
        return self.num_heads * (window + memory) + 1
