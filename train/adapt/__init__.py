"""What training does with adapters (`zoo.adapt`): which of them learn in a step, where they begin, streams of tasks."""

from zoo.train.adapt.continual import DynamicConPET, StaticConPET
from zoo.train.adapt.importance import ImportanceSampling
from zoo.train.adapt.ladder import PrunedLadder
from zoo.train.adapt.stream import ContinualClassification

__all__ = ["ContinualClassification", "DynamicConPET", "ImportanceSampling", "PrunedLadder", "StaticConPET"]
