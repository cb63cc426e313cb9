"""S4 as a classifier of token sequences: every block reads the whole sequence, in both directions.

Paper: Gu et al., "Efficiently Modeling Long Sequences with Structured State Spaces", arXiv 2111.00396. The sizes
``s4_text_lra_*`` are those of the authors' current configurations for the text tasks of the Long Range Arena (arXiv
2011.04006; state-spaces/s4, configs/experiment/lra). Where the house differs: text is bytes, 256 of them, where the
authors list the characters of their data; ListOps has its 15 symbols, as in ``zoo.train.data.ListOps``; batch norms
leave padding out; dropout chooses each number by itself, where the authors drop a channel at all positions.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from torch import Tensor, nn

from zoo.config import require_positive
from zoo.language.classifier import SequenceClassifier, SequenceConfig
from zoo.layers.ssm import S4Block, SequenceNorm
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class S4TextConfig(SequenceConfig):
    """Options of S4 as a classifier of token sequences."""

    d_state: int = 4
    """State size N of a channel."""
    num_ssm: int = 1
    """Distinct state matrices, which the channels take in turn."""
    dt_min: float = 0.001
    """Smallest initial step size."""
    dt_max: float = 0.1
    """Largest initial step size."""
    bidirectional: bool = True
    """The mixers also read from the end."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block, growing linearly up to it."""
    prenorm: bool = True
    """Batch norm before the mixer and after the last block; False: after each sum."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "d_state", "num_ssm")


class S4TextClassifier(SequenceClassifier):
    """A token embedding, S4 blocks, the mean over the tokens of a sequence, and a classifier of it."""

    config: S4TextConfig
    activation = nn.GELU

    def build_block(self, index: int) -> nn.Module:
        """Batch norm and S4."""
        c = self.config
        return S4Block(
            c.dim, d_state=c.d_state, num_ssm=c.num_ssm, dt_min=c.dt_min, dt_max=c.dt_max,
            bidirectional=c.bidirectional, drop_rate=c.mixer_drop_rate,
            drop_path=c.drop_path_rate * index / max(1, c.depth - 1), prenorm=c.prenorm,
        )  # fmt: skip

    def build_norm(self) -> nn.Module:
        """A batch norm, unless there is one after each sum."""
        return SequenceNorm(self.config.dim) if self.config.prenorm else nn.Identity()

    def forward_norm(self, x: Tensor, mask: Tensor) -> Tensor:
        """The norm over what is not padding."""
        return self.norm(x, mask) if self.config.prenorm else x


_register = partial(
    register_model,
    S4TextClassifier,
    task="text-classification",
    family="s4_text",
    paper=Paper("Efficiently Modeling Long Sequences with Structured State Spaces", "2111.00396", 2021),
)
_lra = partial(S4TextConfig, dim=256)


@_register()
def s4_text_nano():
    return S4TextConfig(vocab_size=15, num_classes=10, dim=64, depth=4, d_state=16, num_ssm=2, dt_min=0.01)


@_register()
def s4_text_lra_listops():
    return _lra(vocab_size=15, num_classes=10, prenorm=False)


@_register()
def s4_text_lra_text():
    return _lra(vocab_size=256, num_classes=2)


@_register()
def s4_text_lra_retrieval():
    return _lra(vocab_size=256, num_classes=2, pair=True)
