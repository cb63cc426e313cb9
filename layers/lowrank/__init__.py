"""Matrices as products of two narrow ones."""

from zoo.layers.lowrank.factors import LowRank, ranks_in, ranks_of, restored
from zoo.layers.lowrank.solvers import SOLVERS

__all__ = ["SOLVERS", "LowRank", "ranks_in", "ranks_of", "restored"]
