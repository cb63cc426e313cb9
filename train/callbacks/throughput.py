"""Throughput and model-FLOPs utilisation."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from zoo.kernels.flops import flop_counter
from zoo.train.callbacks.rng import capture, restore
from zoo.train.parallel import data_processes
from zoo.train.tasks import Task


class Throughput(Callback):
    """Log how much training gets through, over windows of `every_n_steps` batches, evaluation left out.

        train/{images,tokens}_per_second    over all processes; `task.count(batch)` says what a batch holds
        train/tflops_per_second             model FLOPs of a batch (forward and backward), over all processes
        train/mfu                           the same as a share of the processes' peak

    FLOPs are counted once, by `torch.utils.flop_counter`, on a copy of the model before the first batch trains it:
    matrix products, convolutions, attention and the operations that the kernels register, not element-wise work.
    Recomputed activations are counted, models whose layers are shared out (`zoo.parallelize`) are not. The training
    step itself never runs under the counter, which would round it otherwise.

    Args:
        every_n_steps: batches per window.
        count_flops: off, only the first line is logged.
        peak_flops: FLOP/s of one device; measured once by a large matrix product of the training precision if left out.

    Attributes:
        flops_per_batch: of one process; None before it is counted.
        rate: the last window's items per second; None before the first window ends.
    """

    def __init__(self, every_n_steps: int = 50, count_flops: bool = True, peak_flops: float | None = None) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be >= 1, got {every_n_steps}")
        self.every_n_steps, self.count_flops, self.peak_flops = every_n_steps, count_flops, peak_flops
        self.flops_per_batch: int | None = None
        self.rate: float | None = None
        self._start = self._paused = 0.0
        self._items = self._batches = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._batches = -1  # the first batch warms up, and is counted

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.count_flops and self.flops_per_batch is None:
            assert isinstance(pl_module, Task)
            with trainer.precision_plugin.train_step_context():
                self.flops_per_batch = training_flops(pl_module, batch)
            if self.flops_per_batch and self.peak_flops is None:
                self.peak_flops = measure_peak_flops(pl_module.device, _compute_dtype(trainer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._batches < 0:
            return self._begin(pl_module.device)
        assert isinstance(pl_module, Task)
        self._batches += 1
        self._items += pl_module.count(batch)
        if self._batches < self.every_n_steps:
            return None
        _synchronise(pl_module.device)
        seconds = time.perf_counter() - self._start
        self.rate = self._items * data_processes(trainer)[1] / seconds
        pl_module.log(f"train/{pl_module.unit}_per_second", self.rate, prog_bar=True)
        if self.flops_per_batch and self.peak_flops:
            achieved = self.flops_per_batch * self._batches / seconds
            pl_module.log("train/tflops_per_second", achieved * trainer.world_size / 1e12)
            pl_module.log("train/mfu", achieved / self.peak_flops)
        return self._begin(pl_module.device)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _synchronise(pl_module.device)
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _synchronise(pl_module.device)
        self._start += time.perf_counter() - self._paused

    def _begin(self, device: torch.device) -> None:
        _synchronise(device)
        self._start, self._items, self._batches = time.perf_counter(), 0, 0


def training_flops(task: Task, batch: Any) -> int:
    """FLOPs of a training step, forward and backward, of this process.

    The step is taken by a copy of the model, which is dropped with its gradients; random numbers are put back and
    nothing is logged. A sharded model cannot be copied: it takes the step itself, and gets its buffers back. 0 where
    layers are shared out, whose tensors the counter does not tell from whole ones.
    """
    if getattr(task.trained, "parallel", None) is not None:
        return 0
    model, random_state = task.trained, capture()
    task.model = model if isinstance(model, FSDPModule) else copy.deepcopy(model)
    buffers = [(buffer, buffer.clone()) for buffer in task.model.buffers()]
    try:
        with _unlogged(task), flop_counter(display=False) as counter:
            cast(Tensor, task.training_step(batch, 0)).backward()
        return counter.get_total_flops()
    finally:
        task.model.zero_grad()
        for buffer, before in buffers:
            buffer.data.copy_(before)
        task.model = model
        restore(random_state)


@contextmanager
def _unlogged(task: Task) -> Iterator[None]:
    task.log = task.log_dict = lambda *_, **__: None  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        del task.log, task.log_dict


def measure_peak_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """FLOP/s of a square matrix product (2 n^3 FLOPs), the best of the repeats that fit into `seconds`."""
    n = 1024 if device.type == "cpu" else 8192
    a, b = (torch.ones(n, n, device=device, dtype=dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    torch.mm(a, b)
    _synchronise(device)
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(a, b)
        _synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def _compute_dtype(trainer: Trainer) -> torch.dtype:
    precision = str(trainer.precision)
    if precision.startswith("bf16"):
        return torch.bfloat16
    return torch.float16 if precision.startswith("16") else torch.float32


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
