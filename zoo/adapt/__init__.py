"""Few parameters tuned, the rest as it was: one door, and a method a file behind it."""

from zoo.adapt.files import load_adapter, own_names, save_adapter
from zoo.adapt.ladder import Ladder
from zoo.adapt.lora import DoRA, LoRA
from zoo.adapt.mamba_lora import MambaLoRA
from zoo.adapt.method import ADAPTERS, Adapter, adapt, adapters_of, as_adapter, merge_adapter
from zoo.adapt.mobiletl import MobileTL
from zoo.adapt.paca import PaCA
from zoo.adapt.records import L4Q, PEQA, SketchTune
from zoo.adapt.rows import Rows
from zoo.adapt.scedit import SCEdit
from zoo.adapt.sink_lora import SinkLoRA
from zoo.adapt.sparse import PERP, PST

__all__ = [
    "ADAPTERS",
    "L4Q",
    "PEQA",
    "PERP",
    "PST",
    "Adapter",
    "DoRA",
    "Ladder",
    "LoRA",
    "MambaLoRA",
    "MobileTL",
    "PaCA",
    "Rows",
    "SCEdit",
    "SinkLoRA",
    "SketchTune",
    "adapt",
    "adapters_of",
    "as_adapter",
    "load_adapter",
    "merge_adapter",
    "own_names",
    "save_adapter",
]
