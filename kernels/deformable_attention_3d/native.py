"""3D deformable attention on the CPU in C (``deformable_attention_3d.c``), factorised, with its gradients."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from zoo.kernels import native

SOURCE = Path(__file__).with_name("deformable_attention_3d.c")


def forward(value: Tensor, depth: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Same arguments and results as the reference, contiguous and of one dtype."""
    tensors = (value, depth, locations, weights)
    y = value.new_empty(*locations.shape[:3], value.shape[4])
    native.call(SOURCE, "deformable_attention_3d_forward", *_sizes(*tensors), *tensors, y)
    return y


def backward(
    dy: Tensor, value: Tensor, depth: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of all inputs; that of the depth is summed head by head first, as heads are threads."""
    tensors = (value, depth, locations, weights)
    dvalue, dlocations, dweights = torch.zeros_like(value), torch.empty_like(locations), torch.empty_like(weights)
    ddepth = depth.new_zeros(value.shape[3], *depth.shape)
    native.call(
        SOURCE, "deformable_attention_3d_backward", *_sizes(*tensors), dy.contiguous(), *tensors, dvalue, ddepth,
        dlocations, dweights,
    )  # fmt: skip
    return dvalue, ddepth.sum(0), dlocations, dweights


def obstacle(device: torch.device) -> str | None:
    """Why this implementation cannot run on ``device``, or None."""
    return native.obstacle(SOURCE, device)


def _sizes(value: Tensor, depth: Tensor, locations: Tensor, weights: Tensor) -> tuple[int, ...]:
    return (*value.shape, depth.shape[3], locations.shape[1], locations.shape[3], torch.get_num_threads())
