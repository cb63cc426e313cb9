"""From the form that trains to the form for inference."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def fuse(module: nn.Module) -> None:
    """Replace every submodule that has a method ``fuse()`` by what it returns, innermost first, in place."""
    for name, child in module.named_children():
        fuse(child)
        if hasattr(child, "fuse"):
            setattr(module, name, child.fuse())  # type: ignore[operator]
