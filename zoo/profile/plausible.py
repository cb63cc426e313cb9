"""Peaks that were measured while something else ran: told by what a model then seems to reach."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from zoo.profile.record import Profile

MOST = 1.1  # of a peak: what varies from run to run is less
COUNTED = 1e6  # operations of a layer whose time is not the clock's own
UNCACHED = 1 << 26  # bytes that come from memory, as those of the copy do


def beyond(profile: Profile) -> tuple[str, float] | None:
    """Phase or layer, and the share of a peak that it would reach, of the one furthest beyond it; None where all stay
    below. Of weights in few bits nothing is said: their products are not those that the peak is of."""
    if profile.peaks is None or profile.weight_bytes < profile.parameters * getattr(torch, profile.dtype).itemsize:
        return None
    furthest = max(_shares(profile), key=lambda one: one[1], default=("", 0.0))
    return furthest if furthest[1] > MOST else None


def doubted(profile: Profile) -> Profile:
    """The profile, saying so where its peaks cannot be the machine's."""
    if (found := beyond(profile)) is None:
        return profile
    where, share = found
    doubt = (
        f"the peaks are too low, {where} would reach {share:.0%} of them: other work ran when they were measured. "
        "Measure them again on an idle machine: `zoo profile NAME --fresh-peaks`, or peaks(fresh=True) of zoo.profile"
    )
    return dataclasses.replace(profile, doubt=doubt)


def _shares(profile: Profile) -> Iterator[tuple[str, float]]:
    peaks = profile.peaks
    assert peaks is not None
    for phase in profile.phases:
        if phase.seconds is not None:
            yield phase.name, phase.flops / peaks.flops / phase.seconds.median
            if phase.least_bytes >= UNCACHED:
                yield phase.name, phase.least_bytes / peaks.bandwidth / phase.seconds.median
    for layer in profile.layers:
        if layer.seconds and layer.flops >= COUNTED:
            yield layer.name or profile.name, layer.flops / peaks.flops / layer.seconds
