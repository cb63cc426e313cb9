"""Multi-head latent attention: keys and values of all heads from one small vector a token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.dispatch import compute_dtype
from zoo.layers.attention.keys import Place, attended, is_causal
from zoo.layers.attention.rotary import Rotary
from zoo.layers.attention.scaling import Yarn
from zoo.layers.attention.state import KeyValueState
from zoo.layers.linear import is_plain, is_watched, read_matrix
from zoo.layers.mixer import Mixer
from zoo.layers.norm import RMSNorm


class LatentAttention(Mixer):
    r"""Causal attention whose keys and values are projections of a latent vector, the only thing kept of a token.

    .. math::
        c_t = n(W^{DKV} x_t), \quad r_t = \mathrm{RoPE}(W^{KR} x_t), \quad
        k_{t,h} = [W^{UK}_h c_t; r_t], \quad v_{t,h} = W^{UV}_h c_t

        q_{t,h} = [W^{UQ}_h z_t; \mathrm{RoPE}(W^{QR}_h z_t)], \quad z_t = n(W^{DQ} x_t) \text{ or } x_t

    with n an RMSNorm. Long stretches of new tokens expand keys and values (``expanded``). A few new tokens on a past
    are attended to in the latent space (``absorbed``), where nothing is expanded:

    .. math::
        q^\top k = (W^{UK\top} q^C)^\top c + q^{R\top} r, \quad \sum_t a_t v_t = W^{UV} \sum_t a_t c_t

    The form is the one that multiplies less; both give the same. Of each token the state holds r, as ``key``
    (B, 1, capacity, qk_rope_head_dim), and c, as ``value`` (B, 1, capacity, kv_lora_rank): all heads share them.
    Parameter names are the published ones, but for ``out_proj``.

    Args:
        dim: model width.
        num_heads: H.
        kv_lora_rank: width of c.
        qk_nope_head_dim, qk_rope_head_dim: parts of a query or key without and with position.
        v_head_dim: of a value.
        q_lora_rank: width of the queries' own latent vector; None for none.
        rope_base: wavelength base; None for no positions: r is a key that all heads share and nothing turns.
        rope_interleaved: rotated pairs are the channels (2i, 2i + 1), as in the published weights, instead of (i, i +
            P).
        yarn: scaling for longer contexts.

    Raises:
        ValueError: for an odd qk_rope_head_dim that is to turn.

    Papers: DeepSeek-AI, "DeepSeek-V2", arXiv 2405.04434, section 2.1; "DeepSeek-V3", arXiv 2412.19437, section 2.1.1.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        kv_lora_rank: int,
        qk_nope_head_dim: int,
        qk_rope_head_dim: int,
        v_head_dim: int,
        q_lora_rank: int | None = None,
        rope_base: float | None = 10000.0,
        rope_interleaved: bool = True,
        yarn: Yarn | None = None,
    ):
        super().__init__()
        if qk_rope_head_dim % 2 and rope_base is not None:
            raise ValueError(f"qk_rope_head_dim must be even, it is rotated in pairs: got {qk_rope_head_dim}")
        self.num_heads, self.kv_lora_rank, self.v_head_dim = num_heads, kv_lora_rank, v_head_dim
        self.qk_nope_head_dim, self.qk_rope_head_dim = qk_nope_head_dim, qk_rope_head_dim
        self.rotary = None
        if rope_base is not None:
            self.rotary = Rotary(qk_rope_head_dim, rope_base, scaling=yarn, interleaved=rope_interleaved)
        qk_head_dim = qk_nope_head_dim + qk_rope_head_dim
        self.scale = qk_head_dim**-0.5 * (yarn.softmax_scale if yarn else 1.0)
        if q_lora_rank is None:
            self.q_proj = nn.Linear(dim, num_heads * qk_head_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(dim, q_lora_rank, bias=False)
            self.q_a_layernorm = RMSNorm(q_lora_rank, eps=1e-6)
            self.q_b_proj = nn.Linear(q_lora_rank, num_heads * qk_head_dim, bias=False)
        self.q_lora_rank = q_lora_rank
        self.kv_a_proj_with_mqa = nn.Linear(dim, kv_lora_rank + qk_rope_head_dim, bias=False)
        self.kv_a_layernorm = RMSNorm(kv_lora_rank, eps=1e-6)
        self.kv_b_proj = nn.Linear(kv_lora_rank, num_heads * (qk_nope_head_dim + v_head_dim), bias=False)
        self.out_proj = nn.Linear(num_heads * v_head_dim, dim, bias=False)

    def forward(self, x: Tensor, state: KeyValueState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        place = Place.of(x, state, seq_idx)
        q = self.q_proj(x) if self.q_lora_rank is None else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q_nope, q_rope = q.unflatten(-1, (self.num_heads, -1)).split((self.qk_nope_head_dim, self.qk_rope_head_dim), -1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split((self.kv_lora_rank, self.qk_rope_head_dim), -1)
        k_rope = k_rope[:, :, None]
        if self.rotary is not None:
            q_rope, k_rope = self.rotary(place.position, q_rope, k_rope)  # (B, T, H, rope), (B, T, 1, rope)
        q_nope, q_rope, k_rope = (heads.transpose(1, 2) for heads in (q_nope, q_rope, k_rope))
        latent = self.kv_a_layernorm(latent)[:, None]  # (B, 1, T, rank)
        q = torch.cat([q_nope, q_rope], dim=-1)
        if state is not None:
            y = state.attend(q, k_rope, latent, place, self)
        else:
            y = self.attend(q, *attended(k_rope, latent, place))
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def attend(self, q: Tensor, k_rope: Tensor, latent: Tensor, mask: Tensor | None) -> Tensor:
        """q (B, H, T, nope + rope) over k_rope (B, 1, L, rope) and latent (B, 1, L, rank), by the form that multiplies
        less -> (B, H, T, v)."""
        length, total = q.shape[2], latent.shape[2]
        anyhow = isinstance(total, torch.SymInt)  # in a program for any number of keys
        absorbs = length == 1 if anyhow else length < total and self._absorbs(length, total)
        q_nope, q_rope = q.split((self.qk_nope_head_dim, self.qk_rope_head_dim), dim=-1)
        return (self.absorbed if absorbs else self.expanded)(q_nope, q_rope, latent, k_rope, mask)

    def logits(self, q: Tensor, k_rope: Tensor, latent: Tensor) -> Tensor:
        """Of q (B, H, T, nope + rope) -> (B, 1, H, T, L), float32 or wider."""
        q_nope, q_rope = q.split((self.qk_nope_head_dim, self.qk_rope_head_dim), dim=-1)
        return self._scores(q_nope, q_rope, latent, k_rope)[:, None]

    def bounded(self, dots: Tensor) -> Tensor:
        """Products of queries and keys as logits."""
        return dots.to(compute_dtype(dots)) * self.scale

    def weights(self, logits: Tensor) -> Tensor:
        """Of logits (B, 1, H, T, L)."""
        return logits.softmax(-1)

    def mixed(self, weights: Tensor, latent: Tensor) -> Tensor:
        """latent (B, 1, L, rank) by weights (B, 1, H, T, L) -> values (B, H, T, v)."""
        _, up_v = self._up(latent)
        return (weights[:, 0].to(latent.dtype) @ latent) @ up_v.mT

    def turned(self, heads: Tensor, by: Tensor) -> Tensor:
        """k_rope (B, 1, L, rope), or queries by their last channels, as if they stood ``by`` positions later."""
        if self.rotary is None:
            return heads
        rest, last = heads.split((heads.shape[-1] - self.qk_rope_head_dim, self.qk_rope_head_dim), dim=-1)
        return torch.cat([rest, self.rotary.shifted(last, by)], dim=-1)

    def expanded(
        self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Attention to keys and values of every head.

        Args:
            q_nope: (B, H, T, nope).
            q_rope: (B, H, T, rope).
            latent: (B, 1, L, rank).
            k_rope: (B, 1, L, rope).
            mask: see ``Attended``.

        Returns:
            (B, H, T, v).
        """
        k_nope, v = self._expand(latent)
        q = torch.cat([q_nope, q_rope], dim=-1)
        k = torch.cat([k_nope, k_rope.expand(-1, self.num_heads, -1, -1)], dim=-1)
        v = F.pad(v, (0, max(0, q.shape[-1] - self.v_head_dim)))  # torch's fast kernels want one width
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal(q, k, mask), scale=self.scale)
        return y[..., : self.v_head_dim]

    def absorbed(
        self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """The same from the latent vectors themselves; None as a mask lets every query see everything."""
        up_k, up_v = self._up(latent)
        scores = self._scores(q_nope, q_rope, latent, k_rope, up_k)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = scores.softmax(-1).to(latent.dtype).flatten(1, 2)
        return (weights @ latent[:, 0]).unflatten(1, scores.shape[1:3]) @ up_v.mT

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> KeyValueState:
        """An empty cache of capacity ``max_length``, or one that grows."""
        (device, dtype), capacity = self.placement(device, dtype), max_length or 16
        key, value = (
            torch.zeros(batch_size, 1, capacity, width, device=device, dtype=dtype)
            for width in (self.qk_rope_head_dim, self.kv_lora_rank)
        )
        return KeyValueState(key, value, max_length=max_length, latent=True)

    def state_size(self, length: int) -> int:
        """Grows with ``length``: kv_lora_rank + qk_rope_head_dim numbers a step, whatever the number of heads."""
        return (self.kv_lora_rank + self.qk_rope_head_dim) * length

    def _expand(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Latent vectors (B, 1, L, rank) -> keys without position (B, H, L, nope) and values (B, H, L, v)."""
        both = self.kv_b_proj(latent[:, 0]).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k_nope, v = both.split((self.qk_nope_head_dim, self.v_head_dim), dim=-1)
        return k_nope, v

    def _up(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """The matrices from a latent vector to the heads' keys without position (H, nope, rank) and values (H, v,
        rank)."""
        up = read_matrix(self.kv_b_proj, latent).unflatten(0, (self.num_heads, -1))
        up_k, up_v = up.split((self.qk_nope_head_dim, self.v_head_dim), dim=1)
        return up_k, up_v

    def _scores(
        self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, up_k: Tensor | None = None
    ) -> Tensor:
        """Logits (B, H, T, L) from the latent vectors."""
        q = (q_nope * self.scale) @ (self._up(latent)[0] if up_k is None else up_k)  # (B, H, T, rank)
        latent, k_rope = latent[:, 0], k_rope[:, 0]
        # one matrix for all heads, which share the latent vectors
        scores = q.flatten(1, 2) @ latent.mT + (q_rope * self.scale).flatten(1, 2) @ k_rope.mT
        return scores.unflatten(1, (self.num_heads, q.shape[2])).to(compute_dtype(scores))

    def _absorbs(self, length: int, total: int) -> bool:
        """Whether ``length`` queries cost less in the latent space: multiplications of a past token and head.

        To read the matrix of a ``kv_b_proj`` that was replaced costs what expanding kv_lora_rank tokens does; hooks
        are to see tokens.
        """
        if is_watched(self.kv_b_proj) or (not is_plain(self.kv_b_proj) and total <= self.kv_lora_rank):
            return False
        expand = self.kv_lora_rank * (self.qk_nope_head_dim + self.v_head_dim)
        return length * 2 * self.kv_lora_rank <= expand + length * (self.qk_nope_head_dim + self.v_head_dim)
