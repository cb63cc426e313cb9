"""Training in less memory: one door, and a method a file behind it."""

from zoo.train.memory.blockwise import Blockwise, Checkpointing
from zoo.train.memory.memo import Memo, swap_share
from zoo.train.memory.method import MEMORIES, Lean, Memory, as_memories, as_memory, check_sharded, lean
from zoo.train.memory.reversible import Reversible
from zoo.train.memory.ssdtrain import SSDTrain
from zoo.train.memory.streambp import StreamBP

__all__ = [
    "MEMORIES",
    "Blockwise",
    "Checkpointing",
    "Lean",
    "Memo",
    "Memory",
    "Reversible",
    "SSDTrain",
    "StreamBP",
    "as_memories",
    "as_memory",
    "check_sharded",
    "lean",
    "swap_share",
]
