"""Layers that see a neighbourhood, a part of their output at a time: what a box of it needs, costs and is.

``zoo.vision.patches`` runs networks of them patch by patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import inf
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.conv import ConvBlock, ConvNorm, InferenceConv2d, InvertedResidual, ReLU6ConvNorm, SiLUConvNorm
from zoo.layers.conv.inference import ACTIVATIONS
from zoo.layers.drop import DropPath
from zoo.vision.hierarchical import Stage

INPLACE: dict[type, Any] = {ReLU6ConvNorm: nn.ReLU6, SiLUConvNorm: nn.SiLU}  # what follows the norm
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d, DropPath)  # at inference


class Box(NamedTuple):
    """Rows top to bottom and columns left to right of a map, ends not included."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def area(self) -> int:
        """Pixels."""
        return (self.bottom - self.top) * (self.right - self.left)


@dataclass(frozen=True)
class Window:
    """A layer whose output pixel depends on kernel x kernel input pixels, ``stride`` apart.

    compute: the layer without padding. out_dim: channels it gives, None for as many as it takes. macs: products an
    output pixel takes. fill: what lies beyond the border. inplace: it overwrites its input.
    """

    compute: Callable[[Tensor], Tensor]
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    out_dim: int | None = None
    macs: int = 0
    fill: float = 0.0
    inplace: bool = False

    def shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the whole output."""
        height, width = ((side + 2 * self.padding - self.kernel) // self.stride + 1 for side in shape)
        return height, width

    def wanted(self, box: Box) -> Box:
        """What an output box needs, also beyond the border."""
        first, last = self.stride, self.kernel - self.padding
        top, left = (start * first - self.padding for start in (box.top, box.left))
        bottom, right = ((end - 1) * first + last for end in (box.bottom, box.right))
        return Box(top, bottom, left, right)

    def reach(self, box: Box, shape: tuple[int, int]) -> Box:
        """The part of that within the map."""
        box = self.wanted(box)
        return Box(max(box.top, 0), min(box.bottom, shape[0]), max(box.left, 0), min(box.right, shape[1]))

    def run(self, x: list[Tensor], have: Box, out: Box, shape: tuple[int, int]) -> Tensor:
        """``x`` holds the one tensor of the box ``have``, and lets it go."""
        want, inputs = self.wanted(out), x.pop()
        if want != have:
            beyond = (have.left - want.left, want.right - have.right, have.top - want.top, want.bottom - have.bottom)
            inputs = F.pad(inputs, beyond, value=self.fill)
        return self.compute(inputs)

    def channels(self, dim: int) -> int:
        """Of the output, for ``dim`` of the input."""
        return self.out_dim or dim

    def cost(self, have: Box, out: Box, shape: tuple[int, int], dim: int, own: bool) -> tuple[int, int]:
        """(numbers that exist at most at a time, products) of ``run``; the input counts where it is its ``own``."""
        want, entering = self.wanted(out), have.area * dim if own else 0
        padded = want.area * dim if want != have else 0
        leaving = 0 if self.inplace and own else out.area * self.channels(dim)
        return max(entering + padded, (padded or entering) + leaving), self.macs * out.area


@dataclass(frozen=True)
class Residual:
    """steps(x) + x."""

    steps: tuple[Any, ...]

    def shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The same."""
        return shape

    def reach(self, box: Box, shape: tuple[int, int]) -> Box:
        """That of the steps, which holds the box itself."""
        return boxes(self.steps, shape, box)[0]

    def run(self, x: list[Tensor], have: Box, out: Box, shape: tuple[int, int]) -> Tensor:
        """As of ``Window``; the input stays until it is added."""
        inputs = x.pop()
        y = run_steps(self.steps, [inputs], shape, out)
        return y.add_(cut(inputs, have, out))

    def channels(self, dim: int) -> int:
        """The same."""
        return dim

    def cost(self, have: Box, out: Box, shape: tuple[int, int], dim: int, own: bool) -> tuple[int, int]:
        """As of ``Window``."""
        peak, macs = cost_of(self.steps, shape, out, dim, counts_input=False)
        return peak + (have.area * dim if own else 0), macs


@dataclass(frozen=True)
class ChannelGroups:
    """A fused inverted residual, without the addition, ``size`` channels of its wide map at a time.

    The wide map never exists whole: y is the sum over the groups of W_2 relu6(dw(relu6(W_1 x))). Nothing is computed
    twice. (TinyEngine, which the paper runs on, has the depthwise convolution overwrite its input to the same end.)
    """

    block: InvertedResidual
    depthwise: Window
    size: int

    def shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the whole output."""
        return self.depthwise.shape(shape)

    def reach(self, box: Box, shape: tuple[int, int]) -> Box:
        """What an output box needs."""
        return self.depthwise.reach(box, shape)

    def run(self, x: list[Tensor], have: Box, out: Box, shape: tuple[int, int]) -> Tensor:
        """As of ``Window``."""
        inputs, y = x.pop(), None
        expand, depthwise, project = self._convolutions()
        for group in _slices(depthwise.groups, self.size):
            wide = [_part(expand, inputs, group)]
            window = replace(self.depthwise, compute=partial(_part, depthwise, group=group))
            filtered = window.run(wide, have, out, shape)
            part = F.conv2d(filtered, project.weight[:, group], project.bias if y is None else None)
            y = part if y is None else y.add_(part)
            del filtered, part
        assert y is not None
        return y

    def channels(self, dim: int) -> int:
        """Of the output."""
        return self._convolutions()[2].out_channels

    def cost(self, have: Box, out: Box, shape: tuple[int, int], dim: int, own: bool) -> tuple[int, int]:
        """As of ``Window``."""
        expand, depthwise, project = self._convolutions()
        peak, output = 0, out.area * project.out_channels
        for number, group in enumerate(_slices(depthwise.groups, self.size)):
            size = group.stop - group.start
            most, _ = self.depthwise.cost(have, out, shape, size, own=True)
            peak = max(peak, (output if number else 0) + max(most, out.area * size + output))
        macs = have.area * expand.weight.numel() + out.area * (depthwise.weight.numel() + project.weight.numel())
        return peak + (have.area * dim if own else 0), macs

    def _convolutions(self) -> tuple[InferenceConv2d, InferenceConv2d, InferenceConv2d]:
        return self.block.expand, self.block.depthwise, self.block.project  # type: ignore[return-value]


def _part(conv: InferenceConv2d, x: Tensor, group: slice) -> Tensor:
    """Some of the channels that ``conv`` gives, without its padding; x holds those alone where it is depthwise."""
    assert conv.bias is not None
    groups = 1 if conv.groups == 1 else x.shape[1]
    y = F.conv2d(x, conv.weight[group], conv.bias[group], conv.stride, groups=groups)
    return ACTIVATIONS[conv.activation].function(y) if conv.activation else y


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def steps_of(*modules: nn.Module, channels: int | None = None) -> tuple[Any, ...]:
    """Layers in a row as ``Window``, ``Residual`` and, for wide maps ``channels`` at a time, ``ChannelGroups``.

    Raises:
        ValueError: for a layer that sees more than a neighbourhood, or of an unknown kind.
    """
    return tuple(step for module in modules for step in _steps(module, channels))


def _steps(module: nn.Module, channels: int | None) -> Sequence[Any]:
    if type(module) is Stage:  # others change the layout
        return steps_of(module.downsample, *module.blocks, channels=channels)
    if isinstance(module, nn.Sequential):
        return steps_of(*module, channels=channels)
    if isinstance(module, InvertedResidual):
        inner = steps_of(module.expand, module.depthwise, module.project)
        if channels is not None and isinstance(module.expand, InferenceConv2d):
            window = replace(_convolution(module.depthwise), out_dim=None)  # type: ignore[arg-type]
            inner = (ChannelGroups(module, window, channels),)
        return (Residual(inner),) if module.residual else inner
    if isinstance(module, ConvBlock):
        inner = steps_of(*module.layers, channels=channels)
        return (Residual(inner),) if module.residual else inner
    if isinstance(module, ConvNorm) and type(module) in (ConvNorm, *INPLACE):  # others compute more
        activation = INPLACE.get(type(module), nn.ReLU if module.relu else None)
        return (_convolution(module.conv), *steps_of(module.bn, *([activation(inplace=True)] if activation else [])))
    if isinstance(module, InferenceConv2d) and module.activation:
        return (_convolution(module), Window(ACTIVATIONS[module.activation].function, inplace=True))
    if isinstance(module, nn.Conv2d):
        return (_convolution(module),)
    if isinstance(module, nn.MaxPool2d) and not module.ceil_mode and module.dilation == 1:
        sides = (module.kernel_size, module.stride, module.padding)
        if all(isinstance(side, int) for side in sides):
            kernel, stride, padding = sides
            return (Window(lambda x: F.max_pool2d(x, kernel, stride), kernel, stride, padding, fill=-inf),)  # type: ignore[arg-type]
    if isinstance(module, (nn.ReLU, *INPLACE.values())) or (isinstance(module, nn.BatchNorm2d) and not module.training):
        return (Window(module, inplace=getattr(module, "inplace", False)),)
    if isinstance(module, NOTHING) and not (isinstance(module, (nn.Dropout, nn.Dropout2d)) and module.training):
        return ()
    raise ValueError(
        f"patches are for convolutions, poolings, batch norms and activations in eval mode, got {type(module).__name__}"
    )


def _convolution(conv: nn.Conv2d) -> Window:
    (kernel, width), (stride, _), padding = conv.kernel_size, conv.stride, conv.padding
    macs = conv.out_channels * conv.in_channels // conv.groups * kernel**2
    square = kernel == width and len(set(conv.stride)) == 1 and conv.dilation == (1, 1) and not isinstance(padding, str)
    if not square or padding[0] != padding[1] or conv.padding_mode != "zeros":  # type: ignore[misc]
        raise ValueError(f"patches need square kernels, strides and zero paddings without dilation, got {conv}")
    return Window(
        lambda x: F.conv2d(x, conv.weight, conv.bias, stride, 0, 1, conv.groups),
        kernel, stride, int(padding[0]), conv.out_channels, macs,
    )  # fmt: skip


def boxes(steps: Sequence[Any], shape: tuple[int, int], out: Box) -> list[Box]:
    """What the steps need for the box ``out`` of the last one's output: of the input, and of each step's output."""
    shapes = [shape]
    for step in steps[:-1]:
        shapes.append(step.shape(shapes[-1]))
    found = [out]
    for step, before in zip(reversed(steps), reversed(shapes), strict=True):
        found.append(step.reach(found[-1], before))
    return found[::-1]


def run_steps(steps: Sequence[Any], x: list[Tensor], shape: tuple[int, int], out: Box) -> Tensor:
    """The box ``out`` of the last output, from the tensor that ``x`` holds and lets go: what the steps need for it."""
    places = boxes(steps, shape, out)
    for step, (have, after) in zip(steps, pairwise(places), strict=True):
        x.append(step.run(x, have, after, shape))
        shape = step.shape(shape)
    return x.pop()


def whole_of(steps: Sequence[Any], shape: tuple[int, int]) -> Box:
    """The output of all the steps, of an input (height, width)."""
    for step in steps:
        shape = step.shape(shape)
    return Box(0, shape[0], 0, shape[1])


def cut(x: Tensor, have: Box, want: Box) -> Tensor:
    """The box ``want`` of x, which is the box ``have``."""
    return x[:, :, want.top - have.top : want.bottom - have.top, want.left - have.left : want.right - have.left]


def channels_of(steps: Sequence[Any], dim: int) -> int:
    """Of the last output, for ``dim`` of the input."""
    for step in steps:
        dim = step.channels(dim)
    return dim


def cost_of(steps: Sequence[Any], shape: tuple[int, int], out: Box, dim: int, counts_input: bool) -> tuple[int, int]:
    """(numbers that exist at most at a time, products) of ``run_steps``; the input counts while it is needed."""
    peak, macs, own = 0, 0, counts_input
    for step, (have, after) in zip(steps, pairwise(boxes(steps, shape, out)), strict=True):
        most, products = step.cost(have, after, shape, dim, own)
        peak, macs, own = max(peak, most), macs + products, True
        dim, shape = step.channels(dim), step.shape(shape)
    return peak, macs
