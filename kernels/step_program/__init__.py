"""A step of decoding on the CPU as one list of operations that C runs."""

from zoo.kernels.step_program.program import SOURCE, Program, Value

__all__ = ["SOURCE", "Program", "Value"]
