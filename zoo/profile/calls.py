"""The calls whose costs are told, a forward pass, a training step and a decoded token, and what they do, traced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoo.kernels.stand_in import as_on_cpu
from zoo.language.base import LanguageModel
from zoo.layers.quant.frozen import FrozenError, check_trainable
from zoo.profile.sample import answer, loss
from zoo.profile.trace import Trace

ROOM = 256  # tokens that are decoded at most while it is measured
Call = Callable[[], Any]


class ValuesDecideError(ValueError):
    """What is computed depends on values, which the meta device has none of."""


@contextmanager
def left_as_it_is(model: nn.Module) -> Iterator[None]:
    """Modes and gradients are in the end what they were."""
    modes = {module: module.training for module in model.modules()}
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _forward(model: Any, x: Tensor) -> Call:
    return lambda: answer(model, x)


def _training(model: Any, x: Tensor) -> Call:
    return lambda: loss(model, x).backward()


def _decode(model: Any, x: Tensor) -> Call:
    """A step, after a prompt of all of x."""
    state = model.init_state(len(x), x.shape[1] + ROOM)
    model(x, state, logits_to_keep=1)
    return lambda: model(x[:, :1], state)


def calls_of(model: Any, training: bool) -> dict[str, Callable[[Any, Tensor], Call]]:
    """Phase -> what makes it ready."""
    calls = {"forward": _forward}
    calls |= {"training": _training} if training else {}
    return calls | ({"decode": _decode} if isinstance(model, LanguageModel) else {})


def why_untrained(model: nn.Module) -> str | None:
    """Why nothing of a model learns; None where something does."""
    try:
        check_trainable(model)
    except FrozenError as error:
        return str(error)
    return None if any(p.requires_grad for p in model.parameters()) else "none of its parameters requires a gradient"


def traced(model: Any, inputs: Tensor, name: str, prepare: Callable[[Any, Tensor], Call]) -> Trace:
    """Its operations, all by the operators that count them, with the peak of the ways that a CPU takes beside these."""
    trace = _once(model, inputs, name, prepare)
    if inputs.is_meta:
        with as_on_cpu():
            trace.peak = _once(model, inputs, name, prepare).peak
    return trace


def _once(model: Any, inputs: Tensor, name: str, prepare: Callable[[Any, Tensor], Call]) -> Trace:
    trace, train = Trace(model), name == "training"
    trace.keep([inputs])
    model.train(train)
    try:
        with torch.set_grad_enabled(train):
            ready = prepare(model, inputs)
            with trace:
                found = ready()
            del found
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"a batch norm of {type(model).__name__} has one value: take a batch of 2 or leave out training"
        ) from error
    except NotImplementedError as error:
        raise ValuesDecideError(
            f"what {type(model).__name__} computes depends on values, so it cannot be counted without running it: "
            f"{error}"
        ) from error
    finally:
        model.zero_grad()
    return trace


def state_bytes(model: Any, inputs: Tensor) -> tuple[tuple[int, int], ...]:
    """(length, bytes) of what a language model remembers of a part of the inputs and of all of them."""
    if not isinstance(model, LanguageModel):
        return ()
    longest, model = inputs.shape[1], model.eval()
    found = []
    with torch.no_grad():
        for length in sorted({1, max(1, longest // 4), max(1, longest // 2), longest}):
            state = model.init_state(len(inputs), length)
            model(inputs[:, :length], state, logits_to_keep=1)
            found.append((length, state.nbytes))
    return tuple(found)
