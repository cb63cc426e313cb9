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
BLOCKED = 8  # channels from which on a convolution's input is laid out anew


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
        attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(attn_mask.logical_not(), -torch.inf)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]


def computed(func: Any, args: Sequence[Any]) -> Callable[..., Any] | None:
    """What computes one of the zoo's operators by torch's operations, so that these are seen; None of any other."""
    name, impl = func._overloadpacket.__name__, args[-1] if args else None
    operation = name.removesuffix("_backward")
    if func.namespace != "zoo" or not isinstance(impl, str) or not args[0].is_meta or operation in BY_VALUE:
        return None
    chosen = find_operation(operation).resolve(impl, CPU)
    if chosen.name in OUTSIDE:
        return lambda *given: _prepared(func, chosen, given)
    return lambda *given: COMPUTE[name](*given[:-1], chosen)


def _prepared(func: Any, chosen: Implementation, given: Sequence[Any]) -> Any:
    """The results, made while the copies live that an implementation outside of torch reads."""
    tensors = list(takewhile(lambda item: item is None or isinstance(item, Tensor), given))
    copies = chosen.prepare(compute_dtype(*tensors), *tensors)
    found = func(*given)
    del copies
    return found


def convolution(func: Any, args: Sequence[Any], results: Sequence[Tensor | None]) -> int:
    """Bytes that a convolution needs besides: tensors in the layout that oneDNN computes in, where it is asked."""
    name = func._overloadpacket.__name__
    if name == "convolution":
        x, weight, _, stride = args[:4]
        copies = max(1, weight.dim() - 3)  # in three dimensions the result is laid out twice
        moved = max(_blocked(x) + weight.nbytes, copies * results[0].nbytes)  # type: ignore[union-attr]
    elif name == "convolution_backward":
        dy, x, weight, _, stride = args[:5]
        moved = max(_blocked(x) + _blocked(dy), weight.nbytes)  # for the weight's gradient, which is then laid out anew
    else:
        return 0
    pointwise = max(weight.shape[2:]) == 1 and max(stride) == 1  # a plain product, for few images on one core
    return 0 if pointwise and len(x) < 16 and torch.get_num_threads() == 1 else moved


def _blocked(x: Tensor) -> int:
    return x.nbytes if x.shape[1] >= BLOCKED else 0
