"""What the contract tests of the operations need to know of each: one module an operation, with a list ``CASES``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One way to call an operation.

    ``call(impl=..., **inputs)`` is the public function with its options bound (and fixed non-floating inputs, such as
    seq_idx, left out unless ``inputs`` makes them); ``inputs(batch, length, dtype)`` makes small random inputs on the
    CPU, the same for the same sizes. ``resumable``: the operation takes ``initial_state`` and returns the final state
    as its last output; ``over_time`` names the inputs with a time axis, which is dim 1.
    """

    operation: str  # its name in the dispatch
    name: str
    call: Callable
    inputs: Callable[..., dict[str, Tensor]]
    resumable: bool = False
    over_time: tuple[str, ...] = ()


def all_cases() -> list[Case]:
    """The cases of every module of this package that has them in ``CASES``: one for each operation."""
    modules = [importlib.import_module(f"{__name__}.{item.name}") for item in pkgutil.iter_modules(__path__)]
    return [case for module in modules for case in getattr(module, "CASES", ()) if isinstance(case, Case)]


def outputs_and_gradients(call: Callable, inputs: dict[str, Tensor], impl: str) -> dict[str, Tensor]:
    """Outputs of ``call(impl=..., **inputs)`` and the gradients of all inputs under a fixed random direction."""
    leaves = {name: t.detach().clone().requires_grad_() if t.is_floating_point() else t for name, t in inputs.items()}
    outputs = call(impl=impl, **leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (o.double() * torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.device)).sum()
        for o in outputs
    )
    wanted = {name: t for name, t in leaves.items() if t.requires_grad}
    gradients = torch.autograd.grad(loss, list(wanted.values()))
    named = {f"output {index}": o.detach() for index, o in enumerate(outputs)}
    return named | {f"gradient of {name}": g for name, g in zip(wanted, gradients, strict=True)}
