"""Sparse modular activation: a linear system reads every token, gated attention those that a router activates."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.depth.active import ActiveTokens
from zoo.layers.depth.active_windows import ActiveWindowState, CausalWindow, TwoSidedWindow
from zoo.layers.drop import DropPath
from zoo.layers.mixer import Mixer
from zoo.layers.options import require_above, require_at_least
from zoo.layers.precision import KeepsFloat32
from zoo.layers.report import Reports
from zoo.layers.sequence_block import normalised
from zoo.layers.ssm.ema import MultiHeadEMA, truncated_normal
from zoo.layers.state import State
from zoo.layers.states import JointState


class LatentRouter(KeepsFloat32):
    r"""Which tokens are active: those whose second logit is larger, with its share of a softmax as their weight.

    .. math:: p = \mathrm{softmax}(u / e^\theta), \quad \text{active} \iff p_1 > p_0, \quad w = p_1

    The weight alone carries a gradient to the logits. There is one temperature, learnt.

    Args:
        dim: model width.
        temperature: over the square root of dim, at the start.
    """

    float32_parameters = ("temperature",)

    def __init__(self, dim: int, temperature: float):
        super().__init__()
        require_above(0, temperature=temperature)
        self.temperature = nn.Parameter(torch.tensor([math.log(temperature * dim**0.5)]))

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """u (B, T, 2) -> weights and mask of the active tokens, (B, T)."""
        weight = (u.to(self.temperature.dtype) / self.temperature.exp()).softmax(-1)[..., 1].to(u.dtype)
        return weight, u[..., 1] > u[..., 0]


class SparseActivation(Mixer, Reports):
    r"""SeqBoat's layer: averages of all tokens, and gated attention among those that a router activates.

    .. math::
        m = \mathrm{silu}(\mathrm{EMA}(x)), \quad [u, h'] = W_x m, \quad
        [z, r, v] = \mathrm{silu}(W_m m_{active}), \quad q, k = \gamma \odot z + \beta \\
        y = h' + w(u) \, W_h \big(\mathrm{attention}(q, k, v) \odot r\big) \text{ at active tokens, and } h'
        \text{ at others}

    The active tokens are gathered, so that what they cost falls with their share, and a window counts them alone,
    whatever the other rows of a batch have (the authors' code compresses only where a batch is sparse enough).
    ``activity`` has the ``density``: the share of tokens that were active.

    Args:
        dim: model width.
        attention: of queries and keys (B, N, qk_dim), values (B, N, hidden_dim) and ``ActiveTokens``: ``CausalWindow``
            or ``TwoSidedWindow``.
        hidden_dim: channels of values and their gate.
        qk_dim: channels of queries and keys.
        d_state: averages of a channel.
        temperature: of the router at the start, over the square root of dim.
        drop_rate: dropout of the averages and, to both sides, of what attention adds.

    Paper: Ren et al., "Sparse Modular Activation for Efficient Sequence Modeling", arXiv 2306.11197.
    """

    def __init__(
        self,
        dim: int,
        attention: CausalWindow | TwoSidedWindow,
        hidden_dim: int,
        qk_dim: int,
        d_state: int = 16,
        temperature: float = 1.0,
        drop_rate: float = 0.0,
    ):
        super().__init__()
        require_at_least(1, dim=dim, hidden_dim=hidden_dim, qk_dim=qk_dim)
        self.dim, self.hidden_dim, self.qk_dim = dim, hidden_dim, qk_dim
        two_sided = isinstance(attention, TwoSidedWindow)
        self.move = MultiHeadEMA(dim, d_state, two_sided)
        self.drop, self.drop_gated = nn.Dropout(drop_rate), nn.Dropout(drop_rate if two_sided else 0.0)
        self.hx_proj = nn.Linear(dim, 2 + dim)
        self.router = LatentRouter(dim, temperature)
        self.mx_proj = nn.Linear(dim, qk_dim + 2 * hidden_dim)
        self.gamma, self.beta = nn.Parameter(torch.empty(2, qk_dim)), nn.Parameter(torch.zeros(2, qk_dim))
        self.attention, self.window_size = attention, attention.size
        self.h_proj = nn.Linear(hidden_dim, dim)
        truncated_normal(self.gamma.data)
        for linear in (self.hx_proj, self.mx_proj, self.h_proj):
            truncated_normal(linear.weight.data)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, state: JointState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim); padding, of negative ids, is never active."""
        averages, window = (None, None) if state is None else state.parts
        averaged = self.move(x, averages, seq_idx=seq_idx)
        return self.activated(averaged, ActiveTokens.of(x, [window], seq_idx), window)  # type: ignore[list-item]

    def masked(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, T, dim), and mask (B, T), False where there is padding, in one graph -> (B, T, dim)."""
        if mask is None:
            return self(x)
        tokens = ActiveTokens.of(x, (), mask.to(torch.int64) - 1)
        return self.activated(self.move(x.masked_fill(~mask[..., None], 0)), tokens)

    def activated(self, averaged: Tensor, every: ActiveTokens, state: State | None = None) -> Tensor:
        """What the layer makes of the averages (B, T, dim) of all tokens."""
        m = self.drop(F.silu(averaged))
        u, y = self.hx_proj(m).split([2, self.dim], -1)
        weight, active = self.router(u)
        tokens, kept = every.keep(active, m, weight)
        if not kept[0].shape[1]:  # one that counts for nothing, so that every parameter has a gradient
            tokens, kept = every.keep(active, m, weight, width=min(1, m.shape[1]))
        self.report({}, {"density": (active & every.valid).to(m.dtype).mean().detach()})
        m, weight = kept
        return tokens.add(y, weight[..., None] * self.gated(m, tokens, state))

    def gated(self, m: Tensor, tokens: ActiveTokens, state: State | None) -> Tensor:
        """The active tokens m (B, N, dim) through gated attention -> (B, N, dim)."""
        sizes = [self.qk_dim, self.hidden_dim, self.hidden_dim]
        z, r, v = F.silu(self.mx_proj(m)).split(sizes, -1)
        q, k = (z[..., None, :] * self.gamma + self.beta).unbind(-2)
        return self.drop_gated(self.h_proj(self.attention(q, k, v, tokens, state) * r))

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> JointState:
        """Averages, and a window of keys and values; the size does not depend on ``max_length``.

        Raises:
            ValueError: for attention to both sides.
        """
        averages = self.move.init_state(batch_size, max_length, device, dtype)
        device, dtype = self.placement(device, dtype)
        size = self.window_size
        key, value = (
            torch.zeros(batch_size, 1, size, width, device=device, dtype=dtype)
            for width in (self.qk_dim, self.hidden_dim)
        )
        return JointState((averages, ActiveWindowState(key, value).with_positions()))

    def state_size(self, length: int) -> int:
        """Constant in ``length``."""
        return self.move.state_size(length) + self.window_size * (self.qk_dim + self.hidden_dim + 1)


class SparseActivationBlock(nn.Module):
    """silu(x + mixer(norm(x))), or norm(silu(x + mixer(x))), of whole sequences: no gate stands round the mixer.

    Args:
        dim: model width.
        mixer: with attention to both sides.
        norm: dim -> the norm.
        prenorm: norm before the mixer, or (False) after the activation.
        drop_path: rate of leaving the mixer out.
    """

    def __init__(
        self,
        dim: int,
        mixer: SparseActivation,
        norm: Callable[[int], nn.Module],
        prenorm: bool = True,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.drop_path = DropPath(drop_path)
        self.before, self.after = (norm(dim), nn.Identity()) if prenorm else (nn.Identity(), norm(dim))
        self.mixer = mixer

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, T, dim), and mask (B, T), False where there is padding, which changes nothing elsewhere -> as x."""
        y = self.mixer.masked(normalised(self.before, x, mask), mask)
        return normalised(self.after, F.silu(x + self.drop_path(y)), mask)
