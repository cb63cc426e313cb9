"""Mamba-2: state-space duality, a scalar decay a head and a large matrix state.

Paper: Dao and Gu, arXiv 2405.21060. Sizes and vocabulary of the authors' checkpoints trained on the Pile.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from zoo.config import require_positive
from zoo.language.base import Block, LanguageConfig, LanguageModel
from zoo.layers import Mamba2
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mamba2Config(LanguageConfig):
    """Options of the Mamba-2 family: those of every language model and of the ``Mamba2`` mixer."""

    vocab_size: int = 50288
    d_state: int = 128
    d_conv: int = 4
    expand: int = 2
    head_dim: int = 64
    num_groups: int = 1
    chunk_size: int = 64
    dt_limit: tuple[float, float] = (0.0, float("inf"))
    conv_bias: bool = True
    bias: bool = False

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "d_state", "d_conv", "expand", "head_dim", "num_groups")


class Mamba2LanguageModel(LanguageModel):
    """A stack of Mamba-2 blocks."""

    config: Mamba2Config

    def build_block(self, index: int) -> Block:
        """Norm and Mamba-2 mixer."""
        c = self.config
        mixer = Mamba2(
            c.dim, c.d_state, c.d_conv, c.expand, c.head_dim, c.num_groups, c.chunk_size, c.dt_limit, c.norm_eps,
            c.conv_bias, c.bias,
        )  # fmt: skip
        return Block(c, mixer)


_register = partial(
    register_model,
    Mamba2LanguageModel,
    task="language",
    family="mamba2",
    paper=Paper("Transformers are SSMs: Generalized Models and Efficient Algorithms", "2405.21060", 2024),
)


@_register()
def mamba2_nano():
    return Mamba2Config(vocab_size=256, dim=128, depth=4, d_state=32, head_dim=32)


@_register()
def mamba2_130m():
    return Mamba2Config(dim=768, depth=24)


@_register()
def mamba2_370m():
    return Mamba2Config(dim=1024, depth=48)


@_register()
def mamba2_780m():
    return Mamba2Config(dim=1536, depth=48)


@_register()
def mamba2_1_3b():
    return Mamba2Config(dim=2048, depth=48)


@_register()
def mamba2_2_7b():
    return Mamba2Config(dim=2560, depth=64)
