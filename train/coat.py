"""COAT's AdamW: both moments in eight bits, their range first expanded to that of the format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from zoo.layers.options import require_above, require_at_least

CODES = torch.float8_e4m3fn
LARGEST = 448.0  # of the format
RANGE = torch.tensor(LARGEST**2 / 2, dtype=torch.float64).log2().item()  # powers of two that a group may span
FINEST, MOST = 16, 1024.0  # the exponent is a multiple of 1 / 16, and no larger
AT_ONCE = 2**19  # numbers of a parameter that are in float32 at a time
MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names: what resets or counts an Adam's moments knows these too
PARTS = ("", "_scale", "_power", "_centre")


def expanded(x: Tensor) -> tuple[Tensor, ...]:
    r"""Groups in eight bits, after the exponent that makes them span the format's range.

    .. math::
        c = \sqrt{\max |x| \min |x|}, \quad
        k = \tfrac1{16} \Big\lfloor 16 \frac{\log_2 (448^2 / 2)}{\log_2 (\max |x| / \min |x|)} \Big\rfloor, \quad
        s = \frac{(\max |x| / c)^k}{448}, \quad q = \mathrm{E4M3}\big(\mathrm{sign}(x) (|x| / c)^k / s\big)

    The minimum is that of numbers other than 0, which stay 0; k is at least 1 / 16 and at most 1024.

    Args:
        x: (groups, size), float32.

    Returns:
        q (groups, size) of float8_e4m3fn; s, k and c, (groups, 1) each.
    """
    size = x.abs()
    top, low = size.amax(1, keepdim=True), size.masked_fill(size == 0, torch.inf).amin(1, keepdim=True)
    empty = top == 0
    top, low = top.masked_fill(empty, 1), low.masked_fill(empty, 1)
    centre = top.sqrt() * low.sqrt()
    span = 2 * (top / centre).log2()
    power = ((FINEST * RANGE / span).floor() / FINEST).clamp(1 / FINEST, MOST).where(span > 0, 1.0)
    scale = (top / centre) ** power / LARGEST
    return coded(x.sign() * (size / centre) ** power, scale), scale, power, centre


def scaled(x: Tensor) -> tuple[Tensor, ...]:
    """Groups in eight bits with the largest number of each as 448: codes and scales."""
    scale = x.abs().amax(1, keepdim=True) / LARGEST
    return coded(x, scale), scale


def coded(x: Tensor, scale: Tensor) -> Tensor:
    """x / scale in the format; 0 where the scale is."""
    return (x / scale.masked_fill(scale == 0, 1)).clamp(-LARGEST, LARGEST).to(CODES)


def restored(codes: Tensor, scale: Tensor, power: Tensor | None = None, centre: Tensor | None = None) -> Tensor:
    """The numbers that ``expanded`` or ``scaled`` kept, float32."""
    x = codes.float() * scale
    return x if power is None or centre is None else x.sign() * x.abs() ** (1 / power) * centre


class COAT(Optimizer):
    r"""AdamW whose moments are kept as float8_e4m3fn in groups of 128, with dynamic range expansion.

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        p &\leftarrow p - \eta \Big(\frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} + \lambda p\Big)

    The step is made with the moments in float32, a part of a parameter at a time, before they are rounded. With s, k
    and c in float32 both together take 2.19 bytes a number, where AdamW's take 8. ``--model.optimizer coat``.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        betas: beta_1, beta_2.
        eps: epsilon.
        weight_decay: lambda.
        expand: expand the range; without it groups are only scaled, which loses the small ones of v.
        group_size: numbers of a group.

    Raises:
        ValueError: for a number out of range; in a step, for parameters that are sharded (FSDP2) or sparse gradients.

    Paper: Xi et al., "COAT: Compressing Optimizer states and Activation for Memory-Efficient FP8 Training",
    arXiv 2410.19313; the rule of k is that of its authors' kernel.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        expand: bool = True,
        group_size: int = 128,
    ) -> None:
        require_above(0, eps=eps)
        require_at_least(0, lr=lr, weight_decay=weight_decay)
        require_at_least(1, group_size=group_size)
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {betas}")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "expand": expand, "group_size": group_size})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; the closure's loss, where there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of every optimiser, but the codes stay codes, where torch would make them of the parameters' dtype."""
        super().load_state_dict(state_dict)
        saved, own = state_dict["param_groups"], self.param_groups
        ordered = zip(*(chain(*(group["params"] for group in groups)) for groups in (saved, own)), strict=True)
        for index, parameter in ordered:
            for name, value in state_dict["state"].get(index, {}).items():
                if isinstance(value, Tensor):
                    self.state[parameter][name] = value.to(parameter.device, copy=True)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient, state = parameter.grad, self.state[parameter]
        if isinstance(parameter, DTensor) or gradient.layout != torch.strided:  # type: ignore[union-attr]
            raise ValueError(
                "coat takes whole parameters with dense gradients: train by the strategy ddp or zero1, not by fsdp2"
            )
        keep = expanded if group["expand"] else scaled
        if not state:
            state.update(step=0, **self._empty(parameter, group["group_size"], keep))
        state["step"] += 1
        (beta1, beta2), eps, step = group["betas"], group["eps"], state["step"]
        values, slopes, size = parameter.flatten(), gradient.flatten(), group["group_size"]  # type: ignore[union-attr]
        for numbers, groups in _parts(values.numel(), size):
            p, g = (
                F.pad(one[numbers].float(), (0, -len(one[numbers]) % size)).view(-1, size) for one in (values, slopes)
            )
            m, v = (restored(*(tensor[groups] for tensor in self._kept(state, name))) for name in MOMENTS)
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
            moved = m / (1 - beta1**step) / ((v / (1 - beta2**step)).sqrt() + eps)
            p = p - group["lr"] * (moved + group["weight_decay"] * p)
            values[numbers] = p.flatten()[: len(values[numbers])].to(values.dtype)
            for name, moment in zip(MOMENTS, (m, v), strict=True):
                for tensor, new in zip(self._kept(state, name), keep(moment), strict=True):
                    tensor[groups] = new
        if values.data_ptr() != parameter.data_ptr():  # it was no view
            parameter.copy_(values.view_as(parameter))

    @staticmethod
    def _empty(parameter: Tensor, size: int, keep: Callable[[Tensor], tuple[Tensor, ...]]) -> dict[str, Tensor]:
        nothing = keep(torch.zeros(-(-parameter.numel() // size), size, device=parameter.device))
        return {name + part: tensor.clone() for name in MOMENTS for part, tensor in zip(PARTS, nothing, strict=False)}

    @staticmethod
    def _kept(state: dict[str, Any], name: str) -> list[Tensor]:
        return [state[name + part] for part in PARTS if name + part in state]


def _parts(count: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Of so many numbers in groups: those that are worked on at a time, and their groups."""
    groups = max(1, AT_ONCE // size)
    for first in range(0, -(-count // size), groups):
        yield slice(first * size, min(count, (first + groups) * size)), slice(first, first + groups)
