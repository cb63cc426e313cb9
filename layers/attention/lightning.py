"""Lightning attention: linear attention with a constant decay a head, slower in deeper layers, and a gated output."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.dispatch import compute_dtype
from zoo.layers.attention.memory import MemoryMixer, MemoryState
from zoo.layers.mixer import skips_padding
from zoo.layers.norm import RMSNorm
from zoo.layers.options import require_at_least


class LightningAttention(MemoryMixer):
    r"""Linear attention of activated queries, keys and values, normalised over all heads and gated.

    .. math::
        [q; k; v]_h = \mathrm{silu}(W^{qkv}_h x), \quad
        o_t = \sum_{s \le t} e^{-r_h (t - s)} (q_t^\top k_s) v_s, \quad
        y = W_o \big( \sigma(W_g x) \odot \mathrm{RMSNorm}(o) \big)

        r_h = 2^{-8 h / H} \big(1 - \tfrac{i}{L - 1 + \epsilon} + \epsilon\big), \quad \epsilon = 10^{-5}

    for head h = 1, ..., H of layer i = 0, ..., L - 1. Parameter names are the published ones.

    Args:
        dim: model width.
        num_heads: H.
        head_dim: dim / num_heads when None.
        index, depth: i and L.
        chunk_size: steps a chunk of the parallel form; it changes the speed, not the result.
        norm_eps: of the norm.

    Raises:
        ValueError: where num_heads does not divide dim, or an index outside [0, depth).

    Paper: MiniMax, "MiniMax-01: Scaling Foundation Models with Lightning Attention", arXiv 2501.08313, section 2.2;
    Qin et al., arXiv 2405.17381; the decay is in the published code.
    """

    scale = 1.0

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int | None = None,
        *,
        index: int = 0,
        depth: int = 1,
        chunk_size: int = 64,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        require_at_least(1, dim=dim, num_heads=num_heads, head_dim=head_dim, chunk_size=chunk_size)
        if head_dim is None and dim % num_heads:
            raise ValueError(f"num_heads must divide dim: got dim {dim}, num_heads {num_heads}")
        if not 0 <= index < depth:
            raise ValueError(f"index must be that of one of the {depth} layers, got {index}")
        self.num_heads, self.chunk_size = num_heads, chunk_size
        self.key_dim = self.value_dim = head_dim or dim // num_heads
        self.slowness = 1 - index / (depth - 1 + 1e-5) + 1e-5
        width = num_heads * self.key_dim
        self.qkv_proj = nn.Linear(dim, 3 * width, bias=False)
        self.output_gate = nn.Linear(dim, width, bias=False)
        self.norm = RMSNorm(width, norm_eps)
        self.out_proj = nn.Linear(width, dim, bias=False)

    @skips_padding
    def forward(self, x: Tensor, state: MemoryState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        q, k, v = F.silu(self.qkv_proj(x)).unflatten(-1, (self.num_heads, 3, -1)).unbind(-2)  # (B, T, H, K)
        o = self.norm(self.recall(q, k, v, self.log_decay(x), state, seq_idx).flatten(-2))
        return self.out_proj(self.output_gate(x).sigmoid() * o)

    def log_decay(self, x: Tensor) -> Tensor:
        """-r, the same at every step, (B, T, H)."""
        head = torch.arange(1, self.num_heads + 1, device=x.device, dtype=compute_dtype(x))
        return (-self.slowness * 2.0 ** (-8 * head / self.num_heads)).expand(*x.shape[:2], -1)
