"""Options of the families whose convolutions have learned taps."""

from __future__ import annotations

import dataclasses
from typing import Any

from zoo.layers.conv import BidirectionalLongConv, ButterflyLongConv, LongConvMixer, decaying_kernel, random_kernel

KERNEL_INITS = {"random": random_kernel, "double_exp": decaying_kernel}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TapsConfig:
    """Options of the taps; ``zoo.layers.conv.LearnedTaps`` has their equation."""

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

    def tap_options(self) -> dict[str, Any]:
        """As arguments of ``LearnedTaps``.

        Raises:
            ValueError: for an unknown kernel_init.
        """
        if self.kernel_init not in KERNEL_INITS:
            raise ValueError(f"kernel_init must be one of {', '.join(KERNEL_INITS)}, got {self.kernel_init!r}")
        return {
            "lam": self.lam, "smooth_window": self.smooth_window, "smooth_freq": self.smooth_freq,
            "kernel_dropout": self.kernel_dropout, "init": KERNEL_INITS[self.kernel_init],
        }  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvolutionsConfig(TapsConfig):
    """Options of the mixers that the classifiers are made of."""

    num_convs: int = 2
    """Convolutions of every channel."""
    butterfly: bool = False
    """Learn the Fourier transforms; every step then reads the whole sequence, up to kernel_length steps or more."""
    kernel_lr: float | None = 1e-3
    """Largest peak learning rate of the taps; None for that of the other parameters."""

    def build_mixer(self, dim: int, kernel_length: int, bidirectional: bool, drop_rate: float) -> LongConvMixer:
        """The long convolutions of a block."""
        return LongConvMixer(
            dim, kernel_length, num_convs=self.num_convs, bidirectional=bidirectional, drop_rate=drop_rate,
            learning_rate=self.kernel_lr, conv=ButterflyLongConv if self.butterfly else BidirectionalLongConv,
            **self.tap_options(),
        )  # fmt: skip
