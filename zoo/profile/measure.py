"""Time and memory of calls that really run."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from zoo.profile.chatter import without_chatter
from zoo.profile.peaks import timed, wait
from zoo.profile.record import Seconds

Key = TypeVar("Key", bound=Hashable)
MARK = "zoo::measured"


def seconds(call: Callable[[], Any], device: torch.device, runs: int) -> Seconds:
    """Of a call, after one that is not counted."""
    return seconds_in_turns({"": call}, device, runs)[""]


def seconds_in_turns(calls: Mapping[Key, Callable[[], Any]], device: torch.device, runs: int) -> dict[Key, Seconds]:
    """Of each call, after one that is not counted: a run of all, then the next, so that a pause meets one of each."""
    for call in calls.values():
        call()
    turns = [{key: timed(call, device) for key, call in calls.items()} for _ in range(runs)]
    found = {key: [turn[key] for turn in turns] for key in calls}
    return {key: Seconds(statistics.median(taken), min(taken), max(taken)) for key, taken in found.items()}


def seconds_by_layer(model: nn.Module, call: Callable[[], Any], device: torch.device, runs: int) -> dict[str, float]:
    """Module -> median seconds of all its calls in one call of the model; a GPU is waited for after each."""
    names = {module: name for name, module in model.named_modules()}
    found: list[dict[str, float]] = []
    started: list[float] = []

    def enter(module: nn.Module, _: Any) -> None:
        if module in names:
            wait(device)
            started.append(time.perf_counter())

    def leave(module: nn.Module, *_: Any) -> None:
        if module in names:
            wait(device)
            taken = time.perf_counter() - started.pop()
            found[-1][names[module]] = found[-1].get(names[module], 0.0) + taken

    hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    try:
        for _ in range(runs):
            found.append({})
            call()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: statistics.median(run.get(name, 0.0) for run in found) for name in found[0]}


def peak_memory(call: Callable[[], Any], device: torch.device, again: bool = False) -> int:
    """Bytes by which a call raises what torch's allocator holds, at most; C kernels' own buffers are not seen.

    Args:
        again: of the second of two calls, for one that frees what the call before it has made, as a step of decoding
            does with the state: torch's profiler knows the size of what it has seen made.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile, record_function

    options = {"activities": [ProfilerActivity.CPU], "profile_memory": True, "acc_events": True}
    with without_chatter(), profile(**options) as recorded:  # type: ignore[arg-type]
        if again:
            call()
        with record_function(MARK):
            call()
    changes: list[tuple[int, int]] = []
    began = 0
    waiting = list(recorded.profiler.kineto_results.experimental_event_tree())  # type: ignore[union-attr]
    while waiting:
        event = waiting.pop()
        waiting.extend(event.children)
        if event.name == MARK:
            began = event.start_time_ns
        if (size := getattr(event.extra_fields, "alloc_size", None)) is not None:
            changes.append((event.start_time_ns, size))
    live = most = 0
    for _, change in sorted(change for change in changes if change[0] >= began):
        live += change
        most = max(most, live)
    return most


def require_device(device: torch.device | str) -> torch.device:
    """The device, if it is here.

    Raises:
        ValueError: for one that is not.
    """
    try:
        place = torch.device(device)
    except RuntimeError:  # torch knows none of the name
        place = None
    here = {"cpu": 1, "meta": 1, "cuda": torch.cuda.device_count()}
    if place is None or (place.index or 0) >= here.get(place.type, 0):
        raise ValueError(
            f"device must be one that is here: cpu, meta or an NVIDIA GPU where there is one, got {device}"
        )
    return place


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return total_memory(device)
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def total_memory(device: torch.device) -> int:
    """Bytes that there are."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
