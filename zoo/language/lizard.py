"""Lizard: a transformer whose attention was made linear after training; ``zoo.linearize`` does it to any model.

Paper: Nguyen et al., arXiv 2507.09025. The authors did it to Llama 3 8B and Mistral 7B.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from zoo.config import require_positive
from zoo.language.dense import llama3_8b
from zoo.language.transformer import TransformerConfig, TransformerLanguageModel, transformer_nano
from zoo.layers import CausalAttention, LizardAttention
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class LizardConfig(TransformerConfig):
    """Options of a transformer, and of what its attention became."""

    anchor_window: int = 128
    """Newest steps that softmax attention sees beside the linear attention."""
    meta_tokens: int = 4
    """Tokens that take part in its sum alone."""
    softmax_blocks: tuple[int, ...] = ()
    """Blocks that keep their attention."""
    chunk_size: int = 64
    """Steps a chunk of linear attention; it changes the speed, not the result."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "anchor_window", "meta_tokens", "chunk_size")
        if not all(0 <= index < self.depth for index in self.softmax_blocks):
            raise ValueError(f"softmax_blocks must be indices of the {self.depth} blocks, got {self.softmax_blocks}")


class LizardLanguageModel(TransformerLanguageModel):
    """A transformer with linear attention and a window of its own where it remembered everything."""

    config: LizardConfig

    def build_mixer(self, index: int) -> CausalAttention:
        """The attention of a block, made linear."""
        c, attention = self.config, super().build_mixer(index)
        if type(attention) is not CausalAttention or index in c.softmax_blocks:
            return attention
        return LizardAttention(attention, c.anchor_window, c.meta_tokens, chunk_size=c.chunk_size)


_register = partial(
    register_model,
    LizardLanguageModel,
    task="language",
    family="lizard",
    paper=Paper("Lizard: An Efficient Linearization Framework for Large Language Models", "2507.09025", 2025),
)


@_register()
def lizard_nano():
    return LizardConfig(**vars(transformer_nano()), anchor_window=32)


@_register()
def lizard_llama3_8b():
    return LizardConfig(**vars(llama3_8b()))
