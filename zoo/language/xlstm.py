"""xLSTM: a matrix memory under exponential gates (mLSTM), with SwiGLU between, and bounded logits.

Papers: Beck et al., "xLSTM", arXiv 2405.04517; "xLSTM 7B", arXiv 2503.13427, whose blocks and size these are; the
smaller sizes are those of "xLSTM Scaling Laws", arXiv 2510.02228, as its published table of runs has them.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial

from torch import nn

from zoo.config import require_positive
from zoo.language.base import LanguageModel
from zoo.language.block import Block, LanguageConfig
from zoo.layers import MLSTM, SwiGLU
from zoo.layers.linear import BlockLinear
from zoo.layers.options import require_above, require_at_least
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class XLSTMConfig(LanguageConfig):
    """Options of xLSTM."""

    vocab_size: int = 50304
    num_heads: int = 8
    """Heads, each with a memory of its own."""
    key_dim: int
    """Channels of a head's queries and keys."""
    value_dim: int
    """Channels of a head's values."""
    mlp_dim: int
    """Hidden width of the SwiGLU."""
    gate_softcap: float | None = 15.0
    """c, where the logits z of the memory's gates become c tanh(z / c); None for no bound."""
    logit_softcap: float | None = 30.0
    """The same of the output's logits."""
    input_offset: float = 10.0
    """The input gates start at exp(-input_offset): the larger, the later the memory is filled."""
    eps: float = 1e-6
    """Added to what a read from the memory is divided by."""
    norm_eps: float = 1e-6
    chunk_size: int = 64
    """Steps a chunk of the parallel form; it changes the speed, not the result."""
    tie_embeddings: bool = False

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "num_heads", "key_dim", "value_dim", "mlp_dim", "chunk_size")
        require_above(0, gate_softcap=self.gate_softcap, logit_softcap=self.logit_softcap)
        require_at_least(0, eps=self.eps, input_offset=self.input_offset)


class XLSTMLanguageModel(LanguageModel):
    """A stack of mLSTMs, each with a SwiGLU."""

    config: XLSTMConfig

    def build_block(self, index: int) -> Block:
        """Norm and mLSTM, norm and SwiGLU."""
        c = self.config
        mixer = MLSTM(
            c.dim, c.num_heads, c.key_dim, c.value_dim, c.gate_softcap, c.input_offset, c.eps, c.chunk_size, c.norm_eps
        )
        return Block(c, mixer, SwiGLU(c.dim, c.mlp_dim))

    @property
    def softcap(self) -> float | None:
        """Bound of the logits by a tanh."""
        return self.config.logit_softcap

    def init_weights(self) -> None:
        """Normal as published, smaller into the residual stream; the gates of the memory keep their layer's values."""
        for name, module in self.named_modules():
            if isinstance(module, (nn.Embedding, nn.Linear, BlockLinear)) and not name.endswith((".i_proj", ".f_proj")):
                into_residual = name.endswith((".out_proj", ".w2"))
                scale = 2 / self.config.depth if into_residual else math.sqrt(2 / 5)
                nn.init.normal_(module.weight, std=scale / math.sqrt(self.config.dim))


_register = partial(
    register_model,
    XLSTMLanguageModel,
    task="language",
    family="xlstm",
    paper=Paper("xLSTM 7B: A Recurrent LLM for Fast and Efficient Inference", "2503.13427", 2025),
)


@_register()
def xlstm_nano():
    return XLSTMConfig(
        vocab_size=256, dim=64, depth=3, num_heads=4, key_dim=16, value_dim=16, mlp_dim=160, input_offset=2.0
    )


@_register()
def xlstm_160m():
    return XLSTMConfig(dim=768, depth=12, num_heads=6, key_dim=64, value_dim=128, mlp_dim=2112)


@_register()
def xlstm_400m():
    return XLSTMConfig(dim=1024, depth=24, num_heads=4, key_dim=128, value_dim=256, mlp_dim=2752)


@_register()
def xlstm_830m():
    return XLSTMConfig(dim=1536, depth=24, num_heads=4, key_dim=192, value_dim=384, mlp_dim=4160)


@_register()
def xlstm_1_4b():
    return XLSTMConfig(dim=2048, depth=24, num_heads=4, key_dim=256, value_dim=512, mlp_dim=5504)


@_register()
def xlstm_2_7b():
    return XLSTMConfig(dim=2560, depth=32, num_heads=5, key_dim=256, value_dim=512, mlp_dim=6848)


@_register()
def xlstm_7b():
    return XLSTMConfig(dim=4096, depth=32, key_dim=256, value_dim=512, mlp_dim=10944)
