"""IST: in each step the adapters of a few layers learn, those that matter most often."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from torch import Tensor, nn

from zoo.adapt import adapters_of, own_names
from zoo.layers.adapt import mark_of, placed
from zoo.layers.options import require_at_least
from zoo.train.optim import unwrapped
from zoo.train.parallel import expect_unused
from zoo.train.tasks import Task


class Scores:
    r"""How little each of L layers matters: a score a that rises where damping a layer does not hurt.

    A step's layers are drawn without replacement by :math:`\sigma(-a)`; candidates S to be damped by
    :math:`\sigma(a)`. With the loss of each candidate

    .. math:: r_S = e^{-\ell_S} - \mathrm{mean}_{S'} e^{-\ell_{S'}}, \qquad
        a_l \mathrel{+}= \eta \, r_S \, \sigma(a_l) (1 - \sigma(a_l)) \quad (l \in S)

    Args:
        count: L.
        rate: eta.
        seed: of all that is drawn.
    """

    def __init__(self, count: int, rate: float, seed: int):
        self.a, self.rate = torch.zeros(count, dtype=torch.float64), rate
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, count: int, sign: float) -> list[int]:
        """So many layers, by sigma(sign a)."""
        chosen = torch.multinomial(torch.sigmoid(sign * self.a), count, generator=self.generator)
        return sorted(chosen.tolist())

    def learn(self, candidates: Sequence[Sequence[int]], losses: Sequence[float]) -> None:
        """From the losses with each candidate damped."""
        rewards = [math.exp(-loss) for loss in losses]
        mean = sum(rewards) / len(rewards)
        for layers, reward in zip(candidates, rewards, strict=True):
            p = torch.sigmoid(self.a[list(layers)])
            self.a[list(layers)] += self.rate * (reward - mean) * p * (1 - p)


class ImportanceSampling(Callback):
    """Let the adapters of some layers learn in each step, drawn by importance, which is asked for as training goes on.

    A layer is what has a number in the model, "blocks.3", with all adapters in it; other parameters that learn (`also`)
    always do. What does not learn in a step has no gradient, so that neither weight decay nor an optimiser's moments
    move it. Every `every_n_steps` optimiser steps some layers' adapters are damped in turn, and the loss of the first
    `probe` items of the next batch tells how little they matter: as many forward passes as there are `candidates`.

    Everything drawn is in the checkpoint. Several processes draw the same, by the mean of their losses; DDP is told to
    look for unused parameters, and sends no gradients of what does not learn in a step.

    Args:
        share: of the layers that learn in a step.
        every_n_steps: optimiser steps between two probes.
        candidates: sets of layers in a probe.
        damped: share of the layers in a set.
        factor: of what their adapters add meanwhile.
        rate: see `Scores`.
        probe: items of a batch.
        seed: of all that is drawn.

    Raises:
        ValueError: shares outside (0, 1], fewer than two candidates; when training starts, for a model without adapters
            in layers that have numbers, or with such as cannot be damped.
        TypeError: what is trained is no `Task`.

    Paper: Yao et al., "Layer-wise Importance Matters: Less Memory for Better Performance in Parameter-efficient
    Fine-tuning of Large Language Models", arXiv 2410.11772; numbers as its authors' callback has them.
    """

    def __init__(
        self,
        *,
        share: float = 0.25,
        every_n_steps: int = 10,
        candidates: int = 3,
        damped: float = 0.5,
        factor: float = 0.25,
        rate: float = 10.0,
        probe: int = 16,
        seed: int = 0,
    ) -> None:
        if not 0 < share <= 1 or not 0 < damped <= 1:
            raise ValueError(f"share and damped must be in (0, 1], got {share} and {damped}")
        require_at_least(1, every_n_steps=every_n_steps, probe=probe)
        require_at_least(2, candidates=candidates)
        self.share, self.every_n_steps, self.candidates, self.damped = share, every_n_steps, candidates, damped
        self.factor, self.rate, self.probe, self.seed = factor, rate, probe, seed
        self.layers: list[str] = []
        self.learning: list[int] = []
        self._saved: dict[str, Any] = {}
        self._step = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """What learns changes from step to step."""
        expect_unused(trainer.strategy)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for the layers, and go on where a checkpoint was."""
        model = self._model(pl_module)
        self.layers = layers_of(model)
        if not self.layers:
            raise ValueError("IST takes a model with adapters in layers that have numbers: give it --adapter lora")
        self.scores = Scores(len(self.layers), self.rate, self.seed)
        if self._saved:
            self.scores.a = self._saved["scores"]
            self.scores.generator.set_state(self._saved["generator"])
        self._step = -1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Once an optimiser step: probe where it is time, and draw what learns."""
        if trainer.global_step == self._step:  # a further batch whose gradients are added up
            return
        self._step, model = trainer.global_step, self._model(pl_module)
        if self._step and self._step % self.every_n_steps == 0:
            self._probe(trainer, pl_module, model, batch)
        count = max(1, round(self.share * len(self.layers)))
        self.learning = self.scores.draw(count, -1.0)
        chosen = {self.layers[index] for index in self.learning}
        own = set(own_names(model))
        for name, parameter in model.named_parameters():
            if name in own:
                layer = numbered(name)
                parameter.requires_grad_(layer not in self.layers or layer in chosen)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All that is the adapters' learns again."""
        model = self._model(pl_module)
        own = set(own_names(model))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in own)

    def state_dict(self) -> dict[str, Any]:
        if not self.layers:
            return {}
        return {"scores": self.scores.a.clone(), "generator": self.scores.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict

    def _probe(self, trainer: Trainer, task: Any, model: nn.Module, batch: Any) -> None:
        size = max(1, round(self.damped * len(self.layers)))
        sets = [self.scores.draw(size, 1.0) for _ in range(self.candidates)]
        few = tuple(part[: self.probe] for part in batch)
        losses = []
        for candidate in sets:
            with ExitStack() as stack:
                for adapter, module in self._modules(model, {self.layers[index] for index in candidate}):
                    stack.enter_context(adapter.damped(module, self.factor))
                losses.append(task.loss_of(few))
        total: Tensor = torch.stack(losses)
        self.scores.learn(sets, trainer.strategy.reduce(total, reduce_op="mean").tolist())  # type: ignore[union-attr]

    def _modules(self, model: nn.Module, layers: set[str]) -> list[tuple[Any, nn.Module]]:
        kinds = {adapter.kind: adapter for adapter in adapters_of(model)}
        found = [(mark_of(module), module) for name, module in placed(model).items() if numbered(name) in layers]
        return [(kinds[mark.kind], module) for mark, module in found if mark is not None and _adds(module)]

    def _model(self, pl_module: LightningModule) -> nn.Module:
        if not isinstance(pl_module, Task):
            raise TypeError(f"ImportanceSampling takes a zoo.train.tasks.Task, got {type(pl_module).__name__}")
        return unwrapped(pl_module.trained)


def layers_of(model: nn.Module) -> list[str]:
    """Names of the numbered modules with adapters, in the order of the model."""
    return list(dict.fromkeys(layer for name in placed(model) if (layer := numbered(name))))


def numbered(name: str) -> str | None:
    """What a name begins with, up to the first number: "blocks.3" of "blocks.3.mixer.q_proj"; None without one."""
    parts = name.split(".")
    end = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    return None if end is None else ".".join(parts[: end + 1])


def _adds(module: nn.Module) -> bool:
    """Whether it has parameters of its own, besides those of modules in it that have a mark as well."""
    return not any(mark_of(part) for part in module.modules() if part is not module)
