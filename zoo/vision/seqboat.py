"""SeqBoat over pixel sequences: averages from both sides, and attention among the pixels that a router activates.

Paper: Ren et al., "Sparse Modular Activation for Efficient Sequence Modeling", arXiv 2306.11197. The sizes
``seqboat_pixel_lra_*`` are those of the authors' scripts for the image tasks of the Long Range Arena (arXiv 2011.04006;
renll/SeqBoat, experiment/run_lra_*.sh), with their sinusoids added to the pixels. Where the house differs: the
classifier is linear, where theirs has a hidden layer; averages are as long as the sequence, where theirs are cut at
1024 steps (16384 for Path-X); tokens are always compressed, see ``seqboat``.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
from torch import Tensor, nn

from zoo.layers.depth import SparseActivationBlock
from zoo.registry import Paper, register_model
from zoo.sparse_activation import SparseActivationConfig
from zoo.vision.pixels import PixelConfig, PixelModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeqBoatPixelConfig(SparseActivationConfig, PixelConfig):
    """Options of SeqBoat over pixels."""

    attention: str = "relu2"
    """How logits become weights, "softmax" or "relu2"."""

    def __post_init__(self):
        super().__post_init__()
        if not self.bidirectional or self.dim % 2:
            raise ValueError(
                f"SeqBoat over pixels reads from both sides and has an even dim, got bidirectional {self.bidirectional}"
                f" and dim {self.dim}"
            )


class SeqBoatPixel(PixelModel):
    """A linear map of each pixel and its place, sparsely activated blocks, and a classifier of the pooled pixels."""

    config: SeqBoatPixelConfig

    def __init__(self, config: SeqBoatPixelConfig):
        super().__init__(config)
        self.place_scale = nn.Parameter(torch.full((1,), config.dim**-0.5))

    def build_block(self, drop_path: float) -> nn.Module:
        """Norm, averages and gated attention."""
        c = self.config
        mixer = c.build_mixer(c.dim, c.mixer_drop_rate)
        return SparseActivationBlock(c.dim, mixer, self.norm_layer, c.prenorm, drop_path)

    def forward_embed(self, x: Tensor) -> Tensor:
        """Each pixel by itself, in raster order, and sinusoids of its place."""
        x = super().forward_embed(x)
        pairs = torch.arange(0, x.shape[2], 2, device=x.device, dtype=torch.float64)
        angle = torch.arange(x.shape[1], device=x.device)[:, None] * 10000.0 ** (-pairs / x.shape[2])
        return x + self.place_scale * torch.cat([angle.sin(), angle.cos()], -1).to(x.dtype)


_register = partial(
    register_model,
    SeqBoatPixel,
    task="image-classification",
    family="seqboat_pixel",
    paper=Paper("Sparse Modular Activation for Efficient Sequence Modeling", "2306.11197", 2023),
)
_pathfinder = partial(SeqBoatPixelConfig, num_classes=2, dim=128, hidden_dim=256, qk_dim=64, temperature=1.0)


@_register()
def seqboat_pixel_nano():
    return SeqBoatPixelConfig(
        img_size=8, num_classes=10, dim=48, depth=3, hidden_dim=96, qk_dim=24, d_state=8, window=16, max_distance=63,
        temperature=0.4, mean=(0.305,), std=(0.376,),
    )  # fmt: skip


@_register()
def seqboat_pixel_lra_image():
    return SeqBoatPixelConfig(
        num_classes=10, dim=160, depth=8, hidden_dim=320, qk_dim=96, max_distance=1023, temperature=0.4, mean=(0.48,),
        std=(0.24,),
    )  # fmt: skip


@_register()
def seqboat_pixel_lra_pathfinder():
    return _pathfinder(max_distance=1023)


@_register()
def seqboat_pixel_lra_pathx():
    return _pathfinder(img_size=128, depth=4, window=256, max_distance=128 * 128 - 1)
