"""Matrices as products of two narrow or sparse ones."""

from zoo.layers.lowrank.factors import LowRank, ranks_in, ranks_of, restored
from zoo.layers.lowrank.monarch import Monarch
from zoo.layers.lowrank.solvers import SOLVERS
from zoo.layers.lowrank.sparse import SparseLowRank

__all__ = ["SOLVERS", "LowRank", "Monarch", "SparseLowRank", "ranks_in", "ranks_of", "restored"]
