"""Search for the cells of a network, by gradient."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

import zoo
from zoo.train.data import DataModule
from zoo.train.data.rng import derive_seed
from zoo.train.optim import unwrapped
from zoo.train.tasks.base import remember
from zoo.train.tasks.classification import Batch, ImageClassification
from zoo.vision.pcdarts_search import Supernet, SupernetConfig

BETAS = 0.5, 0.999  # of Adam for the architecture, as in DARTS and PC-DARTS


class ArchitectureSearch(ImageClassification):
    r"""Bilevel search for the cells of PC-DARTS, first order.

    The weights w of a supernet with all operations learn from the training data, the strengths alpha, beta of its
    operations and edges from the held-out ones, in turns; at the end the strongest cells are kept.

    .. math:: \min_{\alpha, \beta} L_{val}(w, \alpha, \beta), \quad \min_w L_{train}(w, \alpha, \beta)

    Before each step of the weights come one of Adam for the strengths, on a batch drawn from the data module's "val"
    samples, which so are to be about half of all (``val_fraction: 0.5``); the metrics on them are of data that the
    architecture was chosen by. What is written in the end is no supernet but a network of the found cells with fresh
    weights; the genotype is printed, and is its configuration.

    Args:
        model: a name of the family pcdarts, whose sizes the supernet has; see `Task` and `ImageClassification` for
            the other arguments.
        share: K: one in K channels passes through the operations.
        architecture_lr, architecture_weight_decay: of Adam for the strengths.
        architecture_warmup: epochs in which they stay as they are.

    Raises:
        TypeError: for a module, or a name of another family.
        ValueError: for a number out of range; when fitting, for data without held-out samples, and in more than one
            process.

    Papers: Liu et al., "DARTS", arXiv:1806.09055; Xu et al., "PC-DARTS", arXiv:1907.05737.
    """

    def __init__(
        self,
        model: str,
        model_args: dict[str, Any] | None = None,
        *,
        share: int = 4,
        architecture_lr: float = 6e-4,
        architecture_weight_decay: float = 1e-3,
        architecture_warmup: int = 15,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, model_args, **kwargs)
        if not architecture_lr > 0 or architecture_weight_decay < 0 or architecture_warmup < 0:
            raise ValueError(
                "architecture_lr must be above 0, its weight decay and warm-up at least 0, got "
                f"{architecture_lr}, {architecture_weight_decay}, {architecture_warmup}"
            )
        self.share, self.architecture_warmup = share, architecture_warmup
        self.architecture = partial(
            torch.optim.Adam, lr=architecture_lr, betas=BETAS, weight_decay=architecture_weight_decay
        )
        self.architecture_optimizer: torch.optim.Optimizer | None = None
        self.sketch()  # wrong sizes fail here

    def sketch(self) -> nn.Module:
        """The supernet without memory and weights."""
        with torch.device("meta"):
            return _supernet(super().sketch, self.share)

    def configure_model(self) -> None:
        if self.model is None:
            self.build = partial(_supernet, self.build, self.share)
        super().configure_model()
        if self.architecture_optimizer is None:
            self.architecture_optimizer = self.architecture(self.supernet.architecture())

    @property
    def supernet(self) -> Supernet:
        """The model being trained."""
        return cast(Supernet, unwrapped(self.trained))

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.trainer.world_size > 1:
            raise ValueError(f"a search runs in one process, got {self.trainer.world_size}: set trainer.devices to 1")
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, DataModule) or "val" not in data.sources:
            raise ValueError("the architecture learns from held-out samples: take data with val_fraction 0.5")

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """A step of the architecture, once the weights are warm."""
        if self.current_epoch >= self.architecture_warmup:
            with self.trainer.precision_plugin.forward_context():
                self._architecture_step(*self._held_out(len(batch[0])))

    def _held_out(self, size: int) -> Batch:
        """Held-out samples, drawn from (seed, step) alone."""
        data = cast(DataModule, self.trainer.datamodule)  # pyright: ignore[reportAttributeAccessIssue]
        source, step = data.sources["val"], self.trainer.global_step
        drawn = torch.Generator().manual_seed(derive_seed(data.seed, step))
        images, targets = source.fetch(torch.randperm(len(source), generator=drawn)[:size], self.current_epoch)
        return images.to(self.device), targets.to(self.device)

    def _architecture_step(self, images: Tensor, targets: Tensor) -> None:
        assert self.architecture_optimizer is not None
        strengths = self.supernet.architecture()
        for parameter in strengths:
            parameter.requires_grad_(True)
        loss = F.cross_entropy(self.trained(images).float(), targets)
        for parameter, gradient in zip(strengths, torch.autograd.grad(loss, strengths), strict=True):
            parameter.requires_grad_(False).grad = gradient
        self.architecture_optimizer.step()
        self.architecture_optimizer.zero_grad()
        self.log("search/loss", loss.detach())
        for name in ("normal", "reduce"):
            self.log(f"search/entropy_{name}", _entropy(getattr(self.supernet, name)))

    def result(self) -> nn.Module:
        """A network of the found cells, its weights fresh."""
        genotype = self.supernet.genotype
        rank_zero_info(f"found {genotype}")
        name, model_args = self.given
        found = zoo.create_model(str(name), **{**model_args, "normal": genotype.normal, "reduce": genotype.reduce})
        remember(found, getattr(getattr(self.trainer, "datamodule", None), "preparation", {}))
        return found

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.architecture_optimizer is not None:
            checkpoint["architecture_optimizer"] = self.architecture_optimizer.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.architecture_optimizer is not None and "architecture_optimizer" in checkpoint:
            self.architecture_optimizer.load_state_dict(checkpoint["architecture_optimizer"])


def _entropy(strengths: Any) -> Tensor:
    """Mean over the edges, in nats: log 8 at first, 0 where one operation is left."""
    share = strengths()[0]
    return -(share * share.log()).sum(1).mean()


def _supernet(build: Callable[[], Any], share: int) -> Supernet:
    model = build()
    return Supernet(SupernetConfig.of(getattr(model, "config", None), share))  # pyright: ignore[reportArgumentType]
