r"""The efficiency gap: what separates the time that a model takes from that of its operations at peak.

.. math:: \mathrm{latency} = \frac{\mathrm{operations}}{\mathrm{peak} \times \mathrm{efficiency}}

Of a model or a layer; the waterline is how far the efficiency can rise while every operation is a kernel of its own.

Paper: Lavin, "On the Efficiency of Convolutional Neural Networks", arXiv 2404.03617.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from zoo.profile.record import Layer, Profile


@dataclasses.dataclass(frozen=True)
class Gap:
    """Of a call or a layer, all times in seconds.

    Attributes:
        name: of the model, or dotted of the layer.
        flops: operations.
        ideal: what they take at the peak.
        waterline: what they take one after the other, each at its roofline.
        latency: measured.
    """

    name: str
    flops: int
    ideal: float
    waterline: float
    latency: float

    @property
    def efficiency(self) -> float:
        """Share of the peak that was reached: ideal / latency."""
        return self.ideal / self.latency

    @property
    def ceiling(self) -> float:
        """Share of the peak that kernels of one operation each can reach: ideal / waterline."""
        return self.ideal / self.waterline if self.waterline else 0.0


def gap(profile: Profile, phase: str = "forward") -> Gap:
    """Of a phase that was measured.

    Raises:
        ValueError: for a phase that is not in the profile, or was counted only.
    """
    found = profile.phase(phase)
    if found.seconds is None or found.waterline is None or profile.peaks is None:
        raise ValueError(f"{phase} was counted and not run: profile it on a device other than meta")
    return Gap(profile.name, found.flops, found.flops / profile.peaks.flops, found.waterline, found.seconds.median)


def gap_by_layer(profile: Profile) -> list[Gap]:
    """Of the smallest modules that hold all operations of the forward pass together, in the order of the model.

    A module is divided into those inside it as long as these do all of its operations; what moves bytes alone between
    them is in none.

    Raises:
        ValueError: for a model that was counted only.
    """
    peaks = profile.peaks
    if peaks is None:
        raise ValueError("the model was counted and not run: profile it on a device other than meta")
    return [
        Gap(layer.name, layer.flops, layer.flops / peaks.flops, layer.waterline or 0.0, layer.seconds)
        for layer in finest(profile.layers)
        if layer.flops and layer.seconds
    ]


def finest(layers: Sequence[Layer]) -> list[Layer]:
    """The smallest modules whose operations add up to those of the whole model."""
    inside: dict[str, list[Layer]] = {}
    known = {layer.name for layer in layers}
    for layer in layers:
        if layer.name:
            inside.setdefault(_around(layer.name, known), []).append(layer)

    def divided(layer: Layer) -> list[Layer]:
        parts = inside.get(layer.name, [])
        if not parts or sum(part.flops for part in parts) != layer.flops:
            return [layer]
        return [small for part in parts for small in divided(part)]

    return divided(layers[0])


def _around(name: str, known: set[str]) -> str:
    """The nearest module around it that is called itself; lists of modules are not."""
    while name := name.rpartition(".")[0]:
        if name in known:
            return name
    return ""
