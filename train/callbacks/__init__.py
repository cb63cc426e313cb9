"""Callbacks: averaging, checkpoints, exact resuming, throughput, a guard against NaNs, export, unfreezing."""

from zoo.train.callbacks.checkpoint import LastCheckpoint, newest_checkpoint
from zoo.train.callbacks.ema import EMA
from zoo.train.callbacks.export import ExportModel
from zoo.train.callbacks.nan_guard import NaNGuard, NonFiniteError
from zoo.train.callbacks.rng import RNGState
from zoo.train.callbacks.throughput import Throughput, measure_peak_flops
from zoo.train.callbacks.unfreezing import ProgressiveUnfreezing

__all__ = [
    "EMA",
    "ExportModel",
    "LastCheckpoint",
    "NaNGuard",
    "NonFiniteError",
    "ProgressiveUnfreezing",
    "RNGState",
    "Throughput",
    "measure_peak_flops",
    "newest_checkpoint",
]
