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

from torch import nn

from zoo.config import require_positive
from zoo.language.classifier import BatchNormClassifier, BatchNormConfig
from zoo.layers.ssm import S4Block
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class S4TextConfig(BatchNormConfig):
    """Options of S4 as a classifier of token sequences."""

    d_state: int = 4
    """State size N of a channel."""
    num_ssm: int = 1
    """Distinct state matrices, which the channels take in turn."""
    dt_min: float = 0.001
    """Smallest initial step size."""
    dt_max: float = 0.1
    """Largest initial step size."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "d_state", "num_ssm")


class S4TextClassifier(BatchNormClassifier):
    """A token embedding, S4 blocks, the mean over the tokens of a sequence, and a classifier of it."""

    config: S4TextConfig

    def build_block(self, index: int) -> nn.Module:
        """Batch norm and S4."""
        c = self.config
        return S4Block(
            c.dim, d_state=c.d_state, num_ssm=c.num_ssm, dt_min=c.dt_min, dt_max=c.dt_max,
            bidirectional=c.bidirectional, drop_rate=c.mixer_drop_rate,
            drop_path=self.drop_path(index), prenorm=c.prenorm,
        )  # fmt: skip


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
