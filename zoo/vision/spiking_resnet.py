"""Spiking ResNet: pre-activation residual blocks whose neurons send spikes for a few time steps.

Paper: Meng et al., "Towards Memory- and Time-Efficient Backpropagation for Training Spiking Neural Networks" (SLTT),
arXiv 2302.14311. Sizes are those of the authors' code (qymeng94/SLTT) for CIFAR-10 and CIFAR-100: the image is the
current of every step, and what is classified are the rates of the last spikes. All steps go through a layer at once
(the stem, which sees the same image in all of them, once); in training batch norms see all steps together, and one
after another where ``zoo train --memory sltt`` slices time, as the authors' code has it. Other than there the loss is
of the mean over steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from zoo.config import require_positive
from zoo.layers import ConvNorm, DropPath
from zoo.layers.batch_norm import MapNorm
from zoo.layers.spiking import LeakyIntegrateAndFire
from zoo.registry import Paper, register_model
from zoo.vision.hierarchical import HierarchicalConfig, HierarchicalModel, Run, Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpikingResNetConfig(HierarchicalConfig):
    """Options of the spiking ResNet."""

    dims: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    stem_strides: tuple[int, ...] = (1,)
    time_steps: int = 6
    """Steps for which an image is seen."""
    tau: float = 1.1
    """Time constant of the neurons, in steps."""
    crop_pct: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "time_steps")
        if self.tau < 1:
            raise ValueError(f"tau must be at least 1, got {self.tau}")
        if len(self.stem_strides) != 1:
            raise ValueError(f"the stem is one convolution, got stem_strides {self.stem_strides}")


class Repeated(nn.Module):
    """The convolution of an image, once for each step: (B, C, H, W) -> (steps B, dim, h, w)."""

    def __init__(self, in_dim: int, dim: int, stride: int, steps: int):
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, 3, stride, 1, bias=False)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        """All images of the first step, then those of the second."""
        return self.conv(x).repeat(self.steps, 1, 1, 1)


class SpikingBlock(nn.Module):
    """s = lif1(bn1(x)), y = conv2(lif2(conv1(s))) + shortcut(s), with a norm in conv1; a shortcut of the same shape is
    the identity."""

    def __init__(self, in_dim: int, dim: int, stride: int, neuron: Callable[[], nn.Module], drop_path: float):
        super().__init__()
        self.bn1, self.lif1 = MapNorm(in_dim), neuron()
        self.conv1, self.lif2 = ConvNorm(in_dim, dim, 3, stride, bias=True), neuron()
        self.conv2 = nn.Conv2d(dim, dim, 3, 1, 1)
        keeps = stride == 1 and in_dim == dim
        self.shortcut = nn.Identity() if keeps else nn.Conv2d(in_dim, dim, 1, stride)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x (steps B, in_dim, H, W) -> (steps B, dim, h, w)."""
        s = self.lif1(self.bn1(x))
        y = self.conv2(self.lif2(self.conv1(s)))
        return self.drop_path(y) + self.shortcut(s)


class LastStage(Stage):
    """A stage whose map is the spikes of the last neurons, behind a norm."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], dim: int, neuron: nn.Module):
        super().__init__(downsample, blocks)
        self.bn, self.lif = MapNorm(dim), neuron

    def run_blocks(self, x: Tensor, run: Run) -> Tensor:
        """Map (steps B, dim, H, W) -> spikes of the same shape."""
        return self.lif(self.bn(super().run_blocks(x, run)))


class SpikingResNet(HierarchicalModel):
    """Stages of spiking blocks on all time steps at once; spikes of the last map, their mean over steps and places.

    Attributes:
        through_time: computes the rates (B, dim, H, W) of images (B, C, H, W) in another way; None in this one.
    """

    config: SpikingResNetConfig
    through_time: Callable[[SpikingResNet, Tensor], Tensor] | None = None

    def __init__(self, config: SpikingResNetConfig):
        super().__init__(config)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def build_downsample(self, stage: int) -> nn.Module:
        """The stem; later stages begin with a block of stride 2."""
        c = self.config
        if stage:
            return nn.Identity()
        return nn.Sequential(Repeated(c.in_chans, c.dims[0], c.stem_strides[0], c.time_steps))

    def build_block(self, stage: int, index: int, drop_path: float) -> nn.Module:
        """One block."""
        dims = self.config.dims
        first = index == 0 and stage > 0
        return SpikingBlock(dims[stage - first], dims[stage], 2 if first else 1, self._neuron, drop_path)

    def build_stage(self, index: int, downsample: nn.Module, blocks: Sequence[nn.Module]) -> Stage:
        """A stage; the last one ends in spikes."""
        if index < len(self.config.dims) - 1:
            return super().build_stage(index, downsample, blocks)
        return LastStage(downsample, blocks, self.config.dim, self._neuron())

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to the rates of the last neurons, (B, dim, h, w)."""
        if self.through_time is not None:
            self._check(x)
            return self.through_time(self, x)
        return self.rates(self.spikes(x))

    def spikes(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to the last neurons' spikes, (steps B, dim, h, w)."""
        return super().forward_features(x)

    def rates(self, x: Tensor) -> Tensor:
        """Maps (steps B, ...) to their means over steps (B, ...)."""
        steps = self.stages[0].downsample[0].steps  # type: ignore[union-attr,index]
        return x.unflatten(0, (steps, x.shape[0] // steps)).mean(0)  # type: ignore[operator,arg-type]

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As of every model; the maps are means over steps."""
        found = super().forward_intermediates(x, *args, **kwargs)
        return (self.rates(found[0]), found[1]) if isinstance(found, tuple) else found

    def feature_map(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Its mean over steps."""
        return self.rates(x)

    def patch_tokens(self, x: Tensor) -> Tensor:
        """Map (steps B, dim, H, W) to tokens (B, H * W, dim)."""
        return super().patch_tokens(self.rates(x))

    @contextmanager
    def step_by_step(self) -> Iterator[None]:
        """Within it ``spikes`` computes one step: the neurons go on from the last call, and begin with 0."""
        parts: list[Any] = [one for one in self.modules() if isinstance(one, (Repeated, LeakyIntegrateAndFire))]
        checkpointing, self.grad_checkpointing = self.grad_checkpointing, False  # which would repeat a step out of turn
        try:
            for part in parts:
                part.steps, part.carries, part.carried = 1, True, None
            yield
        finally:
            self.grad_checkpointing = checkpointing
            for part in parts:
                part.steps, part.carries, part.carried = self.config.time_steps, False, None

    def _neuron(self) -> nn.Module:
        return LeakyIntegrateAndFire(self.config.time_steps, self.config.tau)


_register = partial(
    register_model, SpikingResNet, task="image-classification", family="spiking_resnet",
    paper=Paper(
        "Towards Memory- and Time-Efficient Backpropagation for Training Spiking Neural Networks", "2302.14311", 2023
    ),
)  # fmt: skip
_cifar = partial(
    SpikingResNetConfig, img_size=32, num_classes=10, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)
)


@_register()
def spiking_resnet_nano():
    return SpikingResNetConfig(
        img_size=8, in_chans=1, num_classes=10, mean=(0.305,), std=(0.376,), dims=(16, 32), depths=(1, 1)
    )


@_register()
def spiking_resnet18():
    return _cifar()


@_register()
def spiking_resnet34():
    return _cifar(depths=(3, 4, 6, 3))
