"""Tensors that stay wide, however a model is cast."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from zoo.kernels.dispatch import AUTOCAST_DEVICES, compute_dtype


class KeepsFloat32(nn.Module):
    """A module whose named tensors are at least float32 in a low-precision model.

    Every cast (``to``, ``bfloat16``, ``half``, ``create_model(dtype=...)``, Lightning's "bf16-true") goes through
    ``_apply``, where these tensors are kept unrounded; those made or assigned in a narrower dtype are widened.

    Attributes:
        float32_parameters: names of such parameters; they are also the ones without weight decay.
        float32_buffers: names of such buffers.
    """

    float32_parameters: tuple[str, ...] = ()
    float32_buffers: tuple[str, ...] = ()

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Add a parameter, or replace it."""
        if param is not None and name in self.float32_parameters and is_narrow(param):
            param = nn.Parameter(param.detach().float(), param.requires_grad)
        super().register_parameter(name, param)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add a buffer, or replace it."""
        if tensor is not None and name in self.float32_buffers and is_narrow(tensor):
            tensor = tensor.float()
        super().register_buffer(name, tensor, persistent)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True):
        own = [*self._parameters.items(), *self._buffers.items()]
        named = (*self.float32_parameters, *self.float32_buffers)
        kept = [tensor for name, tensor in own if name in named and tensor is not None]
        kept += [tensor.grad for tensor in kept if tensor.grad is not None]

        def apply(tensor: Tensor) -> Tensor:
            converted = fn(tensor)
            unrounded = is_narrow(converted) and any(tensor is one for one in kept)
            return tensor.to(converted.device, torch.float32) if unrounded else converted

        return super()._apply(apply, recurse)


class Packed(nn.Module):
    """A module whose parameters are codes and scales: they say nothing of what is computed in."""


def computes_in(module: nn.Module, otherwise: Tensor | None = None) -> Tensor:
    """A tensor without elements on the device and of the dtype of the first parameter that is not packed; where there
    is none, ``otherwise``, or one of torch's default dtype on the device of the others."""
    for part in module.modules():
        if not isinstance(part, Packed):
            for parameter in part.parameters(recurse=False):
                return parameter.new_empty(0)
    if otherwise is not None:
        return otherwise
    device = next((parameter.device for parameter in module.parameters()), None)
    return torch.empty(0, device=device)


def is_narrow(tensor: Tensor) -> bool:
    """Whether it is of a floating dtype narrower than float32."""
    return tensor.is_floating_point() and compute_dtype(tensor) != tensor.dtype


def autocast_dtype(device: str) -> torch.dtype | None:
    """What the surrounding autocast computes in on this kind of device; None without one."""
    enabled = device in AUTOCAST_DEVICES and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if enabled else None
