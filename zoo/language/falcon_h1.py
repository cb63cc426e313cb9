"""Falcon-H1: attention and Mamba-2 heads in parallel in every block, with constant multipliers everywhere.

Paper: Zuo et al., arXiv 2507.22448. Sizes of the published checkpoints. Their multipliers are part of each checkpoint's
config.json and come with it (``local-dir:FOLDER``); of the registered names falcon_h1_0_5b and falcon_h1_tiny_90m have
the published values and the others have 1.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from zoo.config import require_positive
from zoo.language.base import LanguageModel
from zoo.language.block import Block, LanguageConfig
from zoo.layers import CausalAttention, Mamba2, ParallelMixers, SwiGLU
from zoo.layers.options import require_limits
from zoo.layers.step import Value, Writer, describes, swiglu_step
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class FalconH1Config(LanguageConfig):
    """Options of Falcon-H1, whose blocks run attention and Mamba-2 side by side."""

    num_heads: int
    """Query heads of the attention."""
    num_kv_heads: int
    """Key and value heads of the attention."""
    head_dim: int
    """Width of an attention head."""
    rope_base: float = 1e11
    """Wavelength base of the attention's rotary positions."""
    ssm_dim: int
    """Inner width of the Mamba-2 part."""
    ssm_head_dim: int
    """Width of a Mamba-2 head."""
    d_state: int
    """State size of a Mamba-2 head."""
    d_conv: int = 4
    """Taps of the Mamba-2 part's convolution."""
    num_groups: int = 1
    """Groups of Mamba-2 heads that share B and C."""
    chunk_size: int = 64
    """Steps a chunk of the Mamba-2 part; it changes the speed, not the result."""
    dt_limit: tuple[float, float] = (0.0, float("inf"))
    """Smallest and largest step size."""
    conv_bias: bool = True
    """The convolution has a bias."""
    ssm_norm: bool = False
    """A gated norm in place of the plain gate."""
    mlp_dim: int
    """Hidden width of the SwiGLU."""
    tie_embeddings: bool = False
    residual_in_fp32: bool = False
    embedding_multiplier: float = 1.0
    """Factor of the embedding."""
    head_multiplier: float = 1.0
    """Factor of the logits."""
    attention_in_multiplier: float = 1.0
    """Factor of the attention's input."""
    attention_out_multiplier: float = 1.0
    """Factor of the attention's output."""
    key_multiplier: float = 1.0
    """Factor of the keys."""
    ssm_in_multiplier: float = 1.0
    """Factor of the Mamba-2 part's input."""
    ssm_out_multiplier: float = 1.0
    """Factor of the Mamba-2 part's output."""
    ssm_multipliers: tuple[float, float, float, float, float] = (1.0, 1.0, 1.0, 1.0, 1.0)
    """Factors of z, x, B, C and dt."""
    mlp_multipliers: tuple[float, float] = (1.0, 1.0)
    """Factors of the MLP's gate and output."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "num_heads", "num_kv_heads", "head_dim", "ssm_dim", "ssm_head_dim", "mlp_dim")
        require_positive(self, "d_state", "d_conv", "num_groups", "chunk_size")
        require_limits("dt_limit", self.dt_limit)
        for name, count in (("ssm_multipliers", 5), ("mlp_multipliers", 2)):
            if len(getattr(self, name)) != count:
                raise ValueError(f"{name} must be {count} numbers, got {getattr(self, name)}")


class ScaledSwiGLU(SwiGLU):
    """y = output W2 (silu(gate W1 x) * W3 x) with constants gate and output."""

    def __init__(self, dim: int, hidden_dim: int, gate: float, output: float):
        super().__init__(dim, hidden_dim)
        self.gate, self.output = gate, output

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        return self.w2(F.silu(self.w1(x) * self.gate) * self.w3(x)) * self.output


@describes(ScaledSwiGLU)
def _scaled_swiglu(program: Writer, module: ScaledSwiGLU, x: Value) -> Value:
    y = swiglu_step(program, module, x, module.gate)
    return y._replace(factor=module.output)


class FalconH1LanguageModel(LanguageModel):
    """A stack of blocks with parallel mixers and SwiGLU."""

    config: FalconH1Config

    def build_block(self, index: int) -> Block:
        """Norm and parallel mixers, norm and SwiGLU."""
        c = self.config
        ssm = Mamba2(
            c.dim, c.d_state, c.d_conv, head_dim=c.ssm_head_dim, num_groups=c.num_groups, chunk_size=c.chunk_size,
            dt_limit=c.dt_limit, norm_eps=c.norm_eps, conv_bias=c.conv_bias, d_inner=c.ssm_dim, gated_norm=c.ssm_norm,
            multipliers=c.ssm_multipliers,
        )  # fmt: skip
        attention = CausalAttention(
            c.dim, c.num_heads, c.num_kv_heads, c.rope_base, c.head_dim, scale=c.key_multiplier * c.head_dim**-0.5
        )
        mixer = ParallelMixers(
            {"ssm": ssm, "attention": attention},
            (c.ssm_in_multiplier, c.attention_in_multiplier),
            (c.ssm_out_multiplier, c.attention_out_multiplier),
        )
        return Block(c, mixer, ScaledSwiGLU(c.dim, c.mlp_dim, *c.mlp_multipliers))

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings times their multiplier."""
        return self.embedding(tokens) * self.config.embedding_multiplier

    @property
    def norm_factor(self) -> float:
        """The multiplier of the head."""
        return self.config.head_multiplier


_register = partial(
    register_model,
    FalconH1LanguageModel,
    task="language",
    family="falcon_h1",
    paper=Paper("Falcon-H1: A Family of Hybrid-Head Language Models", "2507.22448", 2025),
)


@_register()
def falcon_h1_nano():
    return FalconH1Config(
        vocab_size=256, dim=128, depth=3, num_heads=4, num_kv_heads=2, head_dim=32, ssm_dim=128, ssm_head_dim=32,
        d_state=32, mlp_dim=256, rope_base=10000.0, tie_embeddings=True,
    )  # fmt: skip


@_register()
def falcon_h1_tiny_90m():
    return FalconH1Config(
        vocab_size=32768, dim=512, depth=24, num_heads=8, num_kv_heads=2, head_dim=64, ssm_dim=768, ssm_head_dim=32,
        d_state=64, mlp_dim=768, tie_embeddings=True, embedding_multiplier=0.034423828125, head_multiplier=0.078125,
    )  # fmt: skip


@_register()
def falcon_h1_0_5b():
    return FalconH1Config(
        vocab_size=32784, dim=1024, depth=36, num_heads=8, num_kv_heads=2, head_dim=64, ssm_dim=1536, ssm_head_dim=64,
        d_state=128, mlp_dim=2048, embedding_multiplier=5.656854249492381, head_multiplier=0.0390625,
        attention_out_multiplier=0.9375, key_multiplier=0.39062499999999994, ssm_in_multiplier=1.25,
        ssm_out_multiplier=0.23570226039551587,
        ssm_multipliers=(0.3535533905932738, 0.25, 0.3535533905932738, 0.5, 0.3535533905932738),
        mlp_multipliers=(0.8838834764831844, 0.5859375),
    )  # fmt: skip


@_register()
def falcon_h1_1_5b():
    return FalconH1Config(
        vocab_size=65537, dim=2048, depth=24, num_heads=8, num_kv_heads=2, head_dim=128, ssm_dim=3072, ssm_head_dim=64,
        d_state=256, mlp_dim=4608,
    )  # fmt: skip


@_register()
def falcon_h1_1_5b_deep():
    return FalconH1Config(
        vocab_size=65537, dim=1280, depth=66, num_heads=6, num_kv_heads=2, head_dim=128, ssm_dim=1536, ssm_head_dim=64,
        d_state=256, mlp_dim=3072,
    )  # fmt: skip


@_register()
def falcon_h1_3b():
    return FalconH1Config(
        vocab_size=65537, dim=2560, depth=32, num_heads=10, num_kv_heads=2, head_dim=128, ssm_dim=4096,
        ssm_head_dim=128, d_state=256, mlp_dim=6144,
    )  # fmt: skip


@_register()
def falcon_h1_7b():
    return FalconH1Config(
        vocab_size=130049, dim=3072, depth=44, num_heads=12, num_kv_heads=2, head_dim=128, ssm_dim=3072,
        ssm_head_dim=128, d_state=256, mlp_dim=12288,
    )  # fmt: skip


@_register()
def falcon_h1_34b():
    return FalconH1Config(
        vocab_size=261120, dim=5120, depth=72, num_heads=20, num_kv_heads=4, head_dim=128, ssm_dim=4096,
        ssm_head_dim=128, d_state=256, num_groups=2, mlp_dim=21504, ssm_norm=True,
    )  # fmt: skip
