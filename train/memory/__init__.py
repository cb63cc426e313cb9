"""Training in less memory: one door, and a method a file behind it."""

from zoo.train.memory.checkpointing import Checkpointing
from zoo.train.memory.coat import COATMemory
from zoo.train.memory.informative import fit_predictors
from zoo.train.memory.lemo import LeMo
from zoo.train.memory.memo import Memo, swap_share
from zoo.train.memory.method import MEMORIES, Lean, Memory, as_memories, as_memory, check_sharded, lean
from zoo.train.memory.reversible import Reversible
from zoo.train.memory.sltt import SLTT
from zoo.train.memory.ssdtrain import SSDTrain
from zoo.train.memory.streambp import StreamBP

__all__ = [
    "MEMORIES",
    "SLTT",
    "COATMemory",
    "Checkpointing",
    "LeMo",
    "Lean",
    "Memo",
    "Memory",
    "Reversible",
    "SSDTrain",
    "StreamBP",
    "as_memories",
    "as_memory",
    "check_sharded",
    "fit_predictors",
    "lean",
    "swap_share",
]
