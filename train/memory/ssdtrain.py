"""SSDTrain: activations in a file, written while the forward pass computes and read while the backward pass does."""

from __future__ import annotations

import dataclasses
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor, nn, strided
from torch.autograd.graph import saved_tensors_hooks

from zoo.layers.options import require_at_least
from zoo.train.memory.method import Memory
from zoo.train.memory.spool import Put, Spool


@dataclasses.dataclass(frozen=True, kw_only=True)
class SSDTrain(Memory, kind="ssdtrain"):
    """What autograd keeps for the backward pass is in memory while it is new, and in a file later.

    Of any model and recipe, and the gradients are equal to the bit. The newest activations are needed first, so they
    are never written (the authors find by a profile how many of the last modules to keep; here it is a number of
    bytes). On the CPU the file replaces the process's memory; the system may still hold it in its cache of files.

    Paper: Wu et al., "SSDTrain", arXiv 2408.10013.
    """

    saves = "room for activations"

    folder: str | None = None
    """Where the file is, which has no name and is gone with the process; None for the system's temporary files."""
    resident: int = 64 * 2**20
    """Bytes of the newest activations that stay in memory; as many more may wait to be written, or be read ahead."""
    smallest: int = 2**16
    """Bytes of a tensor that is worth a write; smaller ones stay."""

    def check(self, model: nn.Module) -> None:
        """Any model, on a system that reads and writes at a place of a file."""
        require_at_least(0, resident=self.resident, smallest=self.smallest)
        if not hasattr(os, "preadv"):
            raise ValueError("ssdtrain needs reads and writes at a place of a file (POSIX): take checkpointing")
        if self.folder is not None and not Path(self.folder).is_dir():
            raise ValueError(f"ssdtrain: folder must exist, got {self.folder}")

    def forward(self, model: nn.Module) -> AbstractContextManager[Any]:
        """What is saved goes into a spool of its own, which ends with the graph."""
        spool = Spool(self.folder, self.resident)
        apart = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}

        def pack(tensor: Tensor) -> Tensor | Put:
            if not is_bytes(tensor) or tensor.nbytes < self.smallest or tensor.untyped_storage()._cdata in apart:
                return tensor
            return spool.put(tensor)

        return saved_tensors_hooks(pack, unpack)


def is_bytes(tensor: Tensor) -> bool:
    """Whether a tensor is what lies in its storage, seen by strides, perhaps conjugated or negated."""
    plain = type(tensor) is Tensor and tensor.layout is strided and tensor.device.type != "meta"
    return plain and not tensor.is_quantized and not tensor._is_zerotensor()


def unpack(packed: Tensor | Put) -> Tensor:
    """The tensor that was packed."""
    return packed if isinstance(packed, Tensor) else packed.get()
