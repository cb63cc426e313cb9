r"""Block fusion: all layers of a residual block on one tile of the map after another.

Between its layers only a tile exists, where the plain run writes a wide map out and reads it again. A tile needs a halo
of the block's input; ``ConvFirst``, whose pointwise layers come last, computes nothing twice, ``MBConv`` widens the
halo again for every tile. Zeros are padded only where a layer meets the true border of its map: the result is that of
the plain run. Here the tiles are torch's calls, so that what they save is memory; the paper's are one kernel of a GPU.

Paper: Lavin, "On the Efficiency of Convolutional Neural Networks", arXiv 2404.03617.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from zoo.layers.conv import ConvBlock, InvertedResidual
from zoo.vision.hierarchical import HierarchicalModel
from zoo.vision.patches import cut_up, patch_inference
from zoo.vision.windows import Box, Residual, boxes, channels_of, cost_of, steps_of, whole_of

BLOCKS = (ConvBlock, InvertedResidual)


class TiledBlock(nn.Module):
    """A residual block in eval mode, run in tiles of ``tile`` x ``tile`` pixels of its output."""

    def __init__(self, block: nn.Module, tile: int):
        super().__init__()
        self.block, self.tile = block, tile

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_dim, H, W) -> (B, out_dim, H', W'), as of the block."""
        steps = steps_of(self.block)
        return patch_inference(steps, x, _grid(whole_of(steps, (x.shape[2], x.shape[3])), self.tile))


def fuse_blocks(model: HierarchicalModel, tile: int = 32) -> HierarchicalModel:
    """Bring the model into its form for inference (``fuse()``) with every residual block of convolutions a
    ``TiledBlock``, in place, and return it.

    Args:
        tile: side in pixels of a block's output; the last tiles may be smaller.

    Raises:
        ValueError: for a tile below 1, or a model without such blocks.
    """
    if tile < 1:
        raise ValueError(f"tile must be at least 1, got {tile}")
    found = [(parent, name) for parent in model.modules() for name, child in parent.named_children() if _fits(child)]
    if not found:
        raise ValueError(f"{type(model).__name__} has no residual blocks of convolutions alone: run it as it is")
    model.fuse()
    for parent, name in found:
        setattr(parent, name, TiledBlock(getattr(parent, name), tile))
    return model


@dataclass(frozen=True)
class BlockTraffic:
    """What a block costs in tiles, for an image of the configuration's size. Weights are not counted, nor the read of
    the input that is added.

    Attributes:
        name: dotted.
        macs, tiled_macs: products, plain and with what tiles compute twice.
        bytes: read and written by the convolutions one after the other, activations and norms with them.
        tiled_bytes: read, halos included, and written by the tiles.
        workspace, tiled_workspace: bytes between the layers that exist at most at a time, with the output.
    """

    name: str
    macs: int
    tiled_macs: int
    bytes: int
    tiled_bytes: int
    workspace: int
    tiled_workspace: int


def block_traffic(model: HierarchicalModel, tile: int = 32, *, bytes_per_number: int = 4) -> list[BlockTraffic]:
    """The cost of every residual block, plain and in tiles. Fuse the model first (``model.fuse()``)."""
    shape, dim, found = model.config.image_shape, model.config.in_chans, []
    for name, layer in _layers(model):
        steps = steps_of(layer)
        whole, out_dim = whole_of(steps, shape), channels_of(steps, dim)
        if _fits(layer):
            plain = cost_of(steps, shape, whole, dim, counts_input=False)
            moved = sum(_moved(steps, shape, whole, dim))
            most = macs = read = 0
            tiles = cut_up(whole, _grid(whole, tile))
            for box in tiles:
                peak, products = cost_of(steps, shape, box, dim, counts_input=False)
                most, macs = max(most, peak), macs + products
                read += boxes(steps, shape, box)[0].area * dim
            output = whole.area * out_dim
            held = most + output if len(tiles) > 1 else most
            sizes = (size * bytes_per_number for size in (moved, read + output, plain[0], held))
            found.append(BlockTraffic(name, plain[1], macs, *sizes))
        shape, dim = (whole.bottom, whole.right), out_dim
    return found


def _layers(model: HierarchicalModel) -> Iterator[tuple[str, nn.Module]]:
    """Of the stages, in their order."""
    for index, stage in enumerate(model.stages):
        yield f"stages.{index}.downsample", stage.downsample  # type: ignore[misc]
        for number, block in enumerate(stage.blocks):  # type: ignore[arg-type]
            yield f"stages.{index}.blocks.{number}", block


def _fits(module: Any) -> bool:
    return isinstance(module, BLOCKS)


def _grid(whole: Box, tile: int) -> tuple[int, int]:
    return -(-whole.bottom // tile), -(-whole.right // tile)


def _moved(steps: Sequence[Any], shape: tuple[int, int], out: Box, dim: int) -> Iterator[int]:
    """Numbers that each layer reads and writes; what overwrites its input belongs to the layer before."""
    for step, (have, after) in zip(steps, pairwise(boxes(steps, shape, out)), strict=True):
        if isinstance(step, Residual):
            yield from _moved(step.steps, shape, after, dim)
        elif not step.inplace:
            yield have.area * dim + after.area * step.channels(dim)
        dim, shape = step.channels(dim), step.shape(shape)
