"""A step of decoding on the CPU as one list of operations that C runs."""

from zoo.kernels.step_program.matrix import Matrix, dense, integers, kept, minifloats, parts, sparse
from zoo.kernels.step_program.program import Chosen, Program
from zoo.kernels.step_program.records import SOURCE, Value
from zoo.kernels.step_program.recurrence import Gates, Recurrences

__all__ = [
    "SOURCE",
    "Chosen",
    "Gates",
    "Matrix",
    "Program",
    "Recurrences",
    "Value",
    "dense",
    "integers",
    "kept",
    "minifloats",
    "parts",
    "sparse",
]
