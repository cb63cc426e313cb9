"""Seconds of a call on a device, and the device's own limits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def seconds(call: Callable[[], Any], device: str, budget: float) -> float:
    """Median of runs that together take about `budget` seconds, after two that warm up; at least three."""
    call()
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    count = max(3, min(200, int(budget / max(time.perf_counter() - started, 1e-6))))
    return statistics.median(_events(call, count) if device == "cuda" else _clock(call, count))


def synchronize(device: str) -> None:
    """Wait for what was started on a device."""
    if device == "cuda":
        torch.cuda.synchronize()


def peaks(device: str, tiny: bool) -> dict[str, float]:
    """Copy bandwidth in bytes/s (read and written) and matrix products in FLOP/s, measured."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    size, side = (2**20, 64) if tiny else (2**32, 8192)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    copied = seconds(lambda: target.copy_(source), device, 1.0 if not tiny else 0.01)
    product = seconds(lambda: a @ b, device, 1.0 if not tiny else 0.01)
    return {"bytes/s": 2 * size / copied, "FLOP/s": 2 * side**3 / product}


def _events(call: Callable[[], Any], count: int) -> list[float]:
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
    for first, last in marks:
        first.record()
        call()
        last.record()
    torch.cuda.synchronize()
    return [first.elapsed_time(last) / 1e3 for first, last in marks]


def _clock(call: Callable[[], Any], count: int) -> list[float]:
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return taken
