r"""Learning from forward passes alone, in a subspace that the past of what learns tells.

.. math::
    g = \frac{1}{n \sqrt{(d + n - 1) / n}} \sum_{i=1}^n \frac{L(e + \mu z_i) - L(e)}{\mu} z_i, \quad z_i \sim N(0, I),
    \qquad g \leftarrow g - U^\top U g

with d the dimensions that are free: U are the directions in which e has hardly moved over the last steps, where an
estimate is noise.

Paper: Seo et al., "Efficient Personalization of Quantized Diffusion Model without Backpropagation", arXiv 2503.14868;
numbers as the authors' code has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from torch import Tensor, nn

from zoo.layers.options import require_above, require_at_least
from zoo.train.data.rng import derive_seed
from zoo.train.optim import unwrapped
from zoo.train.tasks import Task


def estimate(loss: Callable[[Tensor], Tensor], e: Tensor, samples: int, mu: float, seed: int, free: int) -> Tensor:
    """The gradient (d,) of a loss at e (d,), from samples + 1 values of it.

    Args:
        loss: a function of e alone: what it draws is the same each time.
        free: d of the factor.
    """
    source, first, total = torch.Generator().manual_seed(seed), loss(e), torch.zeros_like(e)
    for _ in range(samples):
        z = torch.randn(e.shape, generator=source, dtype=e.dtype).to(e.device)
        total += (loss(e + mu * z) - first) / mu * z
    return total / (samples * math.sqrt((free + samples - 1) / samples))


class Subspace:
    """Where a vector has moved.

    Of the last ``history`` vectors the principal components are taken, each coordinate scaled to a variance of 1; those
    after the first that together have more than 1 - nu of the variance are U, and taken out of gradients. So it is each
    time that many vectors have come; before the first time, and with nu 0, nothing is taken out.

    Attributes:
        noise: U (r, d), orthonormal; None before there is one.
    """

    def __init__(self, history: int = 128, nu: float = 1e-3):
        require_at_least(2, history=history)
        if not 0 <= nu < 1:
            raise ValueError(f"nu must be in [0, 1), got {nu}")
        self.history, self.nu = history, nu
        self.past: list[Tensor] = []
        self.noise: Tensor | None = None

    def note(self, e: Tensor) -> None:
        """Remember a vector (d,)."""
        self.past.append(e.detach().clone())
        if len(self.past) == self.history:
            self.noise, self.past = self._directions(torch.stack(self.past)), []

    def free(self, dimensions: int) -> int:
        """Dimensions that are left."""
        return dimensions - (0 if self.noise is None else len(self.noise))

    def project(self, gradient: Tensor) -> Tensor:
        """A gradient (d,) without the noise."""
        return gradient if self.noise is None else gradient - self.noise.mT @ (self.noise @ gradient)

    def _directions(self, past: Tensor) -> Tensor:
        spread = past.std(0, correction=0)
        _, values, rows = torch.linalg.svd((past - past.mean(0)) / spread.where(spread > 0, 1.0), full_matrices=False)
        share = values.square().cumsum(0)  # over its own end, so that no rounding takes it beyond 1
        kept = int((share <= (1 - self.nu) * share[-1]).sum()) + 1
        return rows[kept:]


class ZerothOrder(Callback):
    """Whatever a task minimises is learnt from forward passes alone: no activations, no gradients through the model.

    All parameters that need a gradient are one vector, so leave few of them: the rows of an embedding
    (``--adapter rows``) over a model in integers, say. Losses of a step see the same batch and the same draws; what the
    optimiser then gets is the estimate. Adam takes eps 1e-3 and lr 1e-2 in the authors' code. Side losses are left out.

    >>> zoo train RECIPE --adapter rows --adapter.rows "[4]" --trainer.callbacks+=zoo.train.zeroth_order.ZerothOrder

    Args:
        samples: n, directions a step; it costs n + 1 forward passes.
        mu: length of a step along one.
        history: vectors after which the subspace is found anew.
        nu: share of the variance that is noise; 0 for no subspace.
        seed: of the directions.

    Raises:
        ValueError: for numbers out of range; when training starts, where nothing learns.
        TypeError: what is trained is no `Task`.
    """

    def __init__(
        self, *, samples: int = 2, mu: float = 1e-3, history: int = 128, nu: float = 1e-3, seed: int = 0
    ) -> None:
        require_at_least(1, samples=samples)
        require_above(0, mu=mu)
        self.samples, self.mu, self.seed = samples, mu, seed
        self.subspace = Subspace(history, nu)
        self.learning: list[nn.Parameter] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the place of the task's training step."""
        if not isinstance(pl_module, Task):
            raise TypeError(f"ZerothOrder takes a zoo.train.tasks.Task, got {type(pl_module).__name__}")
        if not (learning := [p for p in unwrapped(pl_module.trained).parameters() if p.requires_grad]):
            raise ValueError("ZerothOrder takes a model of which something learns: give it --adapter rows")
        self.learning, step = learning, _Step(self, pl_module, learning)

        def training_step(batch: Any, batch_idx: int) -> Tensor:
            return step(batch, batch_idx)

        pl_module.training_step = training_step

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give it back."""
        pl_module.__dict__.pop("training_step", None)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Remember what the parameters have become."""
        self.subspace.note(torch.cat([p.detach().flatten() for p in self.learning]))

    def state_dict(self) -> dict[str, Any]:
        return {"past": list(self.subspace.past), "noise": self.subspace.noise}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.subspace.past, self.subspace.noise = list(state_dict["past"]), state_dict["noise"]


class _Step:
    """A training step whose gradient is the estimate, and whose value is the loss."""

    def __init__(self, method: ZerothOrder, task: Task, learning: list[nn.Parameter]):
        self.method, self.task, self.learning = method, task, learning
        self.usual = task.training_step

    def __call__(self, batch: Any, batch_idx: int) -> Tensor:
        method, task = self.method, self.task
        seed = derive_seed(method.seed, task.global_step, batch_idx, task.global_rank)
        before = [p.detach().clone() for p in self.learning]
        e = torch.cat([part.flatten() for part in before])
        losses: list[Tensor] = []

        def loss(vector: Tensor) -> Tensor:
            for p, part in zip(self.learning, vector.split([p.numel() for p in self.learning]), strict=True):
                p.copy_(part.view_as(p))
            devices = [e.device] if e.is_cuda else []
            with torch.random.fork_rng(devices):
                torch.manual_seed(seed)
                losses.append(self._asked(batch, batch_idx))
            return losses[-1]

        subspace = method.subspace
        with torch.no_grad():
            try:
                apart = derive_seed(seed, 1)  # from what the task draws
                gradient = estimate(loss, e, method.samples, method.mu, apart, subspace.free(e.numel()))
            finally:
                for p, part in zip(self.learning, before, strict=True):  # from the copy: steps there and back round
                    p.copy_(part)
        task.log("train/loss", losses[0], prog_bar=True, sync_dist=True)
        parts = subspace.project(gradient).split([p.numel() for p in self.learning])
        slope = sum((p * part.view_as(p)).sum() for p, part in zip(self.learning, parts, strict=True))
        return losses[0] + slope - slope.detach()  # type: ignore[union-attr]

    def _asked(self, batch: Any, batch_idx: int) -> Tensor:
        self.task.asking = True
        try:
            return self.usual(batch, batch_idx)  # type: ignore[return-value]
        finally:
            self.task.asking = False
