"""How slots are kept in memory: as they are, in few bits, or elsewhere. What is kept is the policies' business."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from zoo.layers.options import require_at_least

PAGE = 4096  # bytes, the smallest there are


@dataclass(frozen=True)
class Store:
    """Keys and values as they are, on the device of the model. Subclasses encode them, or put them elsewhere.

    Attributes:
        where: "device", "host" or "disk".
        prefetches: a buffer is worth announcing before it is attended to.
    """

    where: ClassVar[str] = "device"
    prefetches: ClassVar[bool] = False

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        """Vectors (B, H, n, d) as tensors with the same first three dimensions, by the endings of their names."""
        return {"": x}

    def decode(self, parts: dict[str, Tensor], device: torch.device) -> Tensor:
        """The vectors again, on the device that computes."""
        return parts[""]

    def placed(self, buffer: Tensor) -> Tensor:
        """A new buffer where it is to be."""
        return buffer

    def prefetch(self, buffer: Tensor) -> None:
        """Begin to fetch a buffer that will be attended to soon, while something else is computed."""


@dataclass(frozen=True)
class Quantized(Store):
    r"""Codes of ``bits`` bits for groups of channels of each token.

    .. math:: c = \mathrm{round}((x - z) / s), \quad s = (\max x - \min x) / (2^{bits} - 1), \quad z = \min x

    The first call attends to exact keys and values, later ones to what the codes say.

    Args:
        bits: 8, or 4, of which two share a byte.
        group: channels with one scale s and zero z; all of a head where it has fewer, or no multiple of it.
    """

    bits: int = 8
    group: int = 32

    def __post_init__(self):
        if self.bits not in (4, 8):
            raise ValueError(f"bits must be 4 or 8, got {self.bits}")
        require_at_least(2, group=self.group)

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        """Codes (B, H, n, d or d / 2) uint8, scale and zero (B, H, n, groups).

        Raises:
            ValueError: for an odd number of channels in 4 bits.
        """
        if self.bits == 4 and x.shape[-1] % 2:
            raise ValueError(f"two channels share a byte of 4 bits each, got {x.shape[-1]} channels: take bits=8")
        groups = x.unflatten(-1, (-1, self.group)) if x.shape[-1] % self.group == 0 else x[..., None, :]
        low, high = groups.aminmax(dim=-1, keepdim=True)
        scale = ((high - low) / (2**self.bits - 1)).clamp(min=torch.finfo(x.dtype).tiny)
        codes = ((groups - low) / scale).round().clamp(0, 2**self.bits - 1).to(torch.uint8).flatten(-2)
        if self.bits == 4:
            codes = codes[..., ::2] | (codes[..., 1::2] << 4)
        return {".codes": codes, ".scale": scale[..., 0], ".zero": low[..., 0]}

    def decode(self, parts: dict[str, Tensor], device: torch.device) -> Tensor:
        """(B, H, n, d)."""
        codes, scale, zero = (parts[name].to(device) for name in (".codes", ".scale", ".zero"))
        if self.bits == 4:
            codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)
        groups = codes.unflatten(-1, (scale.shape[-1], -1)).to(scale.dtype)
        return (groups * scale[..., None] + zero[..., None]).flatten(-2)


@dataclass(frozen=True)
class Host(Store):
    """Keys and values in the memory of the host, fetched whenever they are attended to."""

    where: ClassVar[str] = "host"

    def decode(self, parts: dict[str, Tensor], device: torch.device) -> Tensor:
        """The vectors on the device."""
        return parts[""].to(device, non_blocking=True)

    def placed(self, buffer: Tensor) -> Tensor:
        """In pinned memory, where an accelerator is to read it."""
        return buffer if buffer.device.type == "cpu" else buffer.cpu().pin_memory()


@dataclass(frozen=True)
class Disk(Store):
    """Keys and values in memory-mapped files without a name, which are gone with the state.

    While a layer of a model attends, a thread reads the pages of the next one that is kept so.

    Args:
        folder: where there is room; the system's folder for temporary files when None.
    """

    where: ClassVar[str] = "disk"
    prefetches: ClassVar[bool] = True

    folder: str | None = None

    def decode(self, parts: dict[str, Tensor], device: torch.device) -> Tensor:
        """The vectors on the device."""
        return parts[""].to(device)

    def placed(self, buffer: Tensor) -> Tensor:
        """In a file."""
        if buffer.numel() == 0:
            return buffer
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            name = str(Path(folder) / "slots")
            mapped = torch.from_file(name, shared=True, size=buffer.numel(), dtype=buffer.dtype)
        return mapped.view(buffer.shape).copy_(buffer)

    def prefetch(self, buffer: Tensor) -> None:
        """Read a number of every page in a thread."""
        _thread().submit(touched, buffer)


@lru_cache(None)
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "zoo-prefetch")


def touched(buffer: Tensor) -> Tensor:
    """A number of every page of memory that a buffer (contiguous) lies in."""
    return buffer.view(-1)[:: max(1, PAGE // buffer.element_size())].clone()
