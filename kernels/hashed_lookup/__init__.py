"""Rows of tables that the signs of the input choose, weighted and summed: what a hashed layer computes."""

from zoo.kernels.hashed_lookup.op import hashed_lookup

__all__ = ["hashed_lookup"]
