"""SimpleNet: thirteen convolutions in a row, with nothing beside them.

Paper: Hasanpour et al., "Lets keep it simple, Using simple architectures to outperform deeper and more complex
architectures", arXiv 1608.06037. Sizes are those of the authors' code (Coderx7/SimpleNet_Pytorch): the ImageNet models
differ in which of the first convolutions have stride 2 (``m1``: the first three, ``m2``: the first two and the fourth;
their weights have the same shapes but are not interchangeable) and in their widths.

``simplenetv1_cifar_460k`` is the network of their Caffe files, whose 455,862 parameters grow by the 584 of three batch
norms (it has none there); the list of that name in their PyTorch code gives 385,790.

The authors' CIFAR weights were trained with one more pooling, behind the 512 channels, which took no parameters:
``simplenetv1_cifar_5m`` with ``depths=(3, 3, 2, 1, 2, 1), dims=(128, 256, 256, 512, 256, 256)``. Their ImageNet
weights from before April 2023 were trained with a padding around the 1x1 convolutions and do not fit.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from itertools import accumulate
from math import ceil, prod

from torch import nn

from zoo.layers import ConvNorm
from zoo.registry import Paper, register_model
from zoo.vision.hierarchical import HierarchicalConfig, HierarchicalModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimpleNetConfig(HierarchicalConfig):
    """Options of SimpleNet. ``depths`` are the convolutions of each stage, in the first without the stem's; a
    pooling stands between two stages. ``stem_strides`` and ``drop_path_rate`` have no meaning."""

    widths: tuple[int, ...]
    """Output channels of every convolution, the stem's first; dims must be those that end the stages."""
    pointwise: tuple[int, ...] = ()
    """Which convolutions are 1x1 instead of 3x3."""
    strided: tuple[int, ...] = ()
    """Which convolutions have stride 2."""
    conv_drop_rate: float = 0.0
    """Dropout of whole channels after every convolution but the last."""
    stem_strides: tuple[int, ...] = (1,)
    global_pool: str = "max"

    def __post_init__(self):
        super().__post_init__()
        if len(self.widths) != 1 + sum(self.depths):
            raise ValueError(f"widths must hold 1 + sum(depths) = {1 + sum(self.depths)} channels, got {self.widths}")
        ends = tuple(self.widths[depth] for depth in accumulate(self.depths))
        if ends != self.dims:
            raise ValueError(f"dims must be the widths that end the stages, {ends}, got {self.dims}")
        for field in ("pointwise", "strided"):
            if not set(getattr(self, field)) <= set(range(len(self.widths))):
                raise ValueError(f"{field} must hold indices into widths, got {getattr(self, field)}")
        if self.drop_path_rate or self.stem_strides != (1,):
            raise ValueError(
                "SimpleNet has no residual branches to drop and says its strides by strided, got drop_path_rate "
                f"{self.drop_path_rate}, stem_strides {self.stem_strides}"
            )

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of a stage's input that a pixel of its output stands for, along each side."""
        ends = list(accumulate(self.depths))
        starts = [0, *(end + 1 for end in ends[:-1])]
        own = [prod(2 for i in self.strided if a <= i <= b) for a, b in zip(starts, ends, strict=True)]
        return (own[0], *(2 * stride for stride in own[1:]))

    def map_shapes(self, height: int, width: int) -> list[tuple[int, int]]:
        """(height, width) of each stage's map: the poolings round down, convolutions with a stride up."""
        shapes = [(height, width)]
        for stage, stride in enumerate(self.strides):
            pooling = 2 if stage else 1
            shapes.append(tuple(ceil(side // pooling / (stride // pooling)) for side in shapes[-1]))  # type: ignore[arg-type]
        return shapes[1:]


class SimpleNet(HierarchicalModel):
    r"""Stages of convolutions with batch norm and ReLU, max pooling between them and at the end, classifier.

    .. math:: x_{i+1} = \mathrm{relu}(\mathrm{bn}(W_i * x_i))
    """

    config: SimpleNetConfig

    def __init__(self, config: SimpleNetConfig):
        super().__init__(config)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.05
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight, nn.init.calculate_gain("relu"))

    def build_downsample(self, stage: int) -> nn.Module:
        """The first convolution, then poolings."""
        return nn.MaxPool2d(2, 2) if stage else nn.Sequential(*self._convolution(0))

    def build_block(self, stage: int, index: int, drop_path: float) -> nn.Module:
        """One convolution and its dropout."""
        layers = self._convolution(1 + sum(self.config.depths[:stage]) + index)
        return layers[0] if len(layers) == 1 else nn.Sequential(*layers)

    def _convolution(self, place: int) -> list[nn.Module]:
        c = self.config
        kernel, stride = 1 if place in c.pointwise else 3, 2 if place in c.strided else 1
        before = c.widths[place - 1] if place else c.in_chans
        conv = ConvNorm(before, c.widths[place], kernel, stride, relu=True, bias=True)
        dropped = c.conv_drop_rate > 0 and place < len(c.widths) - 1
        return [conv, nn.Dropout2d(c.conv_drop_rate)] if dropped else [conv]


_register = partial(
    register_model, SimpleNet, task="image-classification", family="simplenet",
    paper=Paper(
        "Lets keep it simple, Using simple architectures to outperform deeper and more complex architectures",
        "1608.06037", 2016,
    ),
)  # fmt: skip
_M1, _M2 = (0, 1, 2), (0, 1, 3)


def _imagenet(strided: tuple[int, ...], widths: tuple[int, ...]) -> SimpleNetConfig:
    return SimpleNetConfig(
        widths=widths, depths=(5, 4, 3), dims=(widths[5], widths[9], widths[12]), pointwise=(10, 11), strided=strided
    )


def _scaled(scale: float) -> tuple[int, ...]:
    return tuple(round(width * scale) for width in (64, *[128] * 5, 256, 256, 256, 512, 2048, 256, 256))


_WIDE = (128, *[192] * 5, 320, 320, 320, 640, 2560, 320, 320)


@_register()
def simplenet_nano():
    return SimpleNetConfig(
        img_size=8, in_chans=1, num_classes=10, mean=(0.305,), std=(0.376,), crop_pct=1.0,
        widths=(16, 32, 32, 48, 48, 128, 48), depths=(2, 2, 2), dims=(32, 48, 48), pointwise=(5,),
    )  # fmt: skip


@_register()
def simplenetv1_small_m1_05():
    return _imagenet(_M1, _scaled(0.5))


@_register()
def simplenetv1_small_m2_05():
    return _imagenet(_M2, _scaled(0.5))


@_register()
def simplenetv1_small_m1_075():
    return _imagenet(_M1, _scaled(0.75))


@_register()
def simplenetv1_small_m2_075():
    return _imagenet(_M2, _scaled(0.75))


@_register()
def simplenetv1_5m_m1():
    return _imagenet(_M1, _scaled(1))


@_register()
def simplenetv1_5m_m2():
    return _imagenet(_M2, _scaled(1))


@_register()
def simplenetv1_9m_m1():
    return _imagenet(_M1, _WIDE)


@_register()
def simplenetv1_9m_m2():
    return _imagenet(_M2, _WIDE)


def _cifar(widths: tuple[int, ...], pointwise: tuple[int, ...] = (10, 11)) -> SimpleNetConfig:
    return SimpleNetConfig(
        img_size=32, num_classes=10, mean=(0.4914, 0.4824, 0.4467), std=(0.2471, 0.2435, 0.2616), crop_pct=1.0,
        widths=widths, depths=(3, 3, 2, 3, 1), dims=tuple(widths[end] for end in (3, 6, 8, 11, 12)),
        pointwise=pointwise,
    )  # fmt: skip


@_register()
def simplenetv1_cifar_5m():
    return _cifar((64, 128, 128, 128, 128, 128, 256, 256, 256, 512, 2048, 256, 256))


@_register()
def simplenetv1_cifar_310k():
    return _cifar((64, 32, 32, 32, 32, 32, 64, 64, 64, 128, 256, 64, 64))


@_register()
def simplenetv1_cifar_460k():
    return _cifar((32, 32, 32, 64, 64, 64, 64, 64, 64, 96, 96, 96, 100), pointwise=(12,))
