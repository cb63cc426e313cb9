"""SCEdit: tuners on the skip connections of a U-Net."""

from __future__ import annotations

import dataclasses
import math

from torch import nn

from zoo.adapt.method import Adapter
from zoo.generative.unet import UNet
from zoo.layers.adapt.skips import SkipTuner
from zoo.layers.precision import computes_in


@dataclasses.dataclass(frozen=True, kw_only=True)
class SCEdit(Adapter, kind="scedit"):
    """A small residual network on every skip connection of a U-Net (``unet``, ``koala``, ``sdxl``): the encoder is not
    differentiated at all. It is not linear and cannot be merged.

    The authors' tuners that follow an image of conditions (CSC-Tuner) are not here.

    Paper: see ``SkipTuner``; there the ratio is 1.
    """

    adds = ("down", "up")
    inner = "block"
    alone = True
    mergeable = False

    ratio: float = 1.0
    """Width of a tuner over the channels of its skip."""
    scale: float = 1.0
    """How much of the tuners acts; 0 for the model as it was."""

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """The residual blocks on the way up, each with a tuner of what it reads."""
        if not isinstance(model, UNet):
            raise ValueError(f"scedit takes a U-Net of zoo.generative, got {type(model).__name__}")
        if self.targets:
            raise ValueError(f"scedit tunes all skip connections, got targets {self.targets}")
        if not self.ratio > 0 or not math.isfinite(self.scale):
            raise ValueError(f"ratio must be above 0 and scale finite, got {self.ratio} and {self.scale}")
        like, skips = computes_in(model), model.skip_dims()
        made: dict[str, nn.Module] = {}
        for name, block in model.decoder_blocks():
            channels = skips.pop()
            made[name] = SkipTuner(block, channels, max(1, round(self.ratio * channels)), self.scale, like)
        return made
