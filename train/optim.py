"""Optimiser and learning-rate schedule, from plain numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers, param_groups_weight_decay
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from zoo.registry import nearest
from zoo.train.coat import COAT

OWN: dict[str, type[Optimizer]] = {"coat": COAT}  # besides timm's
ADAM_BETAS = (0.9, 0.999)  # what an optimiser with another number of them does not get


def build_optimizer(
    model: nn.Module,
    name: str,
    *,
    lr: float,
    weight_decay: float,
    around: Callable[[list[dict[str, Any]], Callable[..., Optimizer]], Optimizer] | None = None,
    **kwargs: Any,
) -> Optimizer:
    """An optimiser by timm's name ("adamw", "lamb", "lion", ...) or ours ("coat"), with two parameter groups.

    Weight decay is off for biases, for every parameter of at most one dimension and for what the model's
    `no_weight_decay()` names. Modules may bound the rates of their parameters, see `parameter_groups`.

    Args:
        model: what to train, plain or wrapped by torch.compile or DDP; parameters that need no gradient are left out.
        name: see `timm.optim.list_optimizers()`.
        lr: peak learning rate.
        weight_decay: decoupled where the optimiser is (AdamW).
        around: makes the optimiser of the groups and of what makes one of any groups, such as
            `zoo.train.parallel.ShardedOptimizer`.
        kwargs: of the optimiser, such as `betas` and `eps`. An optimiser of three betas takes three, or its own where
            `betas` is Adam's default.

    Raises:
        ValueError: timm has no optimiser of that name, or it does not take these arguments.
    """
    if name.lower() in OWN:
        make = partial(OWN[name.lower()], lr=lr, weight_decay=0.0, **kwargs)
    else:
        make = partial(create_optimizer_v2, opt=name, lr=lr, weight_decay=0.0, **_known(name, kwargs))
    try:
        groups = parameter_groups(unwrapped(model), lr, weight_decay)
        return around(groups, make) if around else make(groups)
    except (TypeError, ValueError, AssertionError, ImportError) as error:
        raise ValueError(f"optimizer {name!r} cannot be made with {kwargs}: {error or type(error).__name__}") from error


def _known(name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments that timm's optimiser of a name is given."""
    names, kind = list_optimizers(), name.lower().split("_")[-1]  # "lookahead_adamw" is adamw with something around it
    if kind not in names:
        others = nearest(name, [*names, *OWN])
        raise ValueError(f"timm has no optimizer {name!r}{others}; timm.optim.list_optimizers() has all")
    info = get_optimizer_info(kind)
    if info.has_betas and "betas" in kwargs and len(kwargs["betas"]) != info.num_betas:
        if tuple(kwargs["betas"]) != ADAM_BETAS:
            raise ValueError(f"optimizer {name!r} takes {info.num_betas} betas, got {tuple(kwargs['betas'])}")
        return {key: value for key, value in kwargs.items() if key != "betas"}
    return kwargs


def parameter_groups(model: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """timm's groups, with and without weight decay; the parameters that a module lists in its ``learning_rates`` (name
    to largest peak rate) in groups of their own, where that is below ``lr``."""
    bounds = {
        getattr(module, name): bound
        for module in model.modules()
        for name, bound in getattr(module, "learning_rates", {}).items()
    }
    skipped = getattr(model, "no_weight_decay", set)()
    common = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=skipped)
    own: dict[tuple[float, float], list[nn.Parameter]] = {}
    for group in common:
        for parameter in [p for p in group["params"] if bounds.get(p, lr) < lr]:
            own.setdefault((bounds[parameter], group["weight_decay"]), []).append(parameter)
        group["params"] = [p for p in group["params"] if bounds.get(p, lr) >= lr]
    slow = [{"params": params, "lr": bound, "weight_decay": decay} for (bound, decay), params in own.items()]
    return [*(group for group in common if group["params"]), *slow]


def state_bytes(optimizer: Optimizer) -> int:
    """What an optimiser remembers of its parameters in this process, in bytes."""
    tensors = [
        value for state in states_of(optimizer).values() for value in state.values() if isinstance(value, Tensor)
    ]
    return sum(getattr(tensor, "_local_tensor", tensor).nbytes for tensor in tensors if tensor.dim())


def states_of(optimizer: Optimizer) -> dict[Tensor, dict[str, Any]]:
    """What an optimiser remembers, by parameter; of a sharded one, this process's."""
    return getattr(optimizer, "optim", optimizer).state


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile, DDP and DataParallel, whose parameters bear the names it knows them by."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def warmup_cosine(step: int, warmup_steps: int, total_steps: float, min_ratio: float = 0.0) -> float:
    """Linear warm-up, then half a cosine: the factor of the peak learning rate at optimiser step k = 0, 1, ...

        (k + 1) / (W + 1)                                    for k < W
        m + (1 - m) (1 + cos(pi (k - W) / (N - W))) / 2      for W <= k < N,  and m from there on

    Args:
        step: k.
        warmup_steps: W.
        total_steps: N; infinite for 1 after warm-up.
        min_ratio: m, the last rate over the peak.

    Paper: Loshchilov and Hutter, "SGDR", arXiv:1608.03983.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * done)) / 2
