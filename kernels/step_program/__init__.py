"""A step of decoding on the CPU as one list of operations that C runs."""

from zoo.kernels.step_program.matrix import Matrix, dense, integers, kept, minifloats, sparse
from zoo.kernels.step_program.program import Chosen, Program
from zoo.kernels.step_program.records import SOURCE, Value

__all__ = ["SOURCE", "Chosen", "Matrix", "Program", "Value", "dense", "integers", "kept", "minifloats", "sparse"]
