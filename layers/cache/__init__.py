"""What a key-value state keeps: one policy a file. Where it keeps it is the state's own business."""

from zoo.layers.cache.dense import Dense
from zoo.layers.cache.policy import Policy

__all__ = ["Dense", "Policy"]
