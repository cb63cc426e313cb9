"""Scatterbrain: transformers whose attention is exact on a sparse support and low-rank elsewhere.

Paper: Chen et al., arXiv 2110.15343. The authors' code (HazyResearch/scatterbrain) holds the configurations of the Long
Range Arena: widths, depths, heads, windows (``sblocal``), clusters and features (``sbsmyrf``) of ``scatterbrain_lra_*``
are theirs. These are causal language models over the tasks' tokens, with this library's norms, rotary positions and
SwiGLU in place of the bidirectional classifiers with absolute positions and GELU. Of their WikiText-103 model no
configuration is published: ``scatterbrain_wt103`` is the GPT-2 small of their WikiText-103 baseline (sequences of 1024)
with the attention of the longest Long Range Arena task.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from zoo.config import require_positive
from zoo.language.base import LanguageModel
from zoo.language.block import Block, LanguageConfig
from zoo.layers import SwiGLU
from zoo.layers.attention import ScatterbrainAttention
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScatterbrainConfig(LanguageConfig):
    """Options of Scatterbrain."""

    vocab_size: int = 256
    num_heads: int
    """Heads of the attention."""
    head_dim: int | None = None
    """Width of a head, dim / num_heads when None."""
    window: int
    """Steps a query sees exactly, itself included."""
    num_features: int
    """Random features of the low-rank part, even."""
    cluster_size: int
    """Steps of a bucket."""
    num_hashes: int = 2
    """Hashes that make further pairs exact in training mode; 0: the window alone."""
    mlp_dim: int
    """Hidden width of the SwiGLU."""
    rope_base: float = 10000.0
    """Wavelength base of the rotary positions."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "num_heads", "mlp_dim", "head_dim")


class ScatterbrainLanguageModel(LanguageModel):
    """A stack of sparse and low-rank attention and SwiGLU blocks."""

    config: ScatterbrainConfig

    def build_block(self, index: int) -> Block:
        """Norm and attention, norm and SwiGLU."""
        c = self.config
        attention = ScatterbrainAttention(
            c.dim, c.num_heads, c.window, c.num_features, cluster_size=c.cluster_size, num_hashes=c.num_hashes,
            head_dim=c.head_dim, rope_base=c.rope_base,
        )  # fmt: skip
        return Block(c, attention, SwiGLU(c.dim, c.mlp_dim))


LRA: dict[str, dict[str, Any]] = {  # task -> the authors' sizes, of the language models and of the classifiers
    "listops": {
        "dim": 512, "depth": 4, "num_heads": 8, "window": 64, "num_features": 32, "cluster_size": 32, "mlp_dim": 1024,
    },
    "text": {
        "dim": 256, "depth": 4, "num_heads": 4, "window": 32, "num_features": 16, "cluster_size": 16, "mlp_dim": 1024,
    },
    "retrieval": {
        "dim": 64, "depth": 2, "num_heads": 2, "window": 128, "num_features": 64, "cluster_size": 64, "mlp_dim": 128,
    },
    "image": {
        "dim": 128, "depth": 1, "num_heads": 8, "head_dim": 8, "window": 32, "num_features": 16, "cluster_size": 16,
        "mlp_dim": 128,
    },
    "pathfinder": {
        "dim": 64, "depth": 2, "num_heads": 2, "head_dim": 16, "window": 32, "num_features": 16, "cluster_size": 16,
        "mlp_dim": 128,
    },
}  # fmt: skip
_register = partial(
    register_model,
    ScatterbrainLanguageModel,
    task="language",
    family="scatterbrain",
    paper=Paper("Scatterbrain: Unifying Sparse and Low-rank Attention Approximation", "2110.15343", 2021),
)


@_register()
def scatterbrain_nano():
    return ScatterbrainConfig(dim=128, depth=3, num_heads=4, window=32, num_features=64, cluster_size=32, mlp_dim=384)


@_register()
def scatterbrain_wt103():
    return ScatterbrainConfig(
        vocab_size=50257, dim=768, depth=12, num_heads=12, window=128, num_features=64, cluster_size=64, mlp_dim=2048
    )


@_register()
def scatterbrain_lra_listops():
    return ScatterbrainConfig(vocab_size=16, **LRA["listops"])


@_register()
def scatterbrain_lra_text():
    return ScatterbrainConfig(**LRA["text"])


@_register()
def scatterbrain_lra_retrieval():
    return ScatterbrainConfig(**LRA["retrieval"])


@_register()
def scatterbrain_lra_image():
    return ScatterbrainConfig(**LRA["image"])


@_register()
def scatterbrain_lra_pathfinder():
    return ScatterbrainConfig(**LRA["pathfinder"])
