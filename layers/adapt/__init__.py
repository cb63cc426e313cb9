"""Layers that adapters put into a model, and the marks by which they are found there."""

from zoo.layers.adapt.lean import LeanInvertedResidual
from zoo.layers.adapt.marks import Mark, before, mark_of, placed, put, require_unadapted, undone_on_failure
from zoo.layers.adapt.partial import PartialLinear
from zoo.layers.adapt.rows import PartialEmbedding

__all__ = [
    "LeanInvertedResidual",
    "Mark",
    "PartialEmbedding",
    "PartialLinear",
    "before",
    "mark_of",
    "placed",
    "put",
    "require_unadapted",
    "undone_on_failure",
]
