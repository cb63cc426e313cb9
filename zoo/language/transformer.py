"""The transformer: rotary positions, grouped queries and SwiGLU, with the options of the published dense models.

Paper: Touvron et al., "LLaMA", arXiv 2302.13971; grouped queries from arXiv 2305.13245. The sizes here are this
library's own, chosen to match the parameter counts of the other families; the published ones are in ``dense.py``.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import require_positive
from zoo.language.base import LanguageModel
from zoo.language.block import Block, LanguageConfig
from zoo.layers import (
    CausalAttention,
    JointRMSNorm,
    Mixer,
    OffsetRMSNorm,
    RMSNorm,
    SlidingWindowAttention,
    State,
    SwiGLU,
)
from zoo.layers.attention import Rotary, RotaryScaling
from zoo.layers.options import require_above
from zoo.layers.step import Value, Writer, describes
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(LanguageConfig):
    """Options of the plain transformer, from which other families begin."""

    vocab_size: int = 50280
    num_heads: int
    """Query heads."""
    num_kv_heads: int | None = None
    """Key and value heads, num_heads when None."""
    mlp_dim: int
    """Hidden width of the SwiGLU."""
    rope_base: float = 10000.0
    """Wavelength base of the rotary positions."""
    residual_in_fp32: bool = False

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "num_heads", "num_kv_heads", "mlp_dim")


def check_layers(config: Any) -> None:
    """Raise a ValueError unless nope_layers and full_layers are blocks, and there is a window that the latter lack."""
    for name in ("nope_layers", "full_layers"):
        if not all(0 <= index < config.depth for index in getattr(config, name)):
            raise ValueError(f"{name} must be indices of the {config.depth} blocks, got {getattr(config, name)}")
    if config.full_layers and config.window is None:
        raise ValueError(f"full_layers are those without the window, and there is none: got {config.full_layers}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(DecoderConfig):
    """Options of the transformer."""

    head_dim: int | None = None
    """Width of an attention head, dim / num_heads when None."""
    rope_scaling: RotaryScaling | None = None
    """Stretching of the rotary positions to longer contexts: a Linear, Llama3 or Yarn, or its fields as a dict."""
    nope_layers: tuple[int, ...] = ()
    """Blocks whose attention has no positions."""
    window: int | None = None
    """Newest steps that attention sees; None for all."""
    full_layers: tuple[int, ...] = ()
    """Blocks whose attention sees all steps, where there is a window."""
    qkv_bias: bool = False
    """Queries, keys and values have biases."""
    out_bias: bool = False
    """The attention's output has a bias."""
    qk_norm: str | None = None
    """Norms of queries and keys: of each "head", or "joint" over all of them."""
    norm_order: str = "before"
    """The norms stand "before" attention and feed-forward layer, "after" them, before the sum, or "both"."""
    norm_offset: bool = False
    """The norms multiply by 1 + weight."""
    activation: str = "silu"
    """Of the feed-forward layer's gate: "silu" or "gelu", which is the approximation by tanh."""
    local_rope_base: float | None = None
    """Wavelength base of the blocks with a window, whose positions are then unscaled; None for that of all."""
    attention_scale: float | None = None
    """Factor of the attention's logits, head_dim^-0.5 when None."""
    attention_softcap: float | None = None
    """Bound of the attention's logits, by a tanh."""
    attention_sinks: bool = False
    """A learned logit a head takes part in the attention's softmax and stands for no token."""
    logit_softcap: float | None = None
    """Bound of the model's logits, by a tanh."""
    embedding_scale: float = 1.0
    """Factor of the embedding, rounded to the precision it has."""
    context_length: int | None = None
    """Steps of the sequences trained on, for the record: nothing here depends on it."""

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.rope_scaling, dict):
            object.__setattr__(self, "rope_scaling", RotaryScaling.of(self.rope_scaling))
        require_positive(self, "head_dim", "window", "context_length")
        if self.head_dim is None and self.dim % self.num_heads:
            raise ValueError(f"num_heads must divide dim: got dim {self.dim}, num_heads {self.num_heads}, no head_dim")
        check_layers(self)
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {tuple(known)}, got {getattr(self, name)!r}")
        for name in ("local_rope_base", "attention_softcap", "logit_softcap"):
            if getattr(self, name) is not None:
                require_above(0, **{name: getattr(self, name)})


class PostNormBlock(Block):
    """x + post_norm(mixer(norm(x))), then x + mlp_post_norm(mlp(mlp_norm(x))); the inner norms only where ``before``.

    Papers: OLMo Team, "2 OLMo 2 Furious", arXiv 2501.00656, section 3.2; both: Gemma Team, "Gemma 2", arXiv 2408.00118.
    """

    mlp: nn.Module
    mlp_norm: nn.Module

    def __init__(self, config: LanguageConfig, mixer: Mixer, mlp: nn.Module, norm: type[RMSNorm], before: bool = False):
        super().__init__(config, mixer, mlp, norm if before else nn.Identity)
        self.post_norm = norm(config.dim, config.norm_eps)
        self.mlp_post_norm = norm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, state: State | None = None, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim), in the dtype of the residual stream, -> the same."""
        x = x + self.post_norm(self.mixer(self.norm(x), state, seq_idx=seq_idx))
        return x + self.mlp_post_norm(self.feed_forward(self.mlp_norm(x), seq_idx))


@describes(PostNormBlock)
def _post_norm_block(program: Writer, block: PostNormBlock, x: Value) -> Value:
    y = program.call(block.mixer, program.call(block.norm, x))
    program.accumulate(x, program.call(block.post_norm, y))
    y = program.call(block.mlp, program.call(block.mlp_norm, x))
    program.accumulate(x, program.call(block.mlp_post_norm, y))
    return x


BLOCKS = {"before": Block, "after": PostNormBlock, "both": partial(PostNormBlock, before=True)}
QK_NORMS = {  # of some heads
    "head": lambda norm, heads, head_dim, eps: norm(head_dim, eps),
    "joint": lambda norm, heads, head_dim, eps: JointRMSNorm(heads * head_dim, eps),
}
ACTIVATIONS = {"silu": F.silu, "gelu": partial(F.gelu, approximate="tanh")}
CHOICES = {"qk_norm": (None, *QK_NORMS), "norm_order": BLOCKS, "activation": ACTIVATIONS}


class TransformerLanguageModel(LanguageModel):
    """A stack of attention and SwiGLU blocks."""

    config: TransformerConfig

    @property
    def norm_class(self) -> type[RMSNorm]:
        """Of all norms but the joint ones."""
        return OffsetRMSNorm if self.config.norm_offset else RMSNorm

    def build_norm(self) -> RMSNorm:
        """The norm before the head."""
        return self.norm_class(self.config.dim, self.config.norm_eps)

    @property
    def softcap(self) -> float | None:
        """Bound of the logits by a tanh."""
        return self.config.logit_softcap

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings times their factor."""
        x = self.embedding(tokens)
        return x if self.config.embedding_scale == 1 else x * x.new_tensor(self.config.embedding_scale)

    def build_block(self, index: int) -> Block:
        """Norm and causal attention, norm and feed-forward layer; or the norms behind them, or also there."""
        c = self.config
        return BLOCKS[c.norm_order](c, self.build_mixer(index), self.build_mlp(index), norm=self.norm_class)

    def build_mlp(self, index: int) -> nn.Module:
        """The feed-forward layer of a block."""
        c = self.config
        return SwiGLU(c.dim, c.mlp_dim, ACTIVATIONS[c.activation])

    def build_mixer(self, index: int) -> CausalAttention:
        """The attention of a block."""
        c = self.config
        width, kv_heads = c.head_dim or c.dim // c.num_heads, c.num_kv_heads or c.num_heads
        window = None if index in c.full_layers else c.window
        options: dict[str, Any] = {
            "num_kv_heads": kv_heads, "rope_base": None, "head_dim": c.head_dim, "bias": c.qkv_bias,
            "out_bias": c.out_bias, "scale": c.attention_scale, "softcap": c.attention_softcap,
            "sinks": c.attention_sinks,
        }  # fmt: skip
        if index not in c.nope_layers:
            local = None if window is None else c.local_rope_base
            options["rotary"] = Rotary(width, local or c.rope_base, scaling=None if local else c.rope_scaling)
        if c.qk_norm is not None:
            for name, heads in (("q_norm", c.num_heads), ("k_norm", kv_heads)):
                options[name] = QK_NORMS[c.qk_norm](self.norm_class, heads, width, c.norm_eps)
        if window is None:
            return CausalAttention(c.dim, c.num_heads, **options)
        return SlidingWindowAttention(c.dim, c.num_heads, window, **options)


_register = partial(
    register_model,
    TransformerLanguageModel,
    task="language",
    family="transformer",
    paper=Paper("LLaMA: Open and Efficient Foundation Language Models", "2302.13971", 2023),
)


@_register()
def transformer_nano():
    return TransformerConfig(vocab_size=256, dim=128, depth=3, num_heads=4, num_kv_heads=2, mlp_dim=384)


@_register()
def transformer_130m():
    return TransformerConfig(dim=768, depth=12, num_heads=12, num_kv_heads=4, mlp_dim=2560)


@_register()
def transformer_350m():
    return TransformerConfig(dim=1024, depth=24, num_heads=16, num_kv_heads=4, mlp_dim=3072)


@_register()
def transformer_1_3b():
    return TransformerConfig(dim=2048, depth=24, num_heads=32, num_kv_heads=8, mlp_dim=6144)
