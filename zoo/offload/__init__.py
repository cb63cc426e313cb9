"""Models larger than memory: one scheduler of slots that weights pass through, and a small policy a method."""

from zoo.offload.d2moe import D2MoE
from zoo.offload.edge_moe import EdgeMoE
from zoo.offload.flash import LLMInAFlash
from zoo.offload.offload import offload
from zoo.offload.policy import Offload
from zoo.offload.ring import TPILLM, SEMoE
from zoo.offload.slots import Slots, Traffic, Unit

__all__ = ["TPILLM", "D2MoE", "EdgeMoE", "LLMInAFlash", "Offload", "SEMoE", "Slots", "Traffic", "Unit", "offload"]
