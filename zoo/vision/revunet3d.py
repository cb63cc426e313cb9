"""Reversible 3-D U-Net: volumes to a logit for each class and voxel, in activation memory that depth does not add to.

Papers: Pendse et al., "Memory Efficient 3D U-Net with Reversible Mobile Inverted Bottlenecks for Brain Tumor
Segmentation", arXiv 2104.09648, for the inverted bottlenecks as branches of the couplings; Brügger et al., "A Partially
Reversible U-Net for Memory-Efficient Volumetric Image Segmentation", arXiv 1906.06148, and its authors' code
(RobinBruegger/PartiallyReversibleUnet) for all around them: widths, pooling, channel changes and sums with the encoder.
The first paper's widths, expansion and norms were not to be found: ``revunet3d`` has the widths of the second, and
MobileNetV2's expansion of 6.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from zoo.config import require_positive, require_ranges
from zoo.layers import ReversibleSequence, recompute
from zoo.layers.conv import MBConv3d
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class RevUNet3dConfig:
    """Options of the reversible U-Net."""

    img_size: int | tuple[int, int, int] = 128
    """Side, or (depth, height, width), of a usual volume in voxels; others go as well."""
    in_chans: int = 4
    """Channels of a volume."""
    num_classes: int = 3
    """Masks, which may overlap."""
    dims: tuple[int, ...] = (60, 120, 240, 360, 480)
    """Even channels of each level, finest first."""
    depth: int = 1
    """Reversible blocks of a level, in the encoder and again in the decoder."""
    expand_ratio: int = 6
    """Hidden channels of an ``MBConv3d`` over its channels."""
    kernel_size: int = 3
    """Side of an ``MBConv3d``'s depthwise kernel."""
    num_groups: int = 30
    """Groups of the group norms."""
    drop_rate: float = 0.0
    """Dropout of whole channels in an ``MBConv3d``."""
    reversible: bool = True
    """Recompute activations in the backward pass; False stores them and gives the same numbers."""

    def __post_init__(self):
        require_positive(self, "in_chans", "num_classes", "depth", "expand_ratio", "kernel_size", "num_groups")
        require_ranges(self)
        if not self.dims or any(dim < 2 or dim % 2 or dim // 2 % self.num_groups for dim in self.dims):
            raise ValueError(
                "dims must be even, as reversible layers halve the channels, and num_groups must divide the halves: "
                f"got dims {self.dims}, num_groups {self.num_groups}"
            )
        shape = self.image_shape
        if len(shape) != 3 or any(not isinstance(side, int) or side < 1 or side % self.stride for side in shape):
            raise ValueError(
                f"img_size must be one side or three, multiples of {self.stride} for {len(self.dims)} levels, "
                f"got {self.img_size!r}"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(depth, height, width) in voxels."""
        return (self.img_size,) * 3 if isinstance(self.img_size, int) else tuple(self.img_size)  # type: ignore[return-value]

    @property
    def stride(self) -> int:
        """Voxels of the input along a side of the coarsest voxel."""
        return 2 ** (len(self.dims) - 1)


class RevUNet3d(nn.Module):
    r"""The encoder halves the sides from level to level, the decoder doubles them and adds what the encoder had there.

    .. math::
        e_0 = \mathrm{rev}(\mathrm{stem}(x)), \quad e_i = \mathrm{rev}(W_i \, \mathrm{maxpool}(e_{i-1})) \\
        d_L = \mathrm{rev}(e_L), \quad d_i = \mathrm{rev}(e_i + \mathrm{upsample}(V_i d_{i+1})) \\
        y = \mathrm{head}(d_0)

    where rev is ``depth`` reversible blocks of two ``MBConv3d`` branches, and upsampling is trilinear.

    Attributes:
        config, grad_checkpointing: whether levels are recomputed as well, which leaves only what joins them in memory.
    """

    def __init__(self, config: RevUNet3dConfig):
        super().__init__()
        self.config = c = config
        self.grad_checkpointing = False
        self.stem = nn.Conv3d(c.in_chans, c.dims[0], 3, padding=1, bias=False)
        self.encoder = nn.ModuleList([nn.Sequential(self._blocks(c.dims[0]))])
        self.decoder = nn.ModuleList()
        for dim, coarser in pairwise(c.dims):
            self.encoder.append(nn.Sequential(nn.MaxPool3d(2), nn.Conv3d(dim, coarser, 1), self._blocks(coarser)))
            upsample = nn.Upsample(scale_factor=2, mode="trilinear")
            self.decoder.append(nn.Sequential(self._blocks(coarser), nn.Conv3d(coarser, dim, 1), upsample))
        self.last = self._blocks(c.dims[0])
        self.head = nn.Conv3d(c.dims[0], c.num_classes, 1)

    def _blocks(self, dim: int) -> ReversibleSequence:
        c = self.config
        branches = (
            MBConv3d(dim // 2, c.expand_ratio, c.kernel_size, num_groups=c.num_groups, drop_rate=c.drop_rate)
            for _ in range(2 * c.depth)
        )
        return ReversibleSequence(branches, recompute=c.reversible)

    def forward(self, x: Tensor) -> Tensor:
        """Volumes (B, in_chans, D, H, W), floating point, to logits (B, num_classes, D, H, W); sigmoid gives masks.

        Raises:
            ValueError: for another number of channels or axes, sides that are no multiples of the stride, or integers.
        """
        self._check(x)
        x, features = self.stem(x), []
        for level in self.encoder:
            x = self._run(level, x)
            features.append(x)
        for level, feature in zip(reversed(self.decoder), reversed(features[:-1]), strict=True):
            x = feature + self._run(level, x)
        return self.head(self._run(self.last, x))

    def no_weight_decay(self) -> set[str]:
        """No parameters beyond biases and norms."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each level in the backward pass, its pooling and its change of channels included."""
        self.grad_checkpointing = enable

    def _run(self, level: nn.Module, x: Tensor) -> Tensor:
        return recompute(level, x) if self.grad_checkpointing and self.training else level(x)

    def _check(self, x: Tensor) -> None:
        c = self.config
        if not x.is_floating_point():
            raise ValueError(f"volumes must be floating point, got {x.dtype}: convert to float and normalise")
        if x.dim() != 5 or x.shape[1] != c.in_chans:
            raise ValueError(
                f"volumes must have shape (batch, {c.in_chans}, depth, height, width), got {tuple(x.shape)}: "
                "create the model with in_chans=..."
            )
        if any(side % c.stride for side in x.shape[2:]):
            raise ValueError(
                f"the sides of a volume must be multiples of {c.stride}, as {len(c.dims)} levels halve them "
                f"{len(c.dims) - 1} times, got {tuple(x.shape[2:])}: pad or crop it"
            )


_register = partial(
    register_model,
    RevUNet3d,
    task="segmentation",
    family="revunet3d",
    paper=Paper(
        "Memory Efficient 3D U-Net with Reversible Mobile Inverted Bottlenecks for Brain Tumor Segmentation",
        "2104.09648",
        2021,
    ),
)


@_register()
def revunet3d_nano():
    return RevUNet3dConfig(img_size=16, in_chans=1, num_classes=2, dims=(16, 32, 48), expand_ratio=3, num_groups=4)


@_register()
def revunet3d():
    return RevUNet3dConfig()
