"""What operations need while they run, told without running them: tensors on the meta device stand for a CPU's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zoo.kernels.dispatch import Implementation, compute_dtype, find_operation
from zoo.kernels.operator import COMPUTE

CPU = torch.device("cpu")
OUTSIDE = ("triton", "mamba_ssm")  # implementations whose work is not done by torch's operations
BY_VALUE = ("grouped_matmul",)  # operators whose work depends on values, which the meta device has none of
FEW = 20480  # numbers of an input for which torch does not ask oneDNN
BLOCKED = 8  # channels from which on the backward pass of a convolution lays its tensors out anew


class Inside(TorchDispatchMode):
    """Shows every tensor that is made to ``hold``."""

    def __init__(self, hold: Callable[[Tensor], None]):
        super().__init__()
        self.hold = hold

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self.hold(leaf)
        return found


class AsUntraced(TorchFunctionMode):
    """Takes the operators that a CPU would: on the meta device torch writes the weights of attention out, and while
    operators are seen it adds a bias to a copy of what a linear layer made of rows that do not lie in order."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and args[0].is_meta and (call := _fused(*args, **kwargs)) is not None:
            return call
        if func is F.linear:
            return _linear(*args, **kwargs)
        return func(*args, **kwargs)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    apart = bias is not None and input.dim() > 2 and not input.is_contiguous()
    return F.linear(input, weight).add_(bias) if apart else F.linear(input, weight, bias)  # type: ignore[arg-type]


def _fused(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False) -> Tensor | None:
    same = q.dim() == 4 and q.shape[0] == k.shape[0] == v.shape[0] and q.shape[-1] == k.shape[-1] == v.shape[-1]
    heads = same and q.shape[1] % k.shape[1] == 0 and (enable_gqa or q.shape[1] == k.shape[1])
    masked = attn_mask is not None
    if not heads or dropout_p or 0 in (*q.shape, *k.shape) or (masked and attn_mask.requires_grad):
        return None
    if masked and attn_mask.dim() not in (2, 4):
        return None
    if masked and attn_mask.dtype == torch.bool:
        attn_mask = torch.where(attn_mask, *(q.new_full((), value) for value in (0.0, -torch.inf)))
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]


def computed(func: Any, args: Sequence[Any]) -> Callable[..., Any] | None:
    """What computes one of the zoo's operators by torch's operations, so that these are seen, or a convolution's result
    as a CPU lays it out; None of any other."""
    if func is torch.ops.aten.convolution.default and args[0].is_meta and _channels_last(args[0]):
        return lambda *given: _last(func(*given).shape, given[0])
    name, impl = func._overloadpacket.__name__, args[-1] if args else None
    operation = name.removesuffix("_backward")
    if func.namespace != "zoo" or not isinstance(impl, str) or not args[0].is_meta or operation in BY_VALUE:
        return None
    chosen = find_operation(operation).resolve(impl, CPU)
    if chosen.name in OUTSIDE:
        return lambda *given: _prepared(func, chosen, given)
    return lambda *given: COMPUTE[name](*given[:-1], chosen)


def _last(shape: torch.Size, like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _prepared(func: Any, chosen: Implementation, given: Sequence[Any]) -> Any:
    """The results, made while the copies live that an implementation outside of torch reads."""
    tensors = list(takewhile(lambda item: item is None or isinstance(item, Tensor), given))
    copies = chosen.prepare(compute_dtype(*tensors), *tensors)
    found = func(*given)
    del copies
    return found


def convolution(func: Any, args: Sequence[Any], results: Sequence[Any]) -> int:
    """Bytes that a convolution needs besides: tensors in the layout that oneDNN computes in, where it is asked, or what
    lies under the filter at each place, where torch multiplies."""
    name = func._overloadpacket.__name__
    if name not in ("convolution", "convolution_backward"):
        return 0
    forward = name == "convolution"
    x, weight, y = (*args[:2], results[0]) if forward else (args[1], args[2], args[0])
    stride, padding, _, transposed, _, groups = args[3:9] if forward else args[4:10]
    pointwise = max(weight.shape[2:]) == 1 == max(stride) > max(padding)  # a plain product
    if _by_torch(x, weight, groups):
        places = (x if transposed else y).shape[2:].numel()
        return 0 if pointwise else weight[0].nbytes * places
    if pointwise and len(x) < 16 and torch.get_num_threads() == 1:
        return 0
    if forward:
        return _laid_out(x, weight, y, max(stride), transposed, groups)
    maps = _blocked(x) + _blocked(y)  # for the weight's gradient, which is then laid out anew
    return max(maps, weight.nbytes) if x.dim() == 4 else maps + weight.nbytes


def _by_torch(x: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether torch leaves out oneDNN: for one small input and a small filter."""
    small = len(x) == groups == 1 and x.shape[:4].numel() <= FEW and x.dtype == torch.float32
    return small and (weight.dim() == 3 or min(weight.shape[-2:]) <= 3)


def _laid_out(x: Tensor, weight: Tensor, y: Tensor, stride: int, transposed: bool, groups: int) -> int:
    """Bytes of copies in the forward pass: of what it reads beside the result's, then of the result, brought back."""
    if _channels_last(x):
        return weight.nbytes  # it is read and made as it is
    if transposed and stride > 1:
        return max(x.nbytes + weight.nbytes, 2 * y.nbytes)
    made, alone = _padded(y, groups), 1 < groups == x.shape[1] or max(weight.shape[2:]) == 1
    each = x.shape[1] // groups
    read = _padded(x, groups) if alone or each >= _width() or (groups > 1 and each % 4 == 0) else 0
    return max(read + weight.nbytes + (2 if transposed else 1) * made - y.nbytes, made)


def _channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.shape[1] > 1 == x.stride(1) and not x.is_contiguous()


def _padded(x: Tensor, groups: int) -> int:
    """Bytes of a map whose channels are laid out in full vectors; in groups of fewer, without."""
    channels, width = x.shape[1], _width()
    if groups > 1 and 1 < channels // groups < width:
        return x.nbytes
    return x.nbytes // channels * width * -(-channels // width)


def _width() -> int:
    """Numbers of a vector of this machine."""
    return 16 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 8


def _blocked(x: Tensor) -> int:
    return x.nbytes if x.shape[1] >= BLOCKED else 0
