"""What a tracker remembers of frames: an encoder of pictures with masks, attention to them, and the state.

Papers: Ravi et al., "SAM 2", arXiv 2408.00714, and Xiong et al., "Efficient Track Anything", arXiv 2411.18933.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.dispatch import compute_dtype
from zoo.layers import recompute
from zoo.layers.attention.cross import MapAttention
from zoo.layers.conv import LayerNorm2d
from zoo.layers.positions import planar_tables

EPS = 1e-6  # of the norms of maps


def sine_positions(grid: tuple[int, int], dim: int, like: Tensor) -> Tensor:
    """(h w, dim), row by row: half of the channels say the row, half the column, as sines and cosines in turns of the
    share of the picture, from 2 pi to 2 pi / 10000; on the device and in the dtype of ``like``."""
    wide, half = compute_dtype(like), dim // 2
    places = {"device": like.device, "dtype": wide}
    wavelength = 10000.0 ** (2 * (torch.arange(half, device=like.device) // 2).to(wide) / half)
    axes = []
    for side in grid:
        share = torch.arange(1, side + 1, **places) / (side + EPS) * 2 * math.pi
        angle = share[:, None] / wavelength
        axes.append(torch.stack([angle[:, ::2].sin(), angle[:, 1::2].cos()], 2).flatten(1))
    rows, columns = axes[0][:, None].expand(*grid, -1), axes[1][None].expand(*grid, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1).to(like.dtype)


class ConvNeXtBlock(nn.Module):
    """x + gamma W_2 gelu(W_1 norm(conv(x))), the convolution depthwise over 7 x 7.

    Paper: Liu et al., "A ConvNet for the 2020s", arXiv 2201.03545.
    """

    def __init__(self, dim: int, kernel_size: int = 7, gamma: float = 1e-6):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, EPS)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), gamma))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, dim, h, w) -> the same."""
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class MemoryEncoder(nn.Module):
    """A map and the mask that was found in it to few channels.

    Args:
        dim, memory_dim: channels of the map and the memory.
        stride: pixels of the mask a place of the map, a power of 2.
        depth: ConvNeXt blocks.
    """

    def __init__(self, dim: int, memory_dim: int, stride: int, depth: int = 2):
        super().__init__()
        layers: list[nn.Module] = []
        for stage in range(stride.bit_length() - 1):
            layers += [nn.Conv2d(4**stage, 4 ** (stage + 1), 3, stride=2, padding=1)]
            layers += [LayerNorm2d(4 ** (stage + 1), EPS), nn.GELU()]
        self.mask_downsampler = nn.Sequential(*layers, nn.Conv2d(stride**2, dim, 1))
        self.pix_feat_proj = nn.Conv2d(dim, dim, 1)
        self.fuser = nn.Sequential(*(ConvNeXtBlock(dim) for _ in range(depth)))
        self.out_proj = nn.Conv2d(dim, memory_dim, 1)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """features (B, dim, h, w) and mask (B, 1, stride h, stride w) -> (B, h w, memory_dim)."""
        x = self.fuser(self.pix_feat_proj(features) + self.mask_downsampler(mask))
        return self.out_proj(x).flatten(2).mT


class MemoryLayer(nn.Module):
    """The map to itself, the map to the memories, and an MLP, each with a norm before and a sum after it."""

    def __init__(self, dim: int, memory_dim: int, mlp_dim: int, pool: int, drop_rate: float):
        super().__init__()
        self.self_attn = MapAttention(dim, 1, drop_rate=drop_rate)
        self.cross_attn_image = MapAttention(dim, 1, pool=pool, drop_rate=drop_rate, kv_dim=memory_dim)
        self.linear1, self.linear2 = nn.Linear(dim, mlp_dim), nn.Linear(mlp_dim, dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.drop = nn.Dropout(drop_rate)

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, tables: tuple[Tensor, Tensor], grid: tuple[int, int], maps: int
    ) -> Tensor:
        """x (B, N, dim), keys and values (B, M, memory_dim), see ``MapAttention`` -> (B, N, dim)."""
        y = self.norm1(x)
        x = x + self.drop(self.self_attn(y, y, y, tables, grid))
        x = x + self.drop(self.cross_attn_image(self.norm2(x), keys, values, tables, grid, maps))
        return x + self.drop(self.linear2(self.drop(F.relu(self.linear1(self.norm3(x))))))


class MemoryAttention(nn.Module):
    """The map of a frame, with a tenth of its places added, read beside memories of others.

    Args:
        dim, memory_dim, depth, mlp_dim: sizes.
        pool: side of the cells in which several memories are read, see ``MapAttention``.
        drop_rate: dropout of weights, branches and hidden units.
    """

    def __init__(self, dim: int, memory_dim: int, depth: int, mlp_dim: int, pool: int, drop_rate: float):
        super().__init__()
        self.layers = nn.ModuleList(MemoryLayer(dim, memory_dim, mlp_dim, pool, drop_rate) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, features: Tensor, memory: Tensor, places: Tensor, maps: int, recomputed: bool = False) -> Tensor:
        """features (B, dim, h, w) -> the same; of ``memory`` (B, M, memory_dim) the first ``maps`` h w tokens are maps,
        and ``places`` (M, memory_dim) are added to the keys alone."""
        grid = (features.shape[2], features.shape[3])
        x = features.flatten(2).mT + 0.1 * sine_positions(grid, features.shape[1], features)
        ys, xs = torch.meshgrid(*(torch.arange(side, device=x.device) for side in grid), indexing="ij")
        tables = planar_tables(torch.stack([xs, ys], -1).flatten(0, 1), x.shape[-1], dtype=x.dtype)
        known = (memory + places, memory, tables, grid, maps)
        for layer in self.layers:
            x = recompute(layer, x, *known) if recomputed else layer(x, *known)
        return self.norm(x).mT.unflatten(2, grid)


@dataclasses.dataclass
class Memory:
    """Of one frame. time: its number. tokens: (B, N, memory_dim), None when it is too long ago. pointer: (B, dim)."""

    time: int
    tokens: Tensor | None
    pointer: Tensor


@dataclasses.dataclass
class TrackState:
    """What is remembered of the frames so far.

    Attributes:
        frames: memories that are read at most, that of a prompted frame among them.
        pointers: vectors of objects that are read at most.
        time: frames seen. prompted: frames whose object was given, all of them. recent: the last of the others.
    """

    frames: int
    pointers: int
    time: int = 0
    prompted: list[Memory] = dataclasses.field(default_factory=list)
    recent: list[Memory] = dataclasses.field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Of all tensors; it stays where it is once enough frames have been seen."""
        kept = [tensor for memory in (*self.prompted, *self.recent) for tensor in (memory.tokens, memory.pointer)]
        return sum(tensor.nbytes for tensor in kept if tensor is not None)

    def add(self, tokens: Tensor, pointer: Tensor, prompted: bool) -> None:
        """Remember a frame, and forget what no later one reads."""
        (self.prompted if prompted else self.recent).append(Memory(self.time, tokens, pointer))
        self.time += 1
        self.recent = [memory for memory in self.recent if self.time - memory.time < max(self.frames, self.pointers)]
        for memory in self.recent:
            if self.time - memory.time >= self.frames:
                memory.tokens = None

    def read(self) -> tuple[list[tuple[int, Tensor]], list[Tensor]]:
        """(distance, tokens) of memories, 0 for a prompted frame, the oldest first; and pointers, the newest first."""
        maps = [(0, memory.tokens) for memory in self.prompted]
        maps += [(self.time - memory.time, memory.tokens) for memory in self.recent if memory.tokens is not None]
        near = [memory.pointer for memory in reversed(self.recent) if self.time - memory.time < self.pointers]
        return maps, [*(memory.pointer for memory in self.prompted), *near]  # type: ignore[return-value]
