"""The six metrics of EfficientLLM, of a profile and of what was read off the machine.

The paper names them; of its formulas only their meaning was at hand, so the units and quotients here are ours.

Paper: Yuan et al., "EfficientLLM: Efficiency in Large Language Models", arXiv 2505.13840.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from zoo.profile.record import Profile

RAPL = Path("/sys/class/powercap")


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Each with its unit.

    Attributes:
        memory_utilisation: share of the device's memory that weights and the peak of the call take.
        compute_utilisation: share of the peak operations a second that the call reaches.
        bandwidth_utilisation: share of the peak bytes a second, of those that must move.
        latency: seconds a call.
        throughput: tokens or images a second.
        energy: joules a call; None where the machine does not tell, and why is in ``energy_source``.
        energy_source: where it was read, or why not.
        compression: bytes in float32 over bytes as they are: 1 for float32.
    """

    memory_utilisation: float
    compute_utilisation: float
    bandwidth_utilisation: float
    latency: float
    throughput: float
    energy: float | None
    energy_source: str
    compression: float


def metrics(profile: Profile, phase: str, memory: int, energy: Energy | None = None) -> Metrics:
    """Of a phase that was measured.

    Args:
        memory: bytes of the device, all of them.
        energy: of the call, from ``measured_energy``; that of the profile where None.

    Raises:
        ValueError: for a phase that is not in the profile, or was counted only.
    """
    found = profile.phase(phase)
    if found.seconds is None or found.measured_memory is None or profile.peaks is None:
        raise ValueError(f"{phase} was counted and not run: profile it on a device other than meta")
    latency, told = found.seconds.median, energy or Energy(found.energy, profile.energy_source)
    return Metrics(
        (profile.weight_bytes + found.measured_memory) / memory,
        found.flops / latency / profile.peaks.flops,
        found.least_bytes / latency / profile.peaks.bandwidth,
        latency, found.items / latency, told.joules, told.source,
        4 * profile.parameters / profile.weight_bytes,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Energy:
    """Joules, and where they were read; None and why not."""

    joules: float | None
    source: str


def measured_energy(
    call: Callable[[], Any], device: torch.device | None = None, *, least: float = 0.5, rapl: Path = RAPL
) -> Energy:
    """Joules of one call, run for at least so many seconds: of a GPU by NVML, of a CPU's packages by RAPL.

    What else runs on the machine is in it.

    Args:
        device: that computes; a GPU where there is one when None.
    """
    if torch.cuda.is_available() if device is None else device.type == "cuda":
        return _by_power(call, device, least)
    domains = [path for path in sorted(rapl.glob("intel-rapl:*")) if path.name.count(":") == 1]
    counters = [domain / "energy_uj" for domain in domains]
    if not counters:
        return Energy(None, f"unavailable: no RAPL counters in {rapl}, no NVIDIA GPU")
    try:
        before = [int(counter.read_text()) for counter in counters]
        count = _repeated(call, least)
        after = [int(counter.read_text()) for counter in counters]
        ranges = [int((domain / "max_energy_range_uj").read_text()) for domain in domains]
    except OSError as error:
        return Energy(None, f"unavailable: RAPL cannot be read ({error.strerror})")
    used = sum((b - a) % (top + 1) for a, b, top in zip(before, after, ranges, strict=True))
    return Energy(used / 1e6 / count, "RAPL, packages")


def _by_power(call: Callable[[], Any], device: torch.device | None, least: float) -> Energy:
    try:
        before = torch.cuda.power_draw(device)
        started = time.perf_counter()
        count = _repeated(call, least)
        torch.cuda.synchronize(device)
        taken, after = time.perf_counter() - started, torch.cuda.power_draw(device)
    except (ModuleNotFoundError, RuntimeError) as error:
        return Energy(None, f"unavailable: NVML cannot be read ({error})")
    return Energy((before + after) / 2000 * taken / count, "NVML, mean of the power before and after")


def _repeated(call: Callable[[], Any], least: float) -> int:
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < least or not count:
        call()
        count += 1
    return count
