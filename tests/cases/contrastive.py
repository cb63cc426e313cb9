"""Pairs for contrastive losses, and one of two processes that share a batch of them."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from zoo.train.contrastive import contrastive_loss


def features(count: int = 11, dim: int = 5) -> list[Tensor]:
    """Pairs and a scale, in float64, that need gradients."""
    generator = torch.Generator().manual_seed(0)
    made = [F.normalize(torch.randn(count, dim, dtype=torch.float64, generator=generator)) for _ in range(2)]
    return [tensor.requires_grad_() for tensor in (*made, torch.tensor(9.0, dtype=torch.float64))]


def value_and_gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def half(rank: int, address: str, folder: str) -> None:
    """A process with its half of ten pairs, which writes its loss and gradients to the folder."""
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    group, _ = dist.new_subgroups(2)
    x, y, scale = features(10)
    own = slice(5 * rank, 5 * rank + 5)
    inputs = [tensor.detach()[own].clone().requires_grad_() for tensor in (x, y)]
    loss = contrastive_loss(*inputs, scale, rows=2, group=group)
    torch.save(value_and_gradients(loss, [*inputs, scale]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
