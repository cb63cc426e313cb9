"""Random-number state as a part of the checkpoint."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback

from zoo.train.parallel import data_processes


class RNGState(Callback):
    """Save and restore Python's, numpy's and torch's generators: a resumed run draws what an unbroken one draws.

    Evaluation is put aside: what it draws leaves training's random numbers as they were, so that evaluating more or
    less often, or not again after a resume, changes nothing. Every process with data of its own starts from a stream of
    its own (so that dropout differs between them) and its own state is saved. Where a run is resumed with more
    processes than were saved, the new ones get fresh streams.
    """

    def __init__(self) -> None:
        self._resumed: list[dict[str, Any]] | None = None
        self._training: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rank, _ = data_processes(trainer)
        if rank and self._resumed is None:
            _reseed(rank)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._resumed is None:
            return
        if trainer.global_rank < len(self._resumed):
            restore(self._resumed[trainer.global_rank])
        else:
            restore(self._resumed[0])
            if rank := data_processes(trainer)[0]:
                _reseed(rank)
        self._resumed = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training = capture()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._training is not None:
            restore(self._training)
            self._training = None

    def state_dict(self) -> dict[str, Any]:
        own = self._training or capture()
        if not torch.distributed.is_initialized():
            return {"processes": [own]}
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, own)
        return {"processes": gathered}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict["processes"]


def capture() -> dict[str, Any]:
    """The state of every generator of this process, in types that `torch.load(weights_only=True)` accepts."""
    name, keys, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore(state: dict[str, Any]) -> None:
    """Put back what `capture` took."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _reseed(rank: int) -> None:
    """A stream of this process's own, drawn from the one that all have in common."""
    seed = int(torch.randint(2**62, (rank + 1,))[-1])
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
