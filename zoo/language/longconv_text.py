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
from zoo.language.longconv import KERNEL_INITS, check_kernel_init
from zoo.layers.conv import BidirectionalLongConv, ButterflyLongConv, LongConvMixer
from zoo.layers.sequence_block import SequenceBlock
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongConvTextConfig(BatchNormConfig):
    """Options of LongConv as a classifier of token sequences."""

    kernel_length: int
    """Taps of each convolution and direction. Longer sequences work, each step then sees kernel_length steps a way."""
    num_convs: int = 2
    """Convolutions of every channel."""
    lam: float = 0.003
    """Threshold of the squash, 0 for none."""
    smooth_window: int = 1
    """Taps the kernel is averaged over, odd, 1 for none."""
    smooth_freq: bool = False
    """Smooth smooth_window frequencies of the kernel, by a Gaussian, in place of taps."""
    kernel_dropout: float = 0.2
    """Dropout of the kernel's taps in training mode."""
    kernel_init: str = "random"
    """"random", or "double_exp", whose channels decay at rates between 1 and dim / 2 over the kernel."""
    butterfly: bool = False
    """Learn the Fourier transforms; every step then reads the whole sequence, up to kernel_length tokens or more."""
    kernel_lr: float | None = 1e-3
    """Largest peak learning rate of the taps; None for that of the other parameters."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "kernel_length", "num_convs")
        check_kernel_init(self.kernel_init)


class LongConvTextClassifier(BatchNormClassifier):
    """A token embedding, long convolutions, the mean over the tokens of a sequence, and a classifier of it."""

    config: LongConvTextConfig

    def build_block(self, index: int) -> nn.Module:
        """Batch norm and long convolutions."""
        c = self.config
        mixer = LongConvMixer(
            c.dim, c.kernel_length, num_convs=c.num_convs, bidirectional=c.bidirectional, drop_rate=c.mixer_drop_rate,
            lam=c.lam, smooth_window=c.smooth_window, smooth_freq=c.smooth_freq,
            kernel_dropout=c.kernel_dropout, init=KERNEL_INITS[c.kernel_init], learning_rate=c.kernel_lr,
            conv=ButterflyLongConv if c.butterfly else BidirectionalLongConv,
        )  # fmt: skip
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
