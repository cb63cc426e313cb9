"""Convolutions of the form for inference."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


class Activation(NamedTuple):
    """An elementwise function that may overwrite its argument, and oneDNN's name, numbers and algorithm for it."""

    function: Callable[[Tensor], Tensor]
    post_op: str
    numbers: tuple[float, ...] = ()
    algorithm: str = ""


def _relu6(x: Tensor) -> Tensor:
    return F.relu6(x, inplace=True)


def _silu(x: Tensor) -> Tensor:
    return F.silu(x, inplace=True)


ACTIVATIONS: dict[str | None, Activation] = {
    None: Activation(lambda x: x, "none"),
    "relu": Activation(F.relu_, "relu"),
    "relu6": Activation(_relu6, "hardtanh", (0.0, 6.0)),
    "silu": Activation(_silu, "swish"),
    "gelu_tanh": Activation(partial(F.gelu, approximate="tanh"), "gelu", (), "tanh"),
}


class InferenceConv2d(nn.Conv2d):
    """y = activation(conv(x)), what a convolution, its batch norm and its activation fuse to.

    In float32 on the CPU and without gradients, oneDNN computes both at once, in channels_last whatever the layout of
    x, from a copy of the weights in its own layout, made at the first such call. Other calls, compiled, exported and
    traced programs use torch's convolution and then the activation.

    Args:
        conv: whose sizes and dtype are taken.
        weight, bias: the fused ones.
        activation: "relu", "relu6", "silu", "gelu_tanh" or None.
    """

    def __init__(self, conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, activation: str | None = None):
        super().__init__(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,  # type: ignore[arg-type]
            conv.groups, bias is not None, conv.padding_mode, device="meta",
        )  # fmt: skip
        self.weight = nn.Parameter(weight.to(conv.weight.dtype))
        if bias is not None:
            self.bias = nn.Parameter(bias.to(conv.weight.dtype))
        self.activation = activation
        self._laid_out: tuple[Tensor, int, Tensor] | None = None  # weight, its version, and it in oneDNN's layout

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_channels, H, W) -> (B, out_channels, H', W')."""
        function, post_op, numbers, algorithm = ACTIVATIONS[self.activation]
        if not self._is_direct(x):
            return function(super().forward(x))
        sizes = (self.padding, self.stride, self.dilation, self.groups)
        x, weight = x.contiguous(memory_format=torch.channels_last), self._weight_for(x)
        return torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *sizes, post_op, numbers, algorithm)

    def _is_direct(self, x: Tensor) -> bool:
        return (
            not isinstance(x, Proxy)  # a symbolic tracer's
            and not torch.compiler.is_compiling()
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and x.numel() > 0
            and not (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
            and not self.weight.is_inference()  # tensors that do not count their changes
            and not torch.is_autocast_enabled("cpu")
            and not torch.jit.is_tracing()
            and not is_in_torch_dispatch_mode()  # which would see an operator that no counter knows
            and torch.backends.mkldnn.is_available()
            and torch._C._get_mkldnn_enabled()
            and self.padding_mode == "zeros"
        )

    def _weight_for(self, x: Tensor) -> Tensor:
        kept, weight = self._laid_out, self.weight.detach()
        if kept is None or kept[0].data_ptr() != weight.data_ptr() or kept[1] != weight._version:
            sizes = (self.padding, self.stride, self.dilation, self.groups)
            laid_out = torch.ops.mkldnn._reorder_convolution_weight(weight, *sizes, x.shape)
            kept = self._laid_out = weight, weight._version, laid_out
        return kept[2]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> InferenceConv2d:
        self._laid_out = None  # moved or converted weights are not kept
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles make their own layout."""
        return self.__dict__ | {"_laid_out": None}

    def extra_repr(self) -> str:
        """With the activation."""
        return super().extra_repr() + (f", activation={self.activation}" if self.activation else "")


class SiLUConv2d(nn.Conv2d):
    """y = silu(conv(x)); parameters (and names) of ``nn.Conv2d``."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_channels, H, W) -> (B, out_channels, H', W')."""
        return F.silu(super().forward(x))

    def fuse(self) -> nn.Module:
        """The two in one."""
        return InferenceConv2d(self, self.weight.detach(), None if self.bias is None else self.bias.detach(), "silu")
