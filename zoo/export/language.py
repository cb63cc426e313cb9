"""Language models as programs of ``torch.export``: a whole sequence, or one step with its state in and out."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from zoo.export.systems import real_systems
from zoo.generate import evaluating
from zoo.language.base import LanguageModel
from zoo.layers import Mixer, ModelState, State
from zoo.layers.attention.keys import Keys
from zoo.layers.attention.routing import RoutingState
from zoo.layers.attention.sliding_window import SlidingWindowState
from zoo.layers.attention.state import KeyValueState
from zoo.layers.conv.long_conv import H3Conv, H3ConvState
from zoo.layers.depth import ExpertChoice, TokenChoice, TokenRouter
from zoo.layers.states import JointState

ROUTERS = (ExpertChoice, TokenChoice, TokenRouter)  # of tokens, as many as they find
BATCH, LENGTH, PAST = 3, 7, 5  # of the example; no two of them alike, lest one be taken for the other


class Program(NamedTuple):
    """An exported program, and the names of its inputs and outputs in order."""

    program: ExportedProgram
    inputs: list[str]
    outputs: list[str]


def whole_program(model: LanguageModel) -> Program:
    """``tokens`` (batch, length) int64 to ``logits`` (batch, length, vocab_size), for any batch and length.

    Where a model splits off the first step, torch takes one step that is left for a case of its own: then the program,
    not a file made of it, asks for at least three.
    """
    tokens = torch.zeros(BATCH, LENGTH, dtype=torch.int64, device=_device(model))

    def program(shortest: int | None) -> Program:
        shapes = {0: Dim("batch"), 1: Dim("length", min=shortest)}
        return Program(_exported(model, _Whole(model), (tokens,), (shapes,)), ["tokens"], ["logits"])

    try:
        return program(None)
    except ValueError as error:
        if "!= 1" not in str(error):
            raise
        return program(3)


def step_program(model: LanguageModel) -> Program:
    """``tokens`` (batch, 1) and a state's tensors to ``logits`` (batch, 1, vocab_size) and the next state's tensors."""
    step = _Step(model)
    state = step.example(PAST)
    grown = step.example(PAST + 1)
    past, batch = Dim("past"), Dim("batch")
    shapes = [
        {0: batch} | {dim: past for dim, size in enumerate(tensor.shape) if size != after.shape[dim]}
        for tensor, after in zip(state, grown, strict=True)
    ]
    tokens = torch.zeros(BATCH, 1, dtype=torch.int64, device=_device(model))
    program = _exported(model, step, (tokens, state), ({0: batch}, shapes))
    return Program(program, ["tokens", *step.names], ["logits", *(f"next.{name}" for name in step.names)])


class _Whole(nn.Module):
    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)


class _Step(nn.Module):
    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model
        states = zip(model.init_state(BATCH), model.mixers, strict=True)
        self.template = ModelState(_growing(_filled_up(state, mixer)) for state, mixer in states)
        self.names = [f"{index}.{name}" for index, state in enumerate(self.template) for name, _ in state.tensors()]

    def forward(self, tokens: Tensor, held: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        tensors = iter(held)
        state = ModelState(_filled(state, tensors) for state in self.template)
        return self.model(tokens, state), _tensors(state)

    @torch.no_grad()
    def example(self, length: int) -> list[Tensor]:
        """The tensors of a state after so many tokens."""
        state = copy.deepcopy(self.template)
        with evaluating(self.model):
            self.model(torch.zeros(BATCH, length, dtype=torch.int64, device=_device(self.model)), state)
        return _tensors(state)


class _Grows:
    """A cache that is as long as its past: what it holds is told by its shape alone."""

    slots: ClassVar[dict[str, int]]
    filled: int

    def make_room(self, count: int) -> None:
        pass

    def write(self, new: Keys, **more: Tensor) -> Keys:
        self.filled = self.filled + new.key.shape[2]
        for name, tensor in {"key": new.key, "value": new.value, **more}.items():
            held = getattr(self, name)
            setattr(self, name, torch.cat([held, tensor.to(held.dtype)], self.slots[name]))
        return self.keys()  # type: ignore[attr-defined]


class _Growing(_Grows, KeyValueState):
    pass


class _GrowingRouting(_Grows, RoutingState):
    pass


def _filled_up(state: State, mixer: Mixer) -> State:
    """A state whose tensors have their last size: of a convolution with zeros before the first input."""
    if isinstance(mixer, H3Conv) and isinstance(state, H3ConvState):
        free = (0, 0, mixer.conv.kernel_length - 1, 0)
        return H3ConvState(F.pad(state.key, free), F.pad(state.product, free))
    return state


def _growing(state: State) -> State:
    """An empty state whose tensors say all there is to know of it.

    Raises:
        ValueError: for a state that keeps more than its tensors.
    """
    if isinstance(state, JointState):
        return state.of(map(_growing, state.parts))
    if type(state) in (KeyValueState, SlidingWindowState):
        assert isinstance(state, KeyValueState)
        return _Growing(state.key[:, :, :0], state.value[:, :, :0])
    if type(state) is RoutingState:
        return _GrowingRouting(state.key[:, :, :0], state.value[:, :, :0], cluster=state.cluster[:, :, :0])
    if isinstance(state, KeyValueState):
        raise ValueError(f"no step can be exported: the state, {type(state).__name__}, is more than its tensors")
    return state


def _filled(state: State, tensors: Iterator[Tensor]) -> State:
    """A state of other tensors."""
    if isinstance(state, JointState):
        return state.of([_filled(part, tensors) for part in state.parts])
    state = copy.copy(state)
    for name, _ in list(state.tensors()):
        setattr(state, name, next(tensors))
    if isinstance(state, KeyValueState):
        state.filled = state.seen = state.key.shape[2]
    return state


def _tensors(state: ModelState) -> list[Tensor]:
    return [tensor for part in state for _, tensor in part.tensors()]


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _exported(model: LanguageModel, module: nn.Module, inputs: tuple[Any, ...], shapes: Any) -> ExportedProgram:
    """The program of ``module``, which holds ``model``."""
    name = getattr(model, "config_name", type(model).__name__)
    if routers := [type(part).__name__ for part in model.modules() if isinstance(part, ROUTERS)]:
        raise ValueError(
            f"{name} has no program: how many tokens go through its blocks is what {routers[0]} finds in their values, "
            "and a program has to know the shapes beforehand"
        )
    try:
        with torch.no_grad(), evaluating(model), real_systems(model):
            return torch.export.export(module.eval(), inputs, dynamic_shapes=shapes)
    except (RuntimeError, ValueError) as error:  # torch's, of branches on what is only known when it runs
        lines = [line.strip(" -") for line in str(error).strip().splitlines()]
        what = next((line for line in lines if "generated guard" in line or "specialized" in line), lines[0])
        raise ValueError(
            f"{name} has no program for every {'past' if isinstance(module, _Step) else 'length'}, it computes "
            f"differently for some: {what}"
        ) from error
