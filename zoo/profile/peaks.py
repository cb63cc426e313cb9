"""What this machine reaches at best, measured once and remembered in the zoo's cache folder."""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from zoo.kernels.native import cache_folder
from zoo.profile.record import Peaks

SIDE, COPIED = 1536, 1 << 26  # of the product; bytes of the copy
RUNS, TRIES = 4, 5  # the best of so many runs, tried so often at most: until a try brings no more, after two


def device_name(device: torch.device) -> str:
    """As a record names it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def peaks(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, *, fresh: bool = False) -> Peaks:
    """Operations and bytes a second of a device: of a product of two square matrices and of a copy of 64 MiB.

    The best of several tries, measured once: ``peaks.json`` in the cache folder keeps them, by processor or GPU,
    threads, dtype and version of torch. What is kept never falls: other work on the machine can only lower a try.

    Args:
        fresh: measure again, and return what was found; what is kept is raised where that is more.
    """
    device = torch.device(device)
    key = f"{_chip(device)} | {dtype} | torch {torch.__version__}"
    path = cache_folder() / "peaks.json"
    known = _read(path)
    if fresh or key not in known:
        found = _measured(device, dtype)
        before = known.get(key, {"flops": 0.0, "bandwidth": 0.0})
        best = {name: max(getattr(found, name), before[name]) for name in ("flops", "bandwidth")}
        known[key] = dataclasses.asdict(found) | best
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(known, indent=1))
        partial.replace(path)
        return found
    return Peaks(**known[key])


def _read(path: Any) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):  # not there, or broken off
        return {}
    return found if isinstance(found, dict) else {}


def _measured(device: torch.device, dtype: torch.dtype) -> Peaks:
    a, b = (torch.randn(SIDE, SIDE, device=device).to(dtype) for _ in range(2))
    source = torch.empty(COPIED, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    product, copy = lambda: a @ b, lambda: target.copy_(source)
    with torch.no_grad():
        for call in (product, copy):
            call()
        tries = [(_best(product, device), _best(copy, device))]
        while len(tries) < TRIES and (len(tries) < 2 or _falls(tries)):
            tries.append((_best(product, device), _best(copy, device)))
    flops, bandwidth = 2 * SIDE**3 / min(t[0] for t in tries), 2 * COPIED / min(t[1] for t in tries)
    return Peaks(device_name(device), str(dtype).removeprefix("torch."), flops, bandwidth)


def _falls(tries: list[tuple[float, float]]) -> bool:
    """Whether the last try took less time than all before it, in one of the two, by more than runs differ."""
    return any(last < 0.95 * min(before) for *before, last in zip(*tries, strict=True))


def _best(call: Callable[[], Any], device: torch.device) -> float:
    return min(timed(call, device) for _ in range(RUNS))


def _chip(device: torch.device) -> str:
    """What peaks are of: they do not hold for another machine that shares the cache folder."""
    name = device_name(device)
    if device.type != "cpu":
        return name
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.machine()} | {name}"


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a call, waited for."""
    wait(device)
    before = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - before


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
