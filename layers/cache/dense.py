"""The cache that forgets nothing."""

from __future__ import annotations

from dataclasses import dataclass

from zoo.layers.cache.policy import Policy


@dataclass(frozen=True)
class Dense(Policy):
    """Every key and value stays: as they are, or by a ``store`` in fewer bits or elsewhere."""
