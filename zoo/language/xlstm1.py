"""The first xLSTM: blocks with a matrix memory at a larger width, and among them some with scalar memories.

Paper: Beck et al., "xLSTM: Extended Long Short-Term Memory", arXiv 2405.04517. An xLSTM[a:b] has b blocks with an sLSTM
for every a with an mLSTM. Widths and depths are those of the authors' configurations (NX-AI/xlstm-jax: mLSTM120M,
mLSTM165M, mLSTM1.3B), rounded widths those of their code; the blocks of the sLSTMs are the paper's.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch.nn.functional as F

from zoo.config import require_positive
from zoo.language.block import Block, LanguageConfig
from zoo.language.xlstm import XLSTMLanguageModel
from zoo.layers import SLSTM, ExpandedMLSTM, LayerNorm, SwiGLU
from zoo.layers.options import require_at_least
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class XLSTM1Config(LanguageConfig):
    """Options of the first xLSTM."""

    vocab_size: int = 50304
    slstm_layers: tuple[int, ...] = ()
    """Blocks (from 0) with an sLSTM and a gated MLP in place of an mLSTM."""
    num_heads: int = 4
    """Heads of both."""
    inner_dim: int
    """Width of the mLSTMs."""
    block_size: int = 4
    """Channels that a channel of the mLSTMs' queries, keys and values comes from."""
    d_conv: int = 4
    """Taps of the convolutions."""
    mlp_dim: int
    """Hidden width of the MLPs behind the sLSTMs."""
    eps: float = 1e-6
    """Added to what a read from a matrix memory is divided by."""
    chunk_size: int = 64
    """Steps a chunk of the mLSTMs' parallel form; it changes the speed, not the result."""
    tie_embeddings: bool = False

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "num_heads", "inner_dim", "block_size", "d_conv", "mlp_dim", "chunk_size")
        require_at_least(0, eps=self.eps)
        if not set(self.slstm_layers) <= set(range(self.depth)):
            raise ValueError(f"slstm_layers must be blocks in [0, depth = {self.depth}), got {self.slstm_layers}")


class XLSTM1LanguageModel(XLSTMLanguageModel):
    """A stack of mLSTMs between expansions, some of them replaced by an sLSTM and a gated MLP."""

    config: XLSTM1Config  # type: ignore[assignment]

    def build_block(self, index: int) -> Block:
        """Norm and mLSTM; or norm and sLSTM, norm and gated MLP."""
        c, norm = self.config, partial(LayerNorm, bias=False)
        if index not in c.slstm_layers:
            options = c.inner_dim, c.block_size, c.d_conv, c.eps, c.chunk_size, c.norm_eps
            return Block(c, ExpandedMLSTM(c.dim, c.num_heads, *options), norm=norm)
        power = 0.3 + 1.3 * index / max(c.depth - 1, 1)
        return Block(c, SLSTM(c.dim, c.num_heads, c.d_conv, power, c.norm_eps), SwiGLU(c.dim, c.mlp_dim, F.gelu), norm)

    def build_norm(self) -> LayerNorm:
        """Without a bias."""
        return LayerNorm(self.config.dim, self.config.norm_eps, bias=False)

    @property
    def softcap(self) -> None:
        """The logits have no bound."""
        return None

    def no_weight_decay(self) -> set[str]:
        """And the recurrent weights."""
        return super().no_weight_decay() | {name for name, _ in self.named_parameters() if name.endswith(".R")}


_register = partial(
    register_model,
    XLSTM1LanguageModel,
    task="language",
    family="xlstm1",
    paper=Paper("xLSTM: Extended Long Short-Term Memory", "2405.04517", 2024),
)


@_register()
def xlstm1_nano():
    return XLSTM1Config(
        vocab_size=256, dim=48, depth=3, slstm_layers=(1,), num_heads=2, inner_dim=96, mlp_dim=64
    )  # fmt: skip


@_register()
def xlstm1_120m():
    return XLSTM1Config(dim=768, depth=12, inner_dim=1536, mlp_dim=1024)


@_register()
def xlstm1_165m():
    return XLSTM1Config(dim=768, depth=24, inner_dim=1536, mlp_dim=1024)


@_register()
def xlstm1_1_3b():
    return XLSTM1Config(dim=2048, depth=48, inner_dim=4096, mlp_dim=2688)


@_register()
def xlstm1_7to1_1_3b():
    return XLSTM1Config(dim=2048, depth=48, slstm_layers=(3, 5, 7, 40, 42, 44), inner_dim=4096, mlp_dim=2688)
