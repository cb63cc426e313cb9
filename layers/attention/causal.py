"""Causal multi-head attention with grouped queries and rotary positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.kernels.dispatch import compute_dtype
from zoo.layers.attention.keys import Keys, Place, attended, grouped, is_causal, masked
from zoo.layers.attention.rotary import Rotary
from zoo.layers.attention.sinks import sink_attention
from zoo.layers.attention.state import KeyValueState
from zoo.layers.mixer import Mixer
from zoo.layers.options import require_above, require_at_least
from zoo.layers.state import State, is_sized

LOGITS = 2**24  # that exist at once, where a kernel does not do without them


class CausalAttention(Mixer):
    r"""Attention over the present and the past, H query heads sharing num_kv_heads keys and values.

    .. math:: y_t = W_o \sum_{s \leq t} p_{ts} v_s, \quad p_t = \mathrm{softmax}_{s \leq t}(q_t \cdot k_s / \sqrt{d})

    in every head, its queries and keys turned by their positions.

    Args:
        dim: model width.
        num_heads: query heads.
        num_kv_heads: key and value heads, num_heads when None.
        rope_base: wavelength base of the rotary embedding, None for no position information.
        head_dim: d, dim / num_heads when None.
        scale: factor of the logits, d^-0.5 when None.
        rotary: how queries and keys are turned, in place of all their channels by ``rope_base``.
        bias: queries, keys and values have biases.
        out_bias: the output has one.
        q_norm, k_norm: of queries and keys (..., H, d) before they are turned; none when None.
        softcap: bound c of the logits, c tanh(logits / c); none when None.
        sinks: a learned logit a head, 0 at first, is in the softmax and stands for no token.

    Raises:
        ValueError: when num_heads does not divide dim into heads of even width, num_kv_heads does not divide num_heads,
            or a head has fewer channels than are to turn; for a softcap of 0 or less.

    Papers: Vaswani et al., arXiv 1706.03762; Ainslie et al., "GQA", arXiv 2305.13245; Su et al., arXiv 2104.09864;
    softcap: Gemma Team, "Gemma 2", arXiv 2408.00118, section 2; sinks: OpenAI, "gpt-oss Model Card", arXiv 2508.10925.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        rope_base: float | None = 10000.0,
        head_dim: int | None = None,
        scale: float | None = None,
        *,
        rotary: Rotary | None = None,
        bias: bool = False,
        out_bias: bool = False,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        softcap: float | None = None,
        sinks: bool = False,
    ):
        super().__init__()
        require_at_least(1, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
        num_kv_heads = num_kv_heads or num_heads
        width = head_dim or dim // num_heads
        if (head_dim is None and dim % num_heads) or num_heads % num_kv_heads or (rotary is None and width % 2):
            raise ValueError(
                "num_heads must divide dim into even heads and num_kv_heads must divide num_heads: "
                f"got dim {dim}, num_heads {num_heads}, num_kv_heads {num_kv_heads}, head_dim {head_dim}"
            )
        if rotary is None and rope_base is not None:
            rotary = Rotary(width, rope_base)
        if rotary is not None and rotary.dim > width:
            raise ValueError(f"rotary must turn at most the {width} channels of a head, got one for {rotary.dim}")
        if softcap is not None:
            require_above(0, softcap=softcap)
        self.dim, self.num_heads, self.num_kv_heads, self.head_dim = dim, num_heads, num_kv_heads, width
        self.scale, self.softcap = scale, softcap
        self.sinks = nn.Parameter(torch.zeros(num_heads)) if sinks else None
        self.build_projections(dim, bias)
        self.q_norm, self.k_norm, self.rotary = q_norm or nn.Identity(), k_norm or nn.Identity(), rotary
        self.out_proj = nn.Linear(num_heads * width, dim, bias=out_bias)

    def build_projections(self, dim: int, bias: bool) -> None:
        """Of the input to queries, keys and values."""
        self.q_proj = nn.Linear(dim, self.num_heads * self.head_dim, bias)
        self.k_proj = nn.Linear(dim, self.num_kv_heads * self.head_dim, bias)
        self.v_proj = nn.Linear(dim, self.num_kv_heads * self.head_dim, bias)

    def forward(self, x: Tensor, state: KeyValueState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        return self.at(x, self.place(x, state, seq_idx), state)

    def at(self, x: Tensor, place: Place, state: KeyValueState | None = None) -> Tensor:
        """Tokens x (B, T, dim) that stand at ``place`` -> (B, T, dim)."""
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self.rotated(place.position, self.q_norm(q), self.k_norm(k))  # (B, T, H, d)
        y = self.mix(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), place, state)
        return self.output(y.transpose(1, 2).flatten(2), x)

    def remember(self, x: Tensor, state: State, *, seq_idx: Tensor | None = None) -> None:
        """Keys and values alone, unless a cache policy wants the queries too, or a subclass computes otherwise."""
        if not isinstance(state, KeyValueState) or type(self).forward is not CausalAttention.forward:
            return super().remember(x, state, seq_idx=seq_idx)
        place = self.place(x, state, seq_idx)
        k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.k_proj, self.v_proj))
        (k,) = self.rotated(place.position, self.k_norm(k))
        state.remember(Keys(k.transpose(1, 2), v.transpose(1, 2), place.position, place.ids), place)

    def place(self, x: Tensor, state: KeyValueState | None, seq_idx: Tensor | None) -> Place:
        """Where the tokens x (B, T, dim) stand."""
        return Place.of(x, state, seq_idx)

    def output(self, y: Tensor, x: Tensor) -> Tensor:
        """The heads' outputs y (B, T, H d) for the input x (B, T, dim) -> (B, T, dim)."""
        return self.out_proj(y)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, place: Place, state: KeyValueState | None) -> Tensor:
        """Queries, keys and values (B, H, T, d) of the tokens at ``place`` to their outputs (B, H, T, d)."""
        if state is not None:
            return state.attend(q, k, v, place, self)
        return self.attend(q, *attended(k, v, place))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, heads: Tensor | None = None) -> Tensor:
        """q (B, H, T, d) over k and v (B, num_kv_heads, S, d) with a mask as in ``Attended`` -> (B, H, T, d).

        Args:
            heads: the numbers of the key and value heads, where these are some of them.
        """
        if self.softcap is not None or (self.sinks is not None and q.shape[2] == 1):
            return self.attend_by_logits(q, k, v, mask, heads)
        if self.sinks is not None:
            scale = self.head_dim**-0.5 if self.scale is None else self.scale
            return sink_attention(q, k, v, mask, scale, self.some_sinks(heads).flatten())
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=is_causal(q, k, mask), scale=self.scale,
            enable_gqa=self.num_heads != self.num_kv_heads,
        )  # fmt: skip

    def attend_by_logits(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, heads: Tensor | None) -> Tensor:
        """The same with logits that are written out, ``LOGITS`` at once; for gradients they are computed anew."""

        def attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            return self.mixed(self.weights(masked(self.logits(q, k, v), mask), heads), v)

        length, causal = q.shape[2], is_causal(q, k, mask)
        if not is_sized(q) or length * (each := q.shape[:2].numel() * k.shape[2]) <= LOGITS:
            return attended(q, k, v, mask)
        outputs, rows = [], max(1, LOGITS // each)
        for start in range(0, length, rows):
            stop = min(length, start + rows)
            if causal:
                keys, seen = stop, torch.ones(stop - start, stop, dtype=torch.bool, device=q.device).tril(start)
            else:
                keys, seen = k.shape[2], None if mask is None else mask[..., start:stop, :]
            part = q[:, :, start:stop], k[:, :, :keys], v[:, :, :keys], seen
            saving = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
            outputs.append(checkpoint(attended, *part, use_reentrant=False) if saving else attended(*part))
        return torch.cat(outputs, 2)

    def logits(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Of q (B, H, T, d) with k (B, G, S, d) -> (B, G, H / G, T, S), float32 or wider; v is not read."""
        dots = grouped(q, k.shape[1]) @ k.mT
        return self.bounded(dots.unflatten(2, (q.shape[1] // k.shape[1], q.shape[2])))

    def bounded(self, dots: Tensor) -> Tensor:
        """Products of queries and keys as logits."""
        logits = dots.to(compute_dtype(dots)) * (self.head_dim**-0.5 if self.scale is None else self.scale)
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()

    def weights(self, logits: Tensor, heads: Tensor | None = None) -> Tensor:
        """Of logits (B, G, H / G, T, S), of the ``heads`` if not of all; with sinks their sum is less than 1."""
        if self.sinks is None:
            return logits.softmax(-1)
        rest = self.some_sinks(heads).to(logits.dtype)[..., None, None].expand(*logits.shape[:-1], 1)
        return torch.cat([logits, rest], -1).softmax(-1)[..., :-1]

    def some_sinks(self, heads: Tensor | None) -> Tensor:
        """The sinks (G, H / G) of the key and value heads with these numbers, of all for None."""
        sinks = self.sinks.unflatten(0, (self.num_kv_heads, -1))  # pyright: ignore[reportOptionalMemberAccess]
        return sinks if heads is None else sinks[heads]

    def mixed(self, weights: Tensor, v: Tensor) -> Tensor:
        """v (B, G, S, d) by weights (B, G, H / G, T, S) -> (B, H, T, d)."""
        y = weights.to(v.dtype).flatten(2, 3) @ v
        return y.unflatten(2, weights.shape[2:4]).flatten(1, 2)

    def turned(self, heads: Tensor, by: Tensor) -> Tensor:
        """Queries or keys (B, H, T, d) as if they stood ``by`` (B, 1 or H, T) positions later."""
        return heads if self.rotary is None else self.rotary.shifted(heads, by)

    def rotated(self, positions: Tensor, *heads: Tensor) -> tuple[Tensor, ...]:
        """Queries or keys (B, T, H, d) turned by their positions (T,) or (B, T), if positions count here."""
        return heads if self.rotary is None else self.rotary(positions, *heads)

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> KeyValueState:
        """An empty cache of capacity ``max_length``, or one that grows."""
        key, value = self.empty(batch_size, max_length or 16, device, dtype)
        return KeyValueState(key, value, max_length=max_length)

    def empty(self, batch_size: int, capacity: int, device=None, dtype=None) -> tuple[Tensor, Tensor]:
        """Zeros for keys and for values, (B, num_kv_heads, capacity, d)."""
        device, dtype = self.placement(device, dtype)
        key, value = (
            torch.zeros(batch_size, self.num_kv_heads, capacity, self.head_dim, device=device, dtype=dtype)
            for _ in range(2)
        )
        return key, value

    def state_size(self, length: int) -> int:
        """Grows with ``length``: one key and one value a step and key-value head."""
        return 2 * self.num_kv_heads * self.head_dim * length
