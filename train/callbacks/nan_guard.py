"""Stop at the first loss or gradient that is not finite, before it reaches the weights."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

NAMES_SHOWN = 5


class NonFiniteError(RuntimeError):
    """Training met a NaN or an infinity. The message names the step, what is bad and the file with the state."""


class NaNGuard(Callback):
    """Before every optimiser step, check the loss and the norm of the gradients; log the norm as `train/grad_norm`.

    Where either is NaN or infinite: save what is needed to look into it (step, loss, batch, the weights as they were
    before the step, and the names of parameters and gradients that are bad) to `nonfinite-step<N>.pt` in the trainer's
    `default_root_dir`, and stop. With float16 and a gradient scaler infinite gradients are a part of the method, so
    there only the loss is checked.

    Args:
        enabled: off, nothing is checked or logged. A check costs one synchronisation with the device per step.

    Raises:
        NonFiniteError: during training, in every process.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._loss = torch.zeros(())
        self._batch: Any = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch = batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._loss = loss.detach()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if not self.enabled:
            return
        parameters = list(pl_module.parameters())
        gradients = [_local(p.grad) for p in parameters if p.grad is not None]
        norms = torch.stack([norm.float() for norm in torch._foreach_norm(gradients)])
        squared = (norms.square() * norms.new_tensor([_share(p.grad) for p in parameters if p.grad is not None])).sum()
        bad = torch.stack([~self._loss.isfinite(), ~norms.isfinite().all()]).float()
        if trainer.world_size > 1:  # so that all stop, or none
            bad = trainer.strategy.reduce(bad, reduce_op="sum")
            if any(isinstance(p, DTensor) for p in parameters):
                squared = trainer.strategy.reduce(squared, reduce_op="sum")
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        bad_loss, bad_gradient = bad.tolist()
        if bad_loss or (bad_gradient and not scaled):
            self._stop(trainer, pl_module)
        if not scaled:
            pl_module.log("train/grad_norm", squared.sqrt())

    def _stop(self, trainer: Trainer, module: LightningModule) -> None:
        named = [(name.removeprefix("model."), p) for name, p in module.named_parameters()]
        gradients = _in_any_process([name for name, p in named if p.grad is not None and not _is_finite(p.grad)])
        parameters = _in_any_process([name for name, p in named if not _is_finite(p)])
        step, loss = trainer.global_step, float(self._loss) * trainer.accumulate_grad_batches
        path = Path(trainer.default_root_dir) / f"nonfinite-step{step}.pt"
        weights = trainer.strategy.lightning_module_state_dict()  # every process must ask, where it is sharded
        if trainer.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            state = {"step": step, "epoch": trainer.current_epoch, "loss": loss, "batch": self._batch}
            names = {"bad_gradients": gradients, "bad_parameters": parameters}
            torch.save({**state, **names, "state_dict": weights}, path)
        raise NonFiniteError(
            f"training stopped at step {step} (epoch {trainer.current_epoch}): loss {loss}; "
            f"gradients not finite: {_listed(gradients)}; parameters not finite: {_listed(parameters)}. "
            f"The weights before this step, and its batch, are in {path}"
        )


def _is_finite(tensor: Tensor) -> bool:
    return bool(_local(tensor).isfinite().all())


def _in_any_process(names: list[str]) -> list[str]:
    """The names that some process has: of a sharded tensor each sees its own part."""
    if not torch.distributed.is_initialized():
        return names
    gathered: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, names)
    return list(dict.fromkeys(name for part in gathered for name in part))


def _share(gradient: Tensor) -> float:
    """What a process counts of its own part: several may have the same."""
    if not isinstance(gradient, DTensor):
        return 1.0
    sizes = zip(gradient.device_mesh.shape, gradient.placements, strict=True)
    return 1 / prod(size for size, placement in sizes if placement.is_replicate())


def _local(tensor: Tensor) -> Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def _listed(names: list[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
