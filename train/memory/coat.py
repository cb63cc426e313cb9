"""COAT: activations and the optimiser's states in eight bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from zoo.layers import GatedRMSNorm, LayerNorm, Mlp, RMSNorm, SwiGLU
from zoo.layers.mlp import SquaredReLU
from zoo.layers.options import require_at_least
from zoo.train.coat import COAT, CODES, LARGEST
from zoo.train.memory.method import Memory

NONLINEAR = (RMSNorm, GatedRMSNorm, LayerNorm, nn.RMSNorm, nn.LayerNorm, SwiGLU, SquaredReLU, Mlp)


@dataclasses.dataclass(frozen=True, kw_only=True)
class COATMemory(Memory, kind="coat"):
    """What linear layers, norms and feed-forward layers keep for the backward pass, as float8_e4m3fn.

    The input of a linear layer has one scale, the largest of its groups'; what norms, activations and products keep has
    a scale for each ``group_size`` numbers of the last dimension, in bfloat16. A tensor that several linear layers read
    is kept once. The forward pass is what it was, to the bit: products in eight bits are those of other hardware than
    this is written for. Gradients are those of the rounded activations. Attention itself, the embedding, the head and
    the loss keep what they kept, as in the paper.

    Where the optimiser is AdamW, its states become those of ``zoo.train.coat.COAT``.

    Paper: Xi et al., "COAT: Compressing Optimizer states and Activation for Memory-Efficient FP8 Training", arXiv
    2410.19313.
    """

    activations: bool = True
    """Keep activations so."""
    states: bool = True
    """Keep the optimiser's states so."""
    group_size: int = 16
    """Numbers of an activation's group."""
    smallest: int = 1024
    """Tensors of fewer numbers are kept as they are."""
    expand: bool = True
    """Expand the range of the states, see ``COAT``."""

    def check(self, model: nn.Module) -> None:
        """Something to keep."""
        require_at_least(1, group_size=self.group_size)
        if not (self.activations or self.states):
            raise ValueError("coat: neither activations nor states are to be kept in eight bits")
        if self.activations and not self.chosen(model):
            raise ValueError(f"coat: {type(model).__name__} has no linear layers or norms: take activations=False")

    def chosen(self, model: nn.Module) -> dict[nn.Module, int | None]:
        """Modules whose activations are kept so, each with its group size, None for one scale."""
        named = [(name, module) for name, module in model.named_modules() if "head" not in name.split(".")]
        groups: dict[nn.Module, int | None] = {
            module: None if isinstance(module, nn.Linear) else self.group_size
            for _, module in named
            if isinstance(module, (nn.Linear, *NONLINEAR))
        }
        return groups

    @contextmanager
    def forward(self, model: nn.Module) -> Iterator[None]:
        """Their operations keep eight bits."""
        if not self.activations:
            yield
            return
        weights = {parameter.data_ptr() for parameter in model.parameters()}
        shared = WeakTensorKeyDictionary()
        open_: list[Any] = []

        def enter(group: int | None, module: nn.Module, inputs: tuple[Any, ...]) -> None:
            source = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None

            def pack(tensor: Tensor) -> Any:
                if tensor.numel() < self.smallest or not tensor.is_floating_point() or tensor.data_ptr() in weights:
                    return tensor
                if group is not None and tensor.shape[-1] < group:  # such as a norm's statistics
                    return tensor
                if source is None or not _same(tensor, source):
                    cast = group is None and _matrix(tensor, module)
                    return tensor if cast else Rounded.of(tensor, group)
                if source not in shared or shared[source].version != source._version:
                    shared[source] = Rounded.of(tensor, group, source._version)
                return shared[source].seen_as(tensor)

            hooks = torch.autograd.graph.saved_tensors_hooks(pack, unpack)
            hooks.__enter__()
            open_.append(hooks)

        def leave(*_: Any) -> None:
            open_.pop().__exit__(None, None, None)

        with ExitStack() as stack:
            for module, group in self.chosen(model).items():
                stack.callback(module.register_forward_pre_hook(partial(enter, group)).remove)
                stack.callback(module.register_forward_hook(leave, always_call=True).remove)
            yield

    def optimizer(self, model: nn.Module, build: Callable[[nn.Module], Optimizer]) -> Optimizer:
        """COAT's, with the parameter groups of AdamW."""
        optimizer = build(model)
        if not self.states or isinstance(optimizer, COAT):
            return optimizer
        if type(optimizer) is not AdamW:
            raise ValueError(
                f"coat keeps the states of adamw, not those of {type(optimizer).__name__}: take states=False (and over "
                "several processes the optimizer coat)"
            )
        taken = ("params", "lr", "betas", "eps", "weight_decay")
        return COAT([{name: group[name] for name in taken} for group in optimizer.param_groups], expand=self.expand)


def unpack(kept: Any) -> Tensor:
    """What was kept, as the backward pass wants it."""
    return kept if isinstance(kept, Tensor) else kept.restored()


def _same(tensor: Tensor, source: Tensor) -> bool:
    """Whether it holds the numbers of the source in the same order, perhaps in another shape."""
    alike = tensor.dtype == source.dtype and tensor.is_neg() == source.is_neg()
    return alike and tensor.data_ptr() == source.data_ptr() and _order(tensor) == _order(source)


def _order(tensor: Tensor) -> list[tuple[int, int]]:
    """Sizes and strides, dimensions that follow each other in memory as one."""
    found: list[tuple[int, int]] = []
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        if found and found[-1][1] == size * stride:
            found[-1] = found[-1][0] * size, stride
        elif size != 1:
            found.append((size, stride))
    return found


def _matrix(tensor: Tensor, module: nn.Module) -> bool:
    """Whether it is the matrix of a linear layer, perhaps cast."""
    sizes = getattr(module, "out_features", None), getattr(module, "in_features", None)
    return tuple(tensor.shape) in (sizes, sizes[::-1])


@dataclasses.dataclass(frozen=True)
class Rounded:
    """A tensor in eight bits: codes of its shape, and scales."""

    codes: Tensor
    scale: Tensor
    group: int | None
    dtype: torch.dtype
    shape: torch.Size
    version: int = 0

    @classmethod
    def of(cls, x: Tensor, group: int | None, version: int = 0) -> Rounded:
        """Rounded by one scale, or by groups of the last dimension."""
        width = x.shape[-1]
        parts = x.detach().float()
        if group is not None:
            parts = F.pad(parts, (0, -width % group)).unflatten(-1, (-1, group))
        largest = parts.abs().amax(-1, keepdim=True) if group is not None else parts.abs().amax()
        scale = (largest / LARGEST).to(torch.bfloat16 if group is not None else torch.float32)
        wide = scale.float()
        codes = (parts / wide.masked_fill(wide == 0, 1)).clamp(-LARGEST, LARGEST).to(CODES)
        if group is not None:
            codes = codes.flatten(-2)[..., :width].contiguous()
        return cls(codes, scale, group, x.dtype, x.shape, version)

    @property
    def nbytes(self) -> int:
        """Of codes and scales."""
        return self.codes.nbytes + self.scale.nbytes

    def seen_as(self, x: Tensor) -> Rounded:
        """The same numbers in the shape and dtype of x."""
        return dataclasses.replace(self, dtype=x.dtype, shape=x.shape)

    def restored(self) -> Tensor:
        """The numbers that the codes stand for."""
        x, group = self.codes.float(), self.group
        if group is None:
            return (x * self.scale).to(self.dtype).view(self.shape)
        width = x.shape[-1]
        x = F.pad(x, (0, -width % group)).unflatten(-1, (-1, group)) * self.scale.float()
        return x.flatten(-2)[..., :width].to(self.dtype).reshape(self.shape)
