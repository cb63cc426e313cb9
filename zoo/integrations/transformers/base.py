"""What the wrappers of all tasks share."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from zoo.changes import rebuilding
from zoo.integrations.transformers.config import ZooConfig
from zoo.limits import each_parameter
from zoo.loading import release, tied
from zoo.recognition import recognise


class ZooModel(PreTrainedModel):
    """What the wrappers share: building, loading, tied weights.

    Args:
        config: what to build.
        model: that has been built already by ``zoo.create_model``.

    Raises:
        ValueError: for a configuration that describes no model, or one of another task than the class's.
    """

    config_class = ZooConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    task = ""

    def __init__(self, config: ZooConfig, model: nn.Module | None = None):
        super().__init__(config)
        fields = dict(config.fields)
        if "num_classes" in fields and fields["num_classes"] != config.num_labels:
            fields |= {"num_classes": config.num_labels, "label_names": []}
        entry, self._described = recognise({"architecture": config.architecture, "config": fields})
        if entry.task != self.task:
            raise ValueError(
                f"{type(self).__name__} takes a model of the task {self.task!r}, {entry.name} is of {entry.task!r}"
            )
        self._build = rebuilding(entry.model_class, {"changes": config.changes or [], "low_ranks": config.low_ranks})
        self.model: Any = self._build(self._described) if model is None else model
        self.model.config_name = entry.name
        config.config = dataclasses.asdict(self.model.config)
        self._tied_weights_keys = {f"model.{alias}": f"model.{first}" for alias, first in tied(self.model).items()}
        self.post_init()
        self.train(self.model.training)

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Names of tied parameters -> the first name of the same one."""
        return dict(self._tied_weights_keys)

    def init_weights(self) -> None:
        """Nothing: a model of the zoo is built with its weights initialised and tied."""

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """What was in no file is as in a new model: buffers that are not saved, and a head of other classes."""
        parameters = _not_loaded(self.model.named_parameters())
        buffers = _not_loaded(self.model.named_buffers())
        with torch.device("cpu"), nullcontext() if parameters else each_parameter(release):
            new = self._build(self._described)
        for name, tensor in parameters.items():
            tensor.copy_(new.get_parameter(name))
        for name, tensor in buffers.items():
            tensor.copy_(new.get_buffer(name))

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None, **kwargs: Any) -> None:
        """Recompute blocks in the backward pass."""
        self.model.set_grad_checkpointing(True)

    def gradient_checkpointing_disable(self) -> None:
        """Store the activations of all blocks."""
        self.model.set_grad_checkpointing(False)


def _not_loaded(named: Any) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in named if not getattr(tensor, "_is_hf_initialized", False)}
