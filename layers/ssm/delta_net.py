"""The mixers of the delta rule: DeltaNet, and Gated DeltaNet, whose state also decays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels import delta_rule
from zoo.layers.conv import CausalConv1d
from zoo.layers.mixer import Mixer, skips_padding
from zoo.layers.norm import RMSNorm, gated
from zoo.layers.options import require_at_least
from zoo.layers.ssm.init import dt_bias_init
from zoo.layers.ssm.state_space import wide
from zoo.layers.state import State, keep_rows


@dataclass
class DeltaNetState(State):
    """q, k, v (B, d_conv - 1, channels): newest inputs of the convolutions; memory (B, H, K, V), float32."""

    wide: ClassVar[tuple[str, ...]] = ("memory",)

    q: Tensor
    k: Tensor
    v: Tensor
    memory: Tensor


class Projected(NamedTuple):
    """What a layer makes of its input (B, T, dim): queries, keys and values (B, T, channels) before their convolutions,
    the logits of beta (B, T, H), and in Gated DeltaNet the steps (B, T, H) and the output's gate (B, T, H V)."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    steps: Tensor | None = None
    gate: Tensor | None = None


class DeltaNet(Mixer):
    r"""Linear attention that corrects what its memory returns for a key, behind short convolutions.

    .. math::
        q, k, v = \mathrm{silu}(\mathrm{conv}(W_{q, k, v} x)), \; \beta = b \, \sigma(W_\beta x), \quad
        y = W_o \, \mathrm{RMSNorm}(\mathrm{delta\_rule}(q / |q|, k / |k|, v, \beta))

    with the norms over each head, and b = 2 where ``negative_eigenvalues`` are allowed, else 1.

    Args:
        dim: model width.
        num_heads: heads H.
        head_dim: K, channels of a query and key; dim / num_heads when None.
        expand_v: V / K.
        d_conv: taps of the convolutions.
        negative_eigenvalues: beta in (0, 2): a step may turn what it finds around.
        chunk_size: steps a chunk of the parallel form; it changes the speed, not the result.
        norm_eps: of the norm over the outputs.
        num_key_heads: heads of the queries and keys, each of them for num_heads / num_key_heads neighbouring heads of
            the values; num_heads when None.

    Raises:
        ValueError: where num_heads does not divide dim and there is no head_dim, num_key_heads does not divide
            num_heads, or expand_v head_dim is no integer.

    Paper: Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", arXiv 2406.06484;
    as in flash-linear-attention's DeltaNet. Negative eigenvalues: Grazzi et al., arXiv 2411.12537.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int | None = None,
        expand_v: float = 1.0,
        d_conv: int = 4,
        negative_eigenvalues: bool = False,
        chunk_size: int = 64,
        norm_eps: float = 1e-5,
        num_key_heads: int | None = None,
    ):
        super().__init__()
        require_at_least(1, dim=dim, num_heads=num_heads, chunk_size=chunk_size, head_dim=head_dim)
        require_at_least(1, num_key_heads=num_key_heads)
        if head_dim is None and dim % num_heads:
            raise ValueError(f"num_heads must divide dim where head_dim is None, got dim {dim}, num_heads {num_heads}")
        head_dim = head_dim or dim // num_heads
        self.num_key_heads = num_key_heads or num_heads
        if num_heads % self.num_key_heads:
            raise ValueError(f"num_key_heads must divide num_heads, got {num_key_heads} and {num_heads}")
        if (value_dim := expand_v * head_dim) != int(value_dim) or value_dim < 1:
            raise ValueError(f"expand_v * head_dim must be an integer from 1 on, got {expand_v} * {head_dim}")
        self.num_heads, self.head_dim, self.value_dim, self.d_conv = num_heads, head_dim, int(value_dim), d_conv
        self.negative_eigenvalues, self.chunk_size = negative_eigenvalues, chunk_size
        keys, values = self.num_key_heads * head_dim, num_heads * self.value_dim
        self.build_projections(dim, keys, values)
        self.q_conv1d, self.k_conv1d, self.v_conv1d = (
            CausalConv1d(channels, d_conv, bias=False, activation="silu") for channels in (keys, keys, values)
        )
        self.o_norm = RMSNorm(self.value_dim, norm_eps)
        self.out_proj = nn.Linear(values, dim, bias=False)

    def build_projections(self, dim: int, keys: int, values: int) -> None:
        """Of the input to queries, keys, values and beta."""
        self.q_proj, self.k_proj = nn.Linear(dim, keys, bias=False), nn.Linear(dim, keys, bias=False)
        self.v_proj, self.b_proj = nn.Linear(dim, values, bias=False), nn.Linear(dim, self.num_heads, bias=False)

    @skips_padding
    def forward(self, x: Tensor, state: DeltaNetState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        rows = None if state is None else state.advance_sequence(seq_idx)
        q = k = v = memory = None
        if state is not None:
            q, k, v, memory = (keep_rows(t, rows) for t in (state.q, state.k, state.v, state.memory))
        made = self.project(x)
        q, q_inputs = self.q_conv1d(made.q, q, seq_idx)
        k, k_inputs = self.k_conv1d(made.k, k, seq_idx)
        v, v_inputs = self.v_conv1d(made.v, v, seq_idx)
        q, k = (self.spread(unit(t.unflatten(-1, (-1, self.head_dim)))) for t in (q, k))  # (B, T, H, K)
        beta = wide(made.beta).sigmoid()
        o, memory = delta_rule(
            q, k, v.unflatten(-1, (self.num_heads, -1)), 2 * beta if self.negative_eigenvalues else beta,
            log_decay=self.log_decay(made.steps), initial_state=memory, seq_idx=seq_idx, chunk_size=self.chunk_size,
        )  # fmt: skip
        if state is not None:
            state.q, state.k, state.v, state.memory = q_inputs, k_inputs, v_inputs, memory
        return self.out_proj(self.normalised(o, made.gate).flatten(-2))

    def project(self, x: Tensor) -> Projected:
        """All projections of x (B, T, dim)."""
        return Projected(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.b_proj(x))

    def spread(self, heads: Tensor) -> Tensor:
        """Queries or keys (B, T, num_key_heads, K), each for the heads that share it: (B, T, H, K)."""
        shared = self.num_heads // self.num_key_heads
        return heads if shared == 1 else heads.repeat_interleave(shared, dim=2)

    def log_decay(self, steps: Tensor | None) -> Tensor | None:
        """Of the memory at each step and head (B, T, H); None for none."""
        return None

    def normalised(self, o: Tensor, gate: Tensor | None) -> Tensor:
        """The outputs (B, T, H, V) as out_proj reads them."""
        return self.o_norm(o)

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> DeltaNetState:
        """Zeros; the size does not depend on ``max_length``."""
        device, dtype = self.placement(device, dtype)
        keys, values = self.num_key_heads * self.head_dim, self.num_heads * self.value_dim
        q, k, v = (
            torch.zeros(batch_size, self.d_conv - 1, size, device=device, dtype=dtype) for size in (keys, keys, values)
        )
        shape = batch_size, self.num_heads, self.head_dim, self.value_dim
        memory = torch.zeros(shape, device=device, dtype=torch.promote_types(dtype, torch.float32))
        return DeltaNetState(q, k, v, memory)

    def state_size(self, length: int) -> int:
        """Constant in ``length``."""
        inputs = 2 * self.num_key_heads * self.head_dim + self.num_heads * self.value_dim
        return (self.d_conv - 1) * inputs + self.num_heads * self.head_dim * self.value_dim


class GatedDeltaNet(DeltaNet):
    r"""DeltaNet whose memory decays, as that of Mamba-2, and whose output is gated.

    .. math::
        g = -e^{A} \, \mathrm{softplus}(W_a x + b), \quad
        y = W_o \big( \mathrm{RMSNorm}(\mathrm{delta\_rule}(q / |q|, k / |k|, v, \beta, g)) \odot \mathrm{silu}(W_g x)
        \big)

    Args and errors: those of ``DeltaNet``; head_dim num_heads is 3/4 dim and expand_v 2 in the paper.

    Paper: Yang, Kautz and Hatamizadeh, "Gated Delta Networks", arXiv 2412.06464; as in flash-linear-attention's
    GatedDeltaNet, and its initial values: e^A uniform in (0, 16), steps log-uniform in [0.001, 0.1].
    """

    float32_parameters = ("A_log", "dt_bias")

    def __init__(self, dim: int, num_heads: int, head_dim: int | None = None, expand_v: float = 2.0, **options):
        super().__init__(dim, num_heads, head_dim, expand_v, **options)
        self.build_gates(dim)
        self.A_log = nn.Parameter(torch.empty(num_heads).uniform_(1e-4, 16).log())
        self.dt_bias = nn.Parameter(dt_bias_init(num_heads))

    def build_gates(self, dim: int) -> None:
        """Projections of the input to steps and gate."""
        self.a_proj = nn.Linear(dim, self.num_heads, bias=False)
        self.g_proj = nn.Linear(dim, self.num_heads * self.value_dim, bias=False)

    def project(self, x: Tensor) -> Projected:
        """All projections of x (B, T, dim)."""
        return super().project(x)._replace(steps=self.a_proj(x), gate=self.g_proj(x))

    def log_decay(self, steps: Tensor) -> Tensor:  # type: ignore[override]
        """g (B, T, H)."""
        return -wide(self.A_log).exp() * F.softplus(wide(steps) + self.dt_bias)

    def normalised(self, o: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        """The outputs (B, T, H, V) as out_proj reads them."""
        return gated(self.o_norm, o, gate.unflatten(-1, (self.num_heads, -1)))


class FusedGatedDeltaNet(GatedDeltaNet):
    """Gated DeltaNet with two projections for all six, whose outputs stand together by heads of the keys.

    A head of the keys has, one after another, its queries, its keys, and the values and gates of the heads that it
    serves; of the other projection the betas and the steps of these.

    Args and errors: those of ``DeltaNet``. The layout is that of Qwen3-Next's published checkpoints.
    """

    def build_projections(self, dim: int, keys: int, values: int) -> None:
        """Of the input to everything."""
        self.in_proj_qkvz = nn.Linear(dim, 2 * keys + 2 * values, bias=False)
        self.in_proj_ba = nn.Linear(dim, 2 * self.num_heads, bias=False)

    def build_gates(self, dim: int) -> None:
        """They are among the projections."""

    def project(self, x: Tensor) -> Projected:
        """All projections of x (B, T, dim)."""
        served = self.num_heads // self.num_key_heads
        qkvz, ba = (proj(x).unflatten(-1, (self.num_key_heads, -1)) for proj in (self.in_proj_qkvz, self.in_proj_ba))
        widths = [self.head_dim, self.head_dim, served * self.value_dim, served * self.value_dim]
        q, k, v, gate = (part.flatten(-2) for part in qkvz.split(widths, dim=-1))
        beta, steps = (part.flatten(-2) for part in ba.chunk(2, dim=-1))
        return Projected(q, k, v, beta, steps, gate)


def unit(x: Tensor) -> Tensor:
    """x / |x| over the last axis, with 1e-6 added to the sum of squares."""
    return (wide(x) * (wide(x).square().sum(-1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype)
