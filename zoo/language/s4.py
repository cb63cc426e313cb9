"""S4 and S4D: linear time-invariant state spaces as sequence mixers, a convolution in training, a recurrence after it.

Papers: Gu et al., "Efficiently Modeling Long Sequences with Structured State Spaces", arXiv 2111.00396; Gu et al., "On
the Parameterization and Initialization of Diagonal State Space Models", arXiv 2206.11893. The language model has the
sizes of the authors' WikiText-103 configuration (state-spaces/s4, s4-wt103): 16 times two S4 layers and a feed-forward
layer. Where the house differs: RMSNorm for LayerNorm, and a plain head for the adaptive softmax, so the published
parameter count does not apply.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import require_positive
from zoo.language.base import LanguageModel
from zoo.language.block import Block, LanguageConfig
from zoo.layers import Mixer, Mlp, State
from zoo.layers.ssm import S4, S4D, hippo, s4d
from zoo.layers.ssm.s4_block import twice
from zoo.layers.step import Value, Writer, describes
from zoo.registry import Paper, nearest, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class S4Config(LanguageConfig):
    """Options of S4."""

    d_state: int = 64
    """State size N of a channel."""
    init: str = "legs"
    """State matrix at the start: "legs" (HiPPO) or "random"; S4D also has "inv", "inv2", "lin", "quad" and "real"."""
    num_ssm: int = 1
    """Distinct state matrices, which the channels take in turn."""
    dt_min: float = 0.001
    """Smallest initial step size."""
    dt_max: float = 0.1
    """Largest initial step size."""
    mlp_dim: int
    """Hidden width of the feed-forward layer."""
    mlp_every: int = 2
    """Of each group of so many blocks the last has a feed-forward layer."""
    drop_rate: float = 0.0
    """Dropout within (twice in a row) and after each mixer and feed-forward layer."""
    embedding_drop_rate: float = 0.0
    """Dropout of the embedding, and of what the head reads."""
    chunk_size: int = 64
    """Steps at a time when there is a state; it changes the speed, not the result."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "d_state", "num_ssm", "mlp_dim", "mlp_every", "chunk_size")
        require_known("init", self.init, INITIAL[type(self)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class S4DConfig(S4Config):
    """Options of S4D."""

    discretisation: str = "zero_order_hold"
    """"zero_order_hold" or "bilinear"."""

    def __post_init__(self):
        super().__post_init__()
        require_known("discretisation", self.discretisation, DISCRETISATIONS)


INITIAL: dict[type[S4Config], dict] = {
    S4Config: {"legs": hippo.legs_dplr, "random": hippo.random_dplr},
    S4DConfig: {
        "legs": hippo.diagonal_legs,
        "inv": hippo.diagonal_inv,
        "inv2": hippo.diagonal_inv2,
        "lin": hippo.diagonal_lin,
        "quad": hippo.diagonal_quad,
        "real": hippo.diagonal_real,
        "random": hippo.diagonal_random,
    },
}
DISCRETISATIONS = {"zero_order_hold": s4d.zero_order_hold, "bilinear": s4d.bilinear}


def require_known(field: str, value: str, known: dict) -> None:
    """Raise a ValueError unless ``value`` is one of the names in ``known``."""
    if value not in known:
        raise ValueError(f"{field} must be one of {list(known)}, got {value!r}{nearest(str(value), known)}")


class S4LanguageBlock(Block):
    """With dropout after the mixer."""

    def __init__(self, config: S4Config, mixer: Mixer, mlp: Mlp | None):
        super().__init__(config, mixer, mlp)
        self.drop = nn.Dropout(config.drop_rate)

    def forward(self, x: Tensor, state: State | None = None, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim), in the dtype of the residual stream, -> the same."""
        x = x + self.drop(self.mixer(self.norm(x), state, seq_idx=seq_idx))
        if self.mlp is not None and self.mlp_norm is not None:
            x = x + self.mlp(self.mlp_norm(x))
        return x


@describes(S4LanguageBlock)
def _block(p: Writer, block: S4LanguageBlock, x: Value) -> Value:
    p.expect(block.drop, nn.Dropout)
    p.accumulate(x, p.call(block.mixer, p.call(block.norm, x)))
    if block.mlp is not None and block.mlp_norm is not None:
        p.accumulate(x, p.call(block.mlp, p.call(block.mlp_norm, x)))
    return x


class S4LanguageModel(LanguageModel):
    """A stack of S4 blocks, some of them with a feed-forward layer."""

    config: S4Config

    def build_block(self, index: int) -> Block:
        """Norm and state space, and where it is due norm and feed-forward layer."""
        c = self.config
        mlp = None if (index + 1) % c.mlp_every else Mlp(c.dim, c.mlp_dim, c.drop_rate)
        return S4LanguageBlock(c, self.build_mixer(), mlp)

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> (B, T, dim)."""
        return F.dropout(super().embed(tokens), self.config.embedding_drop_rate, self.training)

    def forward_norm(self, x: Tensor) -> Tensor:
        """(B, T, dim) as the head reads it."""
        return F.dropout(super().forward_norm(x), self.config.embedding_drop_rate, self.training)

    def read_step(self, p: Writer, x: Value) -> Value:
        """The norm and the head; nothing is dropped in a program."""
        return self.read_stream(p, x)

    def build_mixer(self) -> Mixer:
        """The state space of a block."""
        return S4(init=INITIAL[S4Config][self.config.init], **self._options())

    def _options(self) -> dict:
        c = self.config
        names = ("dim", "d_state", "num_ssm", "dt_min", "dt_max", "chunk_size")
        return {name: getattr(c, name) for name in names} | {"drop_rate": twice(c.drop_rate)}


class S4DLanguageModel(S4LanguageModel):
    """The same with diagonal state matrices."""

    config: S4DConfig

    def build_mixer(self) -> Mixer:
        """The diagonal state space of a block."""
        c = self.config
        return S4D(init=INITIAL[S4DConfig][c.init], discretisation=DISCRETISATIONS[c.discretisation], **self._options())


_register = partial(
    register_model,
    S4LanguageModel,
    task="language",
    family="s4",
    paper=Paper("Efficiently Modeling Long Sequences with Structured State Spaces", "2111.00396", 2021),
)
_register_diagonal = partial(
    register_model,
    S4DLanguageModel,
    task="language",
    family="s4d",
    paper=Paper("On the Parameterization and Initialization of Diagonal State Space Models", "2206.11893", 2022),
)


@_register()
def s4_nano():
    return S4Config(vocab_size=256, dim=128, depth=4, d_state=32, num_ssm=2, mlp_dim=384)


@_register()
def s4_wikitext103():
    return S4Config(vocab_size=267735, dim=1024, depth=32, mlp_dim=4096, drop_rate=0.25, embedding_drop_rate=0.25)


@_register_diagonal()
def s4d_nano():
    return S4DConfig(vocab_size=256, dim=128, depth=4, d_state=32, num_ssm=2, mlp_dim=384)


@_register_diagonal()
def s4d_wikitext103():
    return S4DConfig(vocab_size=267735, dim=1024, depth=32, mlp_dim=4096, drop_rate=0.25, embedding_drop_rate=0.25)
