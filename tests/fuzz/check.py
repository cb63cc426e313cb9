"""One draw: every implementation against the loop in float64, within what the loop loses in the compute dtype."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import zoo.kernels
from fuzz import loops
from fuzz.draws import DRAWS, Dice, Draw, restrided
from zoo.kernels import available_implementations

SHIFTS = (
    0.0,
    1.0,
    -1.0,
    None,
    None,
)  # of the inputs in roundings: all together, or (None) each its own way
MORE = 16  # where the first measurement of the loop's error says that something is wrong
EXPANDABLE_NOT = ("offsets", "labels", "mask", "start")  # whose values mean something together


def check(operation: str, seed: int, implementations: list[str] | None = None) -> list[str]:
    """What is wrong with the draw ``seed`` of ``operation``: sentences, none where all is right.

    The error of every output and gradient is at most twice that of the loop in the compute dtype (float32, or float64
    where an input is), the largest of several whose inputs are off by up to one rounding, plus one rounding of the
    largest value. Float64 has no wider loop: there 1e-14 of the inputs and 1e-12 of the largest value stand for the
    order of summation.
    """
    dice = Dice(seed)
    draw = DRAWS[operation](dice)
    inputs = {n: t if n in EXPANDABLE_NOT else restrided(dice, t) for n, t in draw.inputs.items()}
    options = draw.options | ({"chunk_size": dice.pick((1, 4, 16, 64))} if draw.chunked else {})
    function, loop = getattr(zoo.kernels, operation), partial(getattr(loops, operation), **draw.options)
    constant = draw.constant
    exact = _everything(loop, _as(torch.float64, inputs), constant)
    rounded = [_everything(loop, _perturbed(inputs, dice, shift), constant) for shift in SHIFTS]
    found = []
    for impl in implementations or available_implementations(operation):
        try:
            values = _everything(partial(function, impl=impl, **options), inputs, constant)
        except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
            found.append(f"{operation} {seed} {impl}: {type(error).__name__}: {error}; {_told(draw, options)}")
            continue
        for name, value in values.items():
            if _compared(value, exact[name], [r[name] for r in rounded]) and len(rounded) == len(SHIFTS):
                rounded += [_everything(loop, _perturbed(inputs, dice), constant) for _ in range(MORE)]
            if wrong := _compared(value, exact[name], [r[name] for r in rounded]):
                found.append(f"{operation} {seed} {impl}: {name} {wrong}; {_told(draw, options)}")
    return found


def _compared(value: Tensor, exact: Tensor, rounded: list[Tensor]) -> str | None:
    if value.shape != exact.shape:
        return f"has the shape {tuple(value.shape)}, not {tuple(exact.shape)}"
    info = torch.finfo(value.dtype)
    references = [r.to(value.dtype).double() for r in rounded]
    sound = torch.stack([exact, *references]).isfinite().all(0) & (exact.abs() < 0.9 * info.max)
    if not sound.any():
        return None
    value, exact = value.double()[sound], exact[sound]
    if not value.isfinite().all():
        return "is not finite"
    error = (value - exact).abs().max().item()
    eps = 1e-12 if info.dtype == "float64" else info.eps
    of_reference = max((r[sound] - exact).abs().max().item() for r in references)
    allowed = 2 * (of_reference + eps * exact.abs().max().item() + info.tiny)
    return None if error <= allowed else f"is off by {error:.3g}, allowed {allowed:.3g}"


def _everything(call: Callable, inputs: dict[str, Tensor], constant: tuple[str, ...]) -> dict[str, Tensor]:
    """Outputs, and the gradients of a sum of them whose factors every dtype holds exactly."""
    leaves = {
        name: t.detach().requires_grad_() if t.is_floating_point() and name not in constant else t
        for name, t in inputs.items()
    }
    outputs = call(**leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(0)
    arriving = [torch.randint(-8, 9, o.shape, generator=generator).to(o.dtype) / 8 for o in outputs]
    wanted = {name: t for name, t in leaves.items() if t.requires_grad}
    gradients = torch.autograd.grad(outputs, list(wanted.values()), arriving, allow_unused=True) if wanted else ()
    named = {f"output {index}": o.detach() for index, o in enumerate(outputs)}
    for (name, leaf), gradient in zip(wanted.items(), gradients, strict=True):
        named[f"gradient of {name}"] = torch.zeros_like(leaf) if gradient is None else gradient
    return named


def _as(dtype: torch.dtype, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in inputs.items()}


def _perturbed(inputs: dict[str, Tensor], dice: Dice, shift: float | None = None) -> dict[str, Tensor]:
    """In the compute dtype, every value off by up to one rounding, of float64 several for the order of sums."""
    wide = any(t.dtype == torch.float64 for t in inputs.values())
    dtype, eps = (torch.float64, 1e-14) if wide else (torch.float32, torch.finfo(torch.float32).eps)
    return {
        n: (t.double() * (1 + eps * (2 * dice.rand(*t.shape) - 1 if shift is None else shift))).to(dtype)
        if t.is_floating_point()
        else t
        for n, t in inputs.items()
    }


def _told(draw: Draw, options: dict) -> str:
    shapes = ", ".join(f"{n} {str(t.dtype)[6:]}{tuple(t.shape)}" for n, t in draw.inputs.items())
    return f"{shapes}; {options}"
