"""LongConv as a classifier of token sequences: every block convolves the whole sequence with learned taps.

Paper: Fu et al., "Simple Hardware-Efficient Long Convolutions for Sequence Modeling", arXiv 2302.06646. The sizes
``longconv_text_lra_*`` are those of the authors' configurations for the text tasks of the Long Range Arena (arXiv
2011.04006; HazyResearch/safari, configs/experiment/lra), whose convolutions look back only, over the longest sequence
of the task; ``bidirectional=True`` makes them look both ways. Where the house differs: text is bytes and ListOps has
its 15 symbols, as in ``s4_text``; batch norms leave padding out; dropout chooses each number by itself.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from torch import nn

from zoo.config import require_positive
from zoo.language.classifier import BatchNormClassifier, BatchNormConfig
from zoo.layers.sequence_block import SequenceBlock
from zoo.registry import Paper, register_model
from zoo.taps import ConvolutionsConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongConvTextConfig(ConvolutionsConfig, BatchNormConfig):
    """Options of LongConv as a classifier of token sequences."""

    kernel_length: int
    """Taps of each convolution and direction. Longer sequences work, each step then sees kernel_length steps a way."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "kernel_length", "num_convs")


class LongConvTextClassifier(BatchNormClassifier):
    """A token embedding, long convolutions, the mean over the tokens of a sequence, and a classifier of it."""

    config: LongConvTextConfig

    def build_block(self, index: int) -> nn.Module:
        """Batch norm and long convolutions."""
        c = self.config
        mixer = c.build_mixer(c.dim, c.kernel_length, c.bidirectional, c.mixer_drop_rate)
        return SequenceBlock(
            c.dim, mixer, prenorm=c.prenorm, drop_rate=c.mixer_drop_rate, drop_path=self.drop_path(index)
        )


_register = partial(
    register_model,
    LongConvTextClassifier,
    task="text-classification",
    family="longconv_text",
    paper=Paper("Simple Hardware-Efficient Long Convolutions for Sequence Modeling", "2302.06646", 2023),
)


@_register()
def longconv_text_nano():
    return LongConvTextConfig(
        vocab_size=15, num_classes=10, dim=64, depth=4, kernel_length=64, kernel_dropout=0.0, kernel_init="double_exp"
    )


@_register()
def longconv_text_lra_listops():
    return LongConvTextConfig(
        vocab_size=15, num_classes=10, dim=128, depth=8, kernel_length=2048, lam=0.002, kernel_lr=5e-4,
        bidirectional=False, prenorm=False,
    )  # fmt: skip


@_register()
def longconv_text_lra_text():
    return LongConvTextConfig(vocab_size=256, num_classes=2, dim=256, kernel_length=4096, bidirectional=False)


@_register()
def longconv_text_lra_retrieval():
    return LongConvTextConfig(
        vocab_size=256, num_classes=2, pair=True, dim=256, kernel_length=4000, lam=0.004, kernel_dropout=0.1,
        kernel_lr=1e-4, bidirectional=False,
    )  # fmt: skip
