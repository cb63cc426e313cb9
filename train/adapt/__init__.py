"""What training does with adapters (`zoo.adapt`): which of them learn in a step, and streams of tasks."""

from zoo.train.adapt.continual import DynamicConPET, StaticConPET
from zoo.train.adapt.importance import ImportanceSampling

__all__ = ["DynamicConPET", "ImportanceSampling", "StaticConPET"]
