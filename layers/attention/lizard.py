"""Softmax attention made linear: a gated memory of learned features, and a window of the attention it was."""

from __future__ import annotations

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.dispatch import compute_dtype, full_precision
from zoo.layers.attention.causal import CausalAttention
from zoo.layers.attention.keys import Place
from zoo.layers.attention.memory import MemoryMixer, MemoryState
from zoo.layers.attention.sliding_window import SlidingWindowAttention
from zoo.layers.mixer import Mixer, skips_padding
from zoo.layers.options import require_at_least
from zoo.layers.states import JointState

LARGEST = 30.0  # exponent of a key's feature, either way
SLOW = 4.0  # bias of the gates at first: memory halves in 38 steps
TAKEN = (  # from the attention that is made linear
    "dim", "num_heads", "num_kv_heads", "head_dim", "scale", "softcap", "q_proj", "k_proj", "v_proj", "q_norm",
    "k_norm", "rotary", "out_proj", "compute",
)  # fmt: skip


class FeatureMap(nn.Module):
    """log phi(x) = [x W, -x W] with a matrix a head, in float32 or wider; W is the unit matrix over d^(1/4) at first.

    Args:
        num_heads: H.
        head_dim: d.
        device, dtype: of W.

    Paper: Zhang et al., "The Hedgehog & the Porcupine", arXiv 2402.04347.
    """

    def __init__(self, num_heads: int, head_dim: int, device=None, dtype=None):
        super().__init__()
        unit = torch.eye(head_dim, device=device, dtype=dtype)
        self.weight = nn.Parameter(head_dim**-0.25 * unit.repeat(num_heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, H, d) -> (B, T, H, 2 d)."""
        wide = compute_dtype(x)
        with full_precision(x.device):
            y = torch.einsum("bthd,hdf->bthf", x.to(wide), self.weight.to(wide))
        return torch.cat([y, -y], dim=-1)


class FeatureMemory(MemoryMixer):
    r"""Normalised linear attention of learned features that forgets by a gate a head.

    .. math::
        y_t = \frac{\phi_q(q_t)^\top S_t}{\phi_q(q_t)^\top z_t}, \quad S_t = g_t S_{t-1} + \phi_k(k_t) v_t^\top, \quad
        z_t = g_t z_{t-1} + \phi_k(k_t), \quad \phi(x) = [e^{x W}, e^{-x W}]

    Both sums are one memory, of (v, 1). The queries' features are divided by their largest, which y does not see; the
    exponents of the keys' are bounded by 30, so that no sum overflows or is 0 in float32.

    Args:
        num_heads: H.
        head_dim: d.
        gate: there are gates g; otherwise nothing is forgotten.
        chunk_size: steps a chunk of the parallel form; it changes the speed, not the result.
        device, dtype: of the parameters, and of states.
    """

    scale = 1.0

    def __init__(self, num_heads: int, head_dim: int, gate: bool = True, chunk_size: int = 64, device=None, dtype=None):
        super().__init__()
        self.compute = torch.empty(0, device=device, dtype=dtype)
        self.num_heads, self.head_dim, self.gate, self.chunk_size = num_heads, head_dim, gate, chunk_size
        self.key_dim, self.value_dim, self.out_dim = 2 * head_dim, head_dim + 1, num_heads * head_dim
        self.q_map, self.k_map = (FeatureMap(num_heads, head_dim, device, dtype) for _ in range(2))

    @skips_padding
    def forward(self, x: Tensor, state: MemoryState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """q, k, v (H d each) and the logits of the gates (H, where there are gates) as x (B, T, .) -> (B, T, H d)."""
        width = self.num_heads * self.head_dim
        heads, logits = x[..., : 3 * width], x[..., 3 * width :]
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)) for part in heads.chunk(3, dim=-1))
        q, k = self.q_map(q), self.k_map(k)
        q, k = (q - q.amax(-1, keepdim=True)).exp(), k.clamp(-LARGEST, LARGEST).exp()
        log_decay = F.logsigmoid(logits.to(q.dtype)) if self.gate else None
        sums = self.recall(q, k, F.pad(v.to(q.dtype), (0, 1), value=1.0), log_decay, state, seq_idx)
        return (sums[..., :-1] / sums[..., -1:]).to(x.dtype).flatten(2)


class LizardAttention(SlidingWindowAttention):
    r"""A memory of all steps plus softmax attention to the newest: what ``zoo.linearize`` puts in attention's place.

    .. math::
        y = W_o \Big( \mathrm{memory}(q, k, v) + a \frac{\sum_{s > t - w} e^{q_t \cdot k_s / \sqrt d} v_s}
        {\sum_m e^{\mu_m} + \sum_{s > t - w} e^{q_t \cdot k_s / \sqrt d}} \Big), \quad
        g = \sigma(W_g x + b)

    q, k and v are those of the attention, whose layers are taken over. In the memory (``FeatureMemory``) positions do
    not count, in the window they do, as before. The meta tokens' logits enter their sum alone, so they are one learned
    number a head, log m at first; the paper leaves open whether the logit or its exponent is added. Its gates have no
    bias. Without memory and meta tokens the layer is the attention itself where the window covers the sequence.

    Args:
        attention: softmax attention.
        window: w; None for the memory alone.
        meta_tokens: m, 0 for none; an attention with sinks keeps those.
        linear: there is a memory.
        gate: the memory forgets.
        chunk_size: steps a chunk of the memory's parallel form; it changes the speed, not the result.

    Raises:
        ValueError: for a window or a chunk below 1, fewer than 0 meta tokens, or neither window nor memory.

    Paper: Nguyen et al., "Lizard", arXiv 2507.09025.
    """

    window: int | None  # type: ignore[assignment]

    def __init__(
        self,
        attention: CausalAttention,
        window: int | None = 128,
        meta_tokens: int = 4,
        *,
        linear: bool = True,
        gate: bool = True,
        chunk_size: int = 64,
    ):
        Mixer.__init__(self)
        require_at_least(1, window=window, chunk_size=chunk_size)
        require_at_least(0, meta_tokens=meta_tokens)
        if window is None and not linear:
            raise ValueError("linear attention needs a window, a memory or both: got window None, linear False")
        for name in TAKEN:
            setattr(self, name, getattr(attention, name))
        like = {"device": self.compute.device, "dtype": self.compute.dtype}
        self.window, self.sinks = window, None
        if window is not None:
            self.anchor_scale = nn.Parameter(torch.ones(1, **like))
            self.sinks = attention.sinks
            if self.sinks is None and meta_tokens:
                self.sinks = nn.Parameter(torch.full((self.num_heads,), log(meta_tokens), **like))
        self.memory, self.gate_proj = None, None
        if linear:
            self.memory = FeatureMemory(self.num_heads, self.head_dim, gate, chunk_size, **like)
            if gate:
                self.gate_proj = nn.Linear(self.dim, self.num_heads, **like)
                nn.init.constant_(self.gate_proj.bias, SLOW)

    def forward(self, x: Tensor, state: JointState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """x (B, T, dim) -> (B, T, dim)."""
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self.q_norm(q), self.k_norm(k)  # (B, T, H, d)
        states = iter((None, None) if state is None else state.parts)
        found = []
        if self.window is not None:
            found.append(self.anchor_scale * self.anchored(x, q, k, v, next(states), seq_idx))
        if self.memory is not None:
            found.append(self.memory(self.heads(x, q, k, v), next(states), seq_idx=seq_idx))
        return self.out_proj(sum(found[1:], found[0]))

    def anchored(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state, seq_idx: Tensor | None) -> Tensor:
        """Attention to the window, (B, T, H d)."""
        place = Place.of(x, state, seq_idx)
        q, k = self.rotated(place.position, q, k)
        return (
            self.mix(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), place, state).transpose(1, 2).flatten(2)
        )

    def heads(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What the memory reads, with keys and values for every query head."""
        shared = self.num_heads // self.num_kv_heads
        parts = [q, *(t if shared == 1 else t.repeat_interleave(shared, dim=2) for t in (k, v))]
        return torch.cat([t.flatten(2) for t in parts] + ([] if self.gate_proj is None else [self.gate_proj(x)]), -1)

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> JointState:  # type: ignore[override]
        """An empty window and an empty memory."""
        arguments = (batch_size, max_length, device, dtype)
        window = () if self.window is None else (super().init_state(*arguments),)
        return JointState((*window, *(() if self.memory is None else (self.memory.init_state(*arguments),))))

    def state_size(self, length: int) -> int:
        """Grows with ``length`` up to the window."""
        window = 0 if self.window is None else super().state_size(length)
        return window + (0 if self.memory is None else self.memory.state_size(length))
