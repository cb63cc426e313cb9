"""Low-rank training: factors that are balanced anew, and a momentum that is forgotten, every so many steps."""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from zoo.layers.lowrank import LowRank, SparseLowRank
from zoo.layers.options import require_at_least
from zoo.train.optim import states_of, unwrapped
from zoo.train.tasks import Task

MOMENTUM = ("exp_avg", "momentum_buffer")  # what optimisers call it


class Refactorize(Callback):
    r"""Every `every_n_steps` optimiser steps: the factors of the same product that are balanced, and no momentum.

    .. math::
        B A = U S V^\top, \quad B \leftarrow U \sqrt S, \quad A \leftarrow \sqrt S V^\top, \quad
        B^\top B = A A^\top = S

    Of all products of this value these have the smallest norms. It takes the layers of ``zoo.sltrain`` and
    ``zoo.factorize``. The first moment of all parameters is then set to zero, as it was made for the factors before
    (the second stays), and the learning rate rises again over `recovery_steps`. An average of the weights (`EMA`) keeps
    its products, in factors that go on with the new ones.

        trainer.callbacks+: zoo.train.callbacks.Refactorize

    Args:
        every_n_steps: optimiser steps between two times; the paper's text does not say, its code has 50 to 500.
        refactorize: balance the factors.
        reset: set the momentum to zero.
        recovery_steps: k: the rate is 1 / (k + 1), 2 / (k + 1), ... of the schedule's after each time; 0 for none.

    Raises:
        ValueError: for numbers out of range; when training starts, for a model without low ranks, or a sharded one.

    Paper: "Scalable Parameter and Memory Efficient Pretraining for LLM: Recent Algorithmic Advances and Benchmarking",
    arXiv 2505.22922.
    """

    def __init__(
        self, *, every_n_steps: int = 200, refactorize: bool = True, reset: bool = True, recovery_steps: int = 10
    ) -> None:
        require_at_least(1, every_n_steps=every_n_steps)
        require_at_least(0, recovery_steps=recovery_steps)
        self.every_n_steps, self.recovery_steps = every_n_steps, recovery_steps
        self.refactorize, self.reset = refactorize, reset
        self._step = 0  # the last one at which it was done

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Whether there is something to do."""
        pairs = factors(_model(pl_module))
        if not pairs:
            raise ValueError("Refactorize takes a model with low ranks: give it changes: [{kind: sltrain, rank: 32}]")
        if any(isinstance(factor, DTensor) for pair in pairs for factor in pair):
            raise ValueError("Refactorize takes whole factors: train by the strategy ddp or zero1, not by fsdp2")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Before the first batch of a step."""
        step = trainer.global_step
        if step == self._step or step % self.every_n_steps:
            return
        self._step = step
        if self.refactorize:
            pairs, average = factors(_model(pl_module)), cast(Task, pl_module).average
            for outer, inner in pairs:
                balance(outer, inner)
            for averaged, (outer, _) in zip([] if average is None else factors(average), pairs, strict=False):
                follow(*averaged, outer)
        if self.reset:
            for optimizer in trainer.optimizers:
                forget(optimizer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """A lower rate for the steps after that; the schedule sets it anew after each."""
        step = trainer.global_step
        if step >= self.every_n_steps and (since := step % self.every_n_steps) < self.recovery_steps:
            for group in optimizer.param_groups:
                group["lr"] *= (since + 1) / (self.recovery_steps + 1)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._step = state_dict["step"]


def factors(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Outer (out, r, ...) and inner (r, in, ...) factor of every low-rank layer; convolutions have their kernels."""
    found = []
    for module in model.modules():
        if isinstance(module, LowRank):
            found.append((module.from_rank.weight, module.to_rank.weight))
        elif isinstance(module, SparseLowRank):
            found.append((module.B.weight, module.A.weight))
    return cast(list[tuple[Tensor, Tensor]], found)


@torch.no_grad()
def balance(outer: Tensor, inner: Tensor) -> None:
    """The factors of the same product with B^T B = A A^T, in place: in float64, by the r x r matrix between two QR."""
    left, above = torch.linalg.qr(outer.flatten(1).double())
    right, below = torch.linalg.qr(inner.flatten(1).double().mT)
    U, S, Vh = torch.linalg.svd(above @ below.mT)
    outer.copy_((left @ U * S.sqrt()).view_as(outer))
    inner.copy_((S.sqrt()[:, None] * Vh @ right.mT).view_as(inner))
    if torch.distributed.is_initialized():  # signs are free, and machines may choose others
        for factor in (outer, inner):
            torch.distributed.broadcast(factor, 0)


@torch.no_grad()
def follow(outer: Tensor, inner: Tensor, new: Tensor) -> None:
    """Averaged factors of the same product that are the nearest to the new outer factor, in place: balanced ones times
    the orthogonal matrix that takes them there. Means of them and of the new factors are of one basis again."""
    balance(outer, inner)
    U, _, Vh = torch.linalg.svd(outer.flatten(1).double().mT @ new.flatten(1).double())
    outer.copy_((outer.flatten(1).double() @ U @ Vh).view_as(outer))
    inner.copy_(((U @ Vh).mT @ inner.flatten(1).double()).view_as(inner))


@torch.no_grad()
def forget(optimizer: Optimizer) -> None:
    """Set the momentum of all parameters to zero.

    Raises:
        ValueError: for an optimiser that has none that is known.
    """
    states = states_of(optimizer)
    found = [state[name] for state in states.values() for name in MOMENTUM if state.get(name) is not None]
    if states and not found:
        raise ValueError(f"{type(optimizer).__name__} has no momentum that is known, {' or '.join(MOMENTUM)}")
    for moment in found:
        moment.zero_()


def _model(pl_module: LightningModule) -> nn.Module:
    if not isinstance(pl_module, Task):
        raise TypeError(f"Refactorize takes a zoo.train.tasks.Task, got {type(pl_module).__name__}")
    return unwrapped(pl_module.trained)
