"""Callbacks: averaging, checkpoints, exact resuming, throughput, a guard against NaNs, stopping, export."""

from zoo.train.callbacks.checkpoint import LastCheckpoint, newest_checkpoint
from zoo.train.callbacks.ema import EMA
from zoo.train.callbacks.export import ExportModel
from zoo.train.callbacks.held_out import HeldOut
from zoo.train.callbacks.nan_guard import NaNGuard, NonFiniteError
from zoo.train.callbacks.progress import ProgressBar, ValidateAtEnd
from zoo.train.callbacks.refactorize import Refactorize
from zoo.train.callbacks.rng import RNGState
from zoo.train.callbacks.stages import Stages
from zoo.train.callbacks.stop import StopOnSignal, Stopped
from zoo.train.callbacks.throughput import Throughput, measure_peak_flops
from zoo.train.callbacks.unfreezing import ProgressiveUnfreezing

__all__ = [
    "EMA",
    "ExportModel",
    "HeldOut",
    "LastCheckpoint",
    "NaNGuard",
    "NonFiniteError",
    "ProgressBar",
    "ProgressiveUnfreezing",
    "RNGState",
    "Refactorize",
    "Stages",
    "StopOnSignal",
    "Stopped",
    "Throughput",
    "ValidateAtEnd",
    "measure_peak_flops",
    "newest_checkpoint",
]
