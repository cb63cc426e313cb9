r"""Patch-based inference: the first layers of a network run on one patch of the image after another.

The maps of the first layers are the largest of a network; computed patch by patch, only the map that the last of them
gives exists whole. A patch of that map needs a larger one of every map before it, by the kernels' reach, so that
neighbouring patches overlap and some of the work is done twice. Zeros are padded only where a layer meets the true
border of its map: the result is that of the plain run. Where the wide maps of later inverted residuals decide the peak,
``ChannelGroups`` computes them some channels at a time.

Paper: Lin et al., "MCUNetV2: Memory-Efficient Patch-based Inference for Tiny Deep Learning", arXiv 2110.15352.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from zoo.vision.hierarchical import HierarchicalModel
from zoo.vision.windows import Box, boxes, channels_of, cost_of, cut, run_steps, steps_of, whole_of


@dataclass(frozen=True)
class MemoryPlan:
    """What a run costs: the largest sum of maps in bytes that exist at a time, the image and the weights not counted,
    and the products (MACs) of convolutions; by patches in a grid of ``grid`` x ``grid`` over ``stages`` stages, with
    ``channels`` of the wide maps of inverted residuals at a time (None: all)."""

    stages: int
    grid: int
    peak: int
    macs: int
    channels: int | None = None


def plan(
    model: HierarchicalModel,
    stages: int = 0,
    grid: int = 1,
    channels: int | None = None,
    *,
    bytes_per_number: int = 4,
) -> MemoryPlan:
    """What ``PatchedModel(model, stages, grid, channels)`` needs for an image of the configuration's size; plain for
    the defaults.

    The figures are those of the convolutions as they are run here: input and output exist together, activations and
    sums overwrite, patches at the border are copied once to be padded. Fuse the model first: a batch norm of its own
    is one more copy.
    """
    shape, (first, rest) = model.config.image_shape, _halves(model, stages, channels)
    peak, macs, dim, held = 0, 0, model.config.in_chans, 0
    if first:
        whole, out_dim = whole_of(first, shape), channels_of(first, dim)
        held = whole.area * out_dim if grid > 1 else 0
        for box in cut_up(whole, grid):
            most, products = cost_of(first, shape, box, dim, counts_input=False)
            peak, macs = max(peak, held + most), macs + products
        shape, dim = (whole.bottom, whole.right), out_dim
    if rest:
        most, products = cost_of(rest, shape, whole_of(rest, shape), dim, counts_input=bool(first))
        peak, macs = max(peak, most), macs + products
    return MemoryPlan(stages, grid if stages else 1, peak * bytes_per_number, macs, channels)


def best_plan(
    model: HierarchicalModel,
    limit: int,
    grids: Sequence[int] = (2, 3, 4, 6, 8),
    groups: Sequence[int | None] = (None, 32, 16, 8),
) -> MemoryPlan:
    """The plan with the fewest products whose peak is at most ``limit`` bytes, and of those the first of ``groups``,
    sizes of groups of channels; the plain one where that fits.

    Raises:
        ValueError: when none fits, with the smallest peak there is.
    """
    cuts = [(0, 1), *((stages, grid) for stages in range(1, len(model.stages)) for grid in grids)]
    options = [plan(model, *cut, channels) for channels in groups for cut in cuts]
    fitting = [option for option in options if option.peak <= limit]
    if not fitting:
        least = min(options, key=lambda option: option.peak)
        raise ValueError(f"no plan needs at most {limit:,} bytes; the least is {least.peak:,} with {least}")
    return min(fitting, key=lambda option: (option.macs, groups.index(option.channels), option.peak))


class PatchedModel(nn.Module):
    """A hierarchical model whose first stages run patch by patch; the same outputs in less memory, for inference.

    Args:
        model: in eval mode, best fused; of convolutions, poolings and inverted residuals in the first ``stages``.
        stages: stages that run by patches.
        grid: patches a side of their output, which need not divide it.
        channels: of the wide map of a fused inverted residual, in all stages, so many exist at a time; None: all.

    Raises:
        ValueError: for numbers out of range, or layers that see more than a neighbourhood.
    """

    def __init__(self, model: HierarchicalModel, stages: int, grid: int, channels: int | None = None):
        super().__init__()
        if model.training:
            raise ValueError("patches are for inference: call model.eval(), or model.fuse(), before")
        if not 0 <= stages <= len(model.stages) or grid < 1:
            raise ValueError(f"stages must be from 0 to {len(model.stages)} and grid at least 1, got {stages}, {grid}")
        if channels is not None and channels < 1:
            raise ValueError(f"channels must be at least 1, or None for all at once, got {channels}")
        self.model, self.stages, self.grid, self.channels = model, stages, grid, channels
        self.first, self.rest = _halves(model, stages, channels)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, num_classes)."""
        self.model._check(x)
        x = patch_inference(self.first, x, self.grid) if self.first else x
        shape = (x.shape[2], x.shape[3])
        if self.rest:
            holder, last = [x], whole_of(self.rest, shape)
            del x
            x = run_steps(self.rest, holder, shape, last)
        return self.model.forward_head(x)


def patch_inference(steps: Sequence[Any], x: Tensor, grid: int | tuple[int, int]) -> Tensor:
    """The output of ``steps_of`` layers on x (B, C, H, W), computed in patches, ``grid`` (rows, columns) of them."""
    shape = (x.shape[2], x.shape[3])
    whole, out = whole_of(steps, shape), None
    patches = cut_up(whole, grid)
    for box in patches:
        need = boxes(steps, shape, box)[0]
        patch = run_steps(steps, [cut(x, Box(0, shape[0], 0, shape[1]), need)], shape, box)
        if len(patches) == 1:
            return patch
        if out is None:
            out = patch.new_empty(*patch.shape[:2], whole.bottom, whole.right)
        out[:, :, box.top : box.bottom, box.left : box.right] = patch
        del patch
    assert out is not None
    return out


def _halves(model: HierarchicalModel, stages: int, channels: int | None) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    first, rest = (steps_of(*part, channels=channels) for part in (model.stages[:stages], model.stages[stages:]))
    return first, rest


def cut_up(whole: Box, grid: int | tuple[int, int]) -> list[Box]:
    """Patches in rows, as many rows and columns for one number; where there are fewer pixels some are left out."""
    counts = (grid, grid) if isinstance(grid, int) else grid
    edges = [[side * i // n for i in range(n + 1)] for side, n in zip((whole.bottom, whole.right), counts, strict=True)]
    spans = [[span for span in pairwise(edge) if span[0] < span[1]] for edge in edges]
    return [Box(*rows, *columns) for rows in spans[0] for columns in spans[1]]
