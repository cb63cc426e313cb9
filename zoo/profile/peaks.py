"""What this machine reaches at best, measured once and remembered in the zoo's cache folder."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

import torch

from zoo.kernels.native import cache_folder
from zoo.profile.record import Peaks

SIDE, COPIED, RUNS = 1536, 1 << 26, 7  # of the product; bytes of the copy; the best of so many runs


def device_name(device: torch.device) -> str:
    """As a record names it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def peaks(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, *, fresh: bool = False) -> Peaks:
    """Operations and bytes a second of a device: of a product of two square matrices and of a copy of 64 MiB.

    The best of seven runs each, measured once: ``peaks.json`` in the cache folder keeps them, by device, threads, dtype
    and version of torch.

    Args:
        fresh: measure again.
    """
    device = torch.device(device)
    key = f"{device_name(device)} | {dtype} | torch {torch.__version__}"
    path = cache_folder() / "peaks.json"
    known = _read(path)
    if fresh or key not in known:
        found = _measured(device, dtype)
        known[key] = dataclasses.asdict(found)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(known, indent=1))
        partial.replace(path)
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
    with torch.no_grad():
        flops = 2 * SIDE**3 / _best(lambda: a @ b, device)
        bandwidth = 2 * COPIED / _best(lambda: target.copy_(source), device)
    return Peaks(device_name(device), str(dtype).removeprefix("torch."), flops, bandwidth)


def _best(call: Callable[[], Any], device: torch.device) -> float:
    call()
    return min(timed(call, device) for _ in range(RUNS))


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
