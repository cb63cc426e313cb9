"""What a profile holds: plain figures with their units."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Peaks:
    """What a device reaches at best, as measured by a large product and a large copy.

    Attributes:
        device: its name, with the threads of a CPU.
        dtype: of the product.
        flops: operations a second.
        bandwidth: bytes a second, read and written.
    """

    device: str
    dtype: str
    flops: float
    bandwidth: float

    def seconds(self, flops: float, moved: float) -> float:
        """The roofline: no call of so many operations and bytes takes less time."""
        return max(flops / self.flops, moved / self.bandwidth)

    @property
    def ridge(self) -> float:
        """Operations a byte from which on arithmetic is what takes the time."""
        return self.flops / self.bandwidth


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Median of several runs, the fastest and the slowest of them."""

    median: float
    least: float
    most: float


@dataclasses.dataclass(frozen=True)
class Layer:
    """A module in the forward pass, all that is inside it included.

    Attributes:
        name: dotted; "" is the model.
        kind: its class.
        calls: how often it was called.
        parameters: numbers in it.
        flops: floating-point operations.
        bytes: read and written by its operations, each for itself.
        waterline: seconds, the sum over its operations of the roofline of each; None without peaks.
        seconds: measured; None where nothing ran.
    """

    name: str
    kind: str
    calls: int
    parameters: int
    flops: int
    bytes: int
    waterline: float | None = None
    seconds: float | None = None

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.flops / self.bytes if self.bytes else 0.0


@dataclasses.dataclass(frozen=True)
class Phase:
    """One kind of call: "forward", "training" (forward and backward) or "decode" (one token a row, from a state).

    Attributes:
        flops: floating-point operations.
        bytes: read and written by its operations, each for itself.
        least_bytes: that must move however operations are fused: weights, inputs, outputs, the state read and written;
            in training weights twice, and their gradients.
        memory: bytes that live at the same time at most, beside weights and inputs: predicted.
        bound: seconds, the roofline of flops and least_bytes. None without peaks, as the next ones.
        waterline: seconds, the sum over the operations of the roofline of each: what no kernel a layer can beat.
        seconds: measured; None where nothing ran.
        measured_memory: the allocator's peak; None where nothing ran.
        items: tokens, vectors or images of the call.
        energy: joules of a call; None where it was not asked for or cannot be read.
    """

    name: str
    items: int
    flops: int
    bytes: int
    least_bytes: int
    memory: int
    bound: float | None = None
    waterline: float | None = None
    seconds: Seconds | None = None
    measured_memory: int | None = None
    energy: float | None = None

    @property
    def intensity(self) -> float:
        """Operations for each byte that must move."""
        return self.flops / self.least_bytes

    @property
    def throughput(self) -> float | None:
        """Items a second."""
        return None if self.seconds is None else self.items / self.seconds.median

    @property
    def gap(self) -> float | None:
        """How many times the bound was taken."""
        return None if self.seconds is None or not self.bound else self.seconds.median / self.bound


@dataclasses.dataclass(frozen=True)
class Profile:
    """What a model costs.

    Attributes:
        name: of the model, or its class.
        device: that it ran on; "meta" where nothing ran.
        dtype: that it computes in: of its parameters, codes left out.
        inputs: shape of what it reads.
        unit: of the items that phases count.
        parameters: numbers, tied tensors once.
        active_parameters: that one token uses: those of experts it does not visit are left out.
        weight_bytes: of parameters and buffers.
        state_bytes: (tokens, bytes of the state or cache after them), of the whole batch; empty without a state.
        phases: kinds of calls.
        layers: modules in the forward pass, in the order of the model.
        peaks: of the device; None where nothing ran.
        energy_source: where energy was read, or why there is none.
        untrained: why there is no training phase, where one was not left out on purpose; None otherwise.
        doubt: why the peaks cannot be this machine's, and what to do; None where they can.
    """

    name: str
    device: str
    dtype: str
    inputs: tuple[int, ...]
    unit: str
    parameters: int
    active_parameters: int
    weight_bytes: int
    state_bytes: tuple[tuple[int, int], ...]
    phases: tuple[Phase, ...]
    layers: tuple[Layer, ...]
    peaks: Peaks | None
    energy_source: str = "not measured"
    doubt: str | None = None
    untrained: str | None = None

    def phase(self, name: str) -> Phase:
        """One of the phases.

        Raises:
            ValueError: for one that was not profiled.
        """
        for phase in self.phases:
            if phase.name == name:
                return phase
        raise ValueError(f"phase must be one of {', '.join(p.name for p in self.phases)}, got {name!r}")

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with what is computed of the figures."""
        record = dataclasses.asdict(self)
        for phase, found in zip(self.phases, record["phases"], strict=True):
            found |= {"intensity": phase.intensity, "throughput": phase.throughput, "gap": phase.gap}
        return record
