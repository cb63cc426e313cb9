"""The Routing Transformer: heads that attend within learned clusters, next to heads that attend to the neighbourhood.

Paper: Roy et al., arXiv 2003.05997. Sizes, order of the layers and numbers of clusters of the authors' configurations
(google-research, routing_transformer: wikitext103_local_cluster4k, pg19_local_cluster8k). Where the house differs:
rotary positions for the learned relative ones, a sliding window for the local blocks of 256 that see the block before
them, RMSNorm for LayerNorm, no dropout of attention weights or input tokens, no extra projection within the heads.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import require_positive
from zoo.language.base import LanguageModel
from zoo.language.block import Block, LanguageConfig
from zoo.layers import Mixer, ParallelMixers, SwiGLU
from zoo.layers.attention import RoutingAttention, SlidingWindowAttention
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoutingConfig(LanguageConfig):
    """Options of the Routing Transformer."""

    num_heads: int
    """Heads of a block."""
    num_routing_heads: int
    """How many of them attend within clusters, the others are local; 0 for a model of local heads."""
    first_routing: int = 0
    """Index of the first block with routing heads; those before it have local heads only."""
    head_dim: int | None = None
    """Width of a head, dim / num_heads when None."""
    window: int = 512
    """Keys a local head sees, its own position included."""
    num_clusters: int
    """Clusters of a routing head."""
    cluster_size: int = 512
    """Positions a cluster takes in training mode; num_clusters * cluster_size is the length to train at."""
    scale: float | None = None
    """Factor of the routed logits, head_dim^-0.5 when None."""
    decay: float = 0.999
    """Decay of the centroids' moving average."""
    commitment_weight: float = 1e-4
    """Weight of the loss that keeps queries near their centroids."""
    mlp_dim: int
    """Hidden width of the GEGLU."""
    embedding_dim: int | None = None
    """Width of embedding and head, brought to dim and back by projections; dim when None."""
    drop_rate: float = 0.0
    """Dropout of the embeddings and of the GEGLU's hidden units."""
    rope_base: float = 10000.0
    """Wavelength base of the rotary positions."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "num_heads", "window", "num_clusters", "cluster_size", "mlp_dim")
        require_positive(self, "head_dim", "embedding_dim")
        if not 0 <= self.num_routing_heads <= self.num_heads:
            raise ValueError(
                f"num_routing_heads must be in [0, num_heads]: got {self.num_routing_heads} of {self.num_heads}"
            )
        if not 0 <= self.first_routing < self.depth:
            raise ValueError(
                f"first_routing must be in [0, depth), got {self.first_routing}, depth {self.depth}: "
                "for local heads only set num_routing_heads=0"
            )
        if self.head_dim is None and self.dim % self.num_heads:
            raise ValueError(
                f"num_heads must divide dim, or head_dim be given: got {self.num_heads} heads, dim {self.dim}"
            )


class GEGLU(SwiGLU):
    """y = W2 drop(gelu(W1 x) * W3 x), without biases, gelu in its tanh form."""

    def __init__(self, dim: int, hidden_dim: int, drop_rate: float):
        super().__init__(dim, hidden_dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        return self.w2(self.drop(F.gelu(self.w1(x), approximate="tanh") * self.w3(x)))


class RoutingLanguageModel(LanguageModel):
    """A stack of blocks with local heads, routing heads or both, each with GEGLU.

    In training mode a prediction depends, by what the clusters take, on later tokens; in evaluation mode it does not
    (see ``RoutingAttention``). After the recipe docs_routing_nano, on held-out text, training's form has 2.022 bits per
    byte and evaluation's 2.037, and they agree on the most probable next byte at 93 % of the positions.
    """

    config: RoutingConfig

    def __init__(self, config: RoutingConfig):
        super().__init__(config)
        narrow, dim = self.embedding.embedding_dim, config.dim
        self.embedding_in = nn.Identity() if narrow == dim else nn.Linear(narrow, dim, bias=False)
        self.embedding_out = nn.Identity() if narrow == dim else nn.Linear(dim, narrow, bias=False)
        self.drop = nn.Dropout(config.drop_rate)

    def build_embedding(self) -> nn.Embedding:
        """An embedding of width ``embedding_dim``."""
        return nn.Embedding(self.config.vocab_size, self.config.embedding_dim or self.config.dim)

    def build_block(self, index: int) -> Block:
        """Norm and the heads side by side, norm and GEGLU."""
        c = self.config
        width, routing = c.head_dim or c.dim // c.num_heads, c.num_routing_heads if index >= c.first_routing else 0
        heads: dict[str, Mixer] = {}
        if routing < c.num_heads:
            heads["local"] = SlidingWindowAttention(
                c.dim, c.num_heads - routing, c.window, rope_base=c.rope_base, head_dim=width
            )
        if routing:
            heads["routing"] = RoutingAttention(
                c.dim, routing, c.num_clusters, c.cluster_size, head_dim=width, scale=c.scale, decay=c.decay,
                commitment_weight=c.commitment_weight, rope_base=c.rope_base,
            )  # fmt: skip
        ones = (1.0,) * len(heads)
        return Block(c, ParallelMixers(heads, ones, ones), GEGLU(c.dim, c.mlp_dim, c.drop_rate))

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> (B, T, dim)."""
        return self.embedding_in(self.drop(self.embedding(tokens)))

    def forward_norm(self, x: Tensor) -> Tensor:
        """The norm, in the width of the head."""
        return self.embedding_out(self.norm(x))


_register = partial(
    register_model,
    RoutingLanguageModel,
    task="language",
    family="routing",
    paper=Paper("Efficient Content-Based Sparse Attention with Routing Transformers", "2003.05997", 2020),
)


@_register()
def routing_nano():
    return RoutingConfig(
        vocab_size=256, dim=128, depth=3, num_heads=4, num_routing_heads=2, window=32, num_clusters=4, cluster_size=64,
        decay=0.9, mlp_dim=256,
    )  # fmt: skip


@_register()
def routing_wikitext103():
    """For rows of 4096 words: every block has 8 local and 8 routing heads."""
    return RoutingConfig(
        vocab_size=267735, dim=1024, depth=14, num_heads=16, num_routing_heads=8, num_clusters=8, mlp_dim=3072,
        embedding_dim=256, drop_rate=0.4, tie_embeddings=False,
    )  # fmt: skip


@_register()
def routing_pg19():
    """For rows of 8192 subwords, about 98,000 different ones (paper): only the last block has routing heads. Heads of
    128, as rotary positions need an even width: the authors' have 129."""
    return RoutingConfig(
        vocab_size=98000, dim=1032, depth=22, num_heads=8, num_routing_heads=2, first_routing=21, head_dim=128,
        num_clusters=16, mlp_dim=4096, tie_embeddings=False,
    )  # fmt: skip
