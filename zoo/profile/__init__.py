"""What a model costs: counted without running it, then measured beside what the machine could reach."""

from __future__ import annotations

import copy
import dataclasses
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from zoo.factory import create_model
from zoo.language.base import LanguageModel
from zoo.layers.precision import computes_in
from zoo.layers.quant import count_parameters
from zoo.layers.step import programmed
from zoo.profile import measure
from zoo.profile.calls import ROOM, ValuesDecideError, calls_of, left_as_it_is, state_bytes, traced, why_untrained
from zoo.profile.metrics import Energy, measured_energy
from zoo.profile.peaks import device_name, peaks
from zoo.profile.plausible import beyond, doubted
from zoo.profile.record import Layer, Peaks, Phase, Profile, Seconds
from zoo.profile.sample import items, sample, unit
from zoo.profile.trace import Kernel, Trace, waterline

__all__ = ["Layer", "Peaks", "Phase", "Profile", "Seconds", "peaks", "profile"]
META = torch.device("meta")


def profile(
    model: str | nn.Module,
    *,
    tokens: int | None = None,
    image_size: int | None = None,
    batch: int = 1,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    training: bool | None = None,
    runs: int = 5,
    energy: bool = False,
) -> Profile:
    r"""Count what a model costs and measure it.

    Everything is first counted on the meta device, without memory: FLOPs by torch's counter and the formulas of the
    zoo's operations, bytes that operations move, and the tensors that live at the same time. Then, unless the device is
    "meta", the model runs, and each time stands beside two bounds of the machine's measured peaks P and W:
    :math:`\max(F / P, B / W)` with the bytes B that must move however operations are fused (the roofline), and
    :math:`\sum_i \max(F_i / P, B_i / W)` over the operations as they are (the waterline). Where values decide how much
    is computed (routed depth, skipped steps), the count is of the most that may be; where they decide shapes, as in
    training by segments, of a run on these inputs.

    Args:
        model: a name, whose weights are then random, or a model, which stays where and as it is.
        tokens: length of a text or sequence; 256, or as many as the model reads, where None.
        image_size: side of the images of a named model; its own where None.
        batch: rows.
        device: of a named model; "cpu" where None, "meta" to run nothing.
        dtype: of a named model; float32 where None.
        training: also forward and backward; None: where something learns, ``Profile.untrained`` says why it does not.
        runs: of which times are the median.
        energy: also joules of the forward pass and of training, where the machine tells them.

    Returns:
        The figures: ``forward``, ``training`` and, of language models, ``decode``.

    Raises:
        ValueError: for an unknown name, sizes below 1, a device that is not there, options of a named model beside a
            model, a model that cannot be counted without running it on "meta", or one that does not fit the free
            memory: the error holds the predicted bytes; training of a model of which nothing learns, or of one row
            where a batch norm needs two.

    Papers: Lavin, "On the Efficiency of Convolutional Neural Networks", arXiv 2404.03617 (waterline).
    """
    for option, value in (("tokens", tokens), ("batch", batch), ("runs", runs), ("image_size", image_size)):
        if value is not None and value < 1:
            raise ValueError(f"{option} must be at least 1, got {value}")
    if runs > ROOM // 4:
        raise ValueError(f"runs must be at most {ROOM // 4}, got {runs}")
    place, counted = _counted(model, image_size, device, dtype)
    if tokens is not None:
        _require_tokens(counted, tokens)
    inputs = sample(counted, batch, tokens)
    build = cache(lambda: model if isinstance(model, nn.Module) else _build(model, image_size, place, dtype))
    untrained = None if training is False else why_untrained(counted)
    if training and untrained:
        raise ValueError(f"training must be left out for a model of which nothing learns, got True: {untrained}")
    traces = {}
    for name, prepare in calls_of(counted, training is not False and untrained is None).items():
        try:
            traces[name] = traced(counted, inputs, name, prepare)
        except ValuesDecideError:
            if place == META:
                raise
            with left_as_it_is(build()):
                traces[name] = traced(build(), sample(build(), batch, tokens), name, prepare)
    states = state_bytes(counted, inputs)
    if place != META:
        _require_room(counted, traces, place, count_weights=isinstance(model, str))
        found = _measured(model, counted, build(), inputs, traces, states, place, runs, energy)
        return dataclasses.replace(found, untrained=untrained)
    phases = tuple(_phase(name, trace, counted, inputs, states, None) for name, trace in traces.items())
    found = _profile(model, counted, inputs, states, phases, traces["forward"], META, None, {})
    return dataclasses.replace(found, untrained=untrained)


def _counted(
    model: str | nn.Module, image_size: int | None, device: torch.device | str | None, dtype: torch.dtype | None
) -> tuple[torch.device, Any]:
    """Where the model shall run, and one of its shapes without memory."""
    if isinstance(model, nn.Module):
        given = {"image_size": image_size, "device": device, "dtype": dtype}
        if named := [name for name, value in given.items() if value is not None]:
            raise ValueError(f"{', '.join(named)} can be given with a model's name only: change the model itself")
        memo = {id(p): nn.Parameter(p.to(META), p.requires_grad) for p in model.parameters()}
        memo |= {id(b): b.to(META) for b in model.buffers()}
        return next(model.parameters()).device, copy.deepcopy(model, memo)
    place = measure.require_device("cpu" if device is None else device)
    if image_size is not None and not hasattr(config := _build(model, None, META, dtype).config, "img_size"):
        reads = "reads a text: give tokens" if hasattr(config, "vocab_size") else "has one size of what it reads"
        raise ValueError(f"image_size is the side of images, got {image_size}; {model} {reads}")
    return place, _build(model, image_size, META, dtype)


def _require_tokens(model: Any, tokens: int) -> None:
    config = model.config
    if unit(model) == "image":
        raise ValueError(
            f"tokens is the length of a text or sequence, got {tokens}; {type(model).__name__} reads images"
        )
    if (length := getattr(config, "length", tokens)) != tokens and not hasattr(config, "vocab_size"):
        raise ValueError(f"{type(model).__name__} reads {length} vectors at once: leave out tokens, got {tokens}")


def _build(name: str, image_size: int | None, device: torch.device, dtype: torch.dtype | None) -> Any:
    options: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    return create_model(name, device=device, dtype=dtype, **options)


def _require_room(model: Any, traces: dict[str, Trace], device: torch.device, count_weights: bool) -> None:
    needed = max(trace.peak for trace in traces.values()) + (_weights(model) if count_weights else 0)
    if needed > (free := measure.free_memory(device)):
        raise ValueError(
            f"the model needs {needed / 2**30:.1f} GiB, {device} has {free / 2**30:.1f} GiB free: take a smaller batch "
            "or shorter inputs, leave out training, or count without running it by device='meta'"
        )


def _measured(
    given: str | nn.Module, counted: Any, model: Any, shaped: Tensor, traces: dict[str, Trace],
    states: tuple[tuple[int, int], ...], device: torch.device, runs: int, energy: bool,
) -> Profile:  # fmt: skip
    inputs, dtype = sample(model, len(shaped), shaped.shape[1]), computes_in(model).dtype
    ran, layers, used = dict[str, tuple[Seconds, int, float | None]](), {}, Energy(None, "not measured")
    with left_as_it_is(model):
        for name in traces:
            train, prepare = name == "training", calls_of(model, True)[name]
            model.train(train)
            with torch.set_grad_enabled(train):
                ready = prepare(model, inputs)
                with programmed(model, alone=True) if name == "decode" else nullcontext():  # as `generate` takes it
                    taken = measure.seconds(ready, device, runs)
                model.zero_grad()
                memory = measure.peak_memory(ready, device, again=name == "decode")
                model.zero_grad()
                if energy and name != "decode":  # whose state has room for few steps
                    used = measured_energy(ready, device)
                    model.zero_grad()
                if name == "forward":
                    layers = measure.seconds_by_layer(model, ready, device, runs)
            ran[name] = taken, memory, None if name == "decode" else used.joules

    def beside(reached: Peaks) -> Profile:
        phases = tuple(
            _phase(name, trace, counted, shaped, states, reached, *ran[name]) for name, trace in traces.items()
        )
        found = _profile(given, counted, shaped, states, phases, traces["forward"], device, reached, layers)
        return dataclasses.replace(found, energy_source=used.source)

    found = beside(peaks(device, dtype))
    if beyond(found):
        peaks(device, dtype, fresh=True)  # raises those that are kept
        found = beside(peaks(device, dtype))
    return doubted(found)


def _phase(
    name: str, trace: Trace, model: Any, inputs: Tensor, states: tuple[tuple[int, int], ...], reached: Peaks | None,
    taken: Seconds | None = None, memory: int | None = None, joules: float | None = None,
) -> Phase:  # fmt: skip
    flops, moved = sum(k.flops for k in trace.kernels), sum(k.bytes for k in trace.kernels)
    count = len(inputs) if name == "decode" else items(model, inputs)
    least = min(moved, _least(name, model, inputs, states))
    bound = None if reached is None else reached.seconds(flops, least)
    line = None if reached is None else waterline(trace.kernels, reached)
    return Phase(name, count, flops, moved, least, trace.peak, bound, line, taken, memory, joules)


def _least(name: str, model: Any, inputs: Tensor, states: tuple[tuple[int, int], ...]) -> int:
    """Weights that are used, inputs, and the state; outputs are small beside them."""
    used = round(_weights(model) * _active(model) / max(1, count_parameters(model)))
    if name == "decode":
        return used + states[-1][1]
    if name == "training":
        return 3 * _weights(model) + inputs.nbytes
    rows = items(model, inputs)
    return (_weights(model) if rows > 1 else used) + inputs.nbytes


def _active(model: Any) -> int:
    return model.num_active_parameters() if isinstance(model, LanguageModel) else count_parameters(model)


def _weights(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in {*model.parameters(), *model.buffers()})


def _profile(
    given: str | nn.Module, model: Any, inputs: Tensor, states: tuple[tuple[int, int], ...],
    phases: tuple[Phase, ...], trace: Trace, device: torch.device, reached: Peaks | None, taken: dict[str, float],
) -> Profile:  # fmt: skip
    kernels: dict[str, list[Kernel]] = {}
    for kernel in trace.kernels:
        for name in dict.fromkeys(kernel.inside):
            kernels.setdefault(name, []).append(kernel)
    layers = tuple(
        Layer(
            name, type(module).__name__, trace.calls[name], count_parameters(module),
            sum(k.flops for k in kernels.get(name, ())), sum(k.bytes for k in kernels.get(name, ())),
            None if reached is None else waterline(kernels.get(name, ()), reached), taken.get(name),
        )
        for name, module in model.named_modules()
        if name in trace.calls
    )  # fmt: skip
    return Profile(
        given if isinstance(given, str) else getattr(given, "config_name", type(given).__name__),
        device.type if device == META else device_name(device),
        str(computes_in(model).dtype).removeprefix("torch."), tuple(inputs.shape), unit(model),
        count_parameters(model), _active(model), _weights(model), states, phases, layers, reached,
    )  # fmt: skip
