"""Models of the zoo where transformers' are expected: the Auto classes, ``generate``, ``pipeline``, Trainer and peft.

>>> import zoo.integrations.transformers
>>> model = AutoModelForCausalLM.from_pretrained("folder")  # written by zoo.save_model, or by save_pretrained

Importing this module registers the model type "zoo" with transformers, also for folders of earlier versions, which do
not name it. A model in memory is wrapped by ``wrap``.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from transformers.utils import logging

from zoo.changes import described_changes
from zoo.checkpoints import read_config
from zoo.integrations.transformers.cache import StateCache
from zoo.integrations.transformers.causal import ZooForCausalLM
from zoo.integrations.transformers.config import ZooConfig
from zoo.integrations.transformers.images import ZooForImageClassification
from zoo.layers.report import after_step
from zoo.registry import lookup

logger = logging.get_logger(__name__)

__all__ = ["AfterStep", "StateCache", "ZooConfig", "ZooForCausalLM", "ZooForImageClassification", "wrap"]


class AfterStep(TrainerCallback):
    """For ``Trainer(callbacks=[AfterStep()])``: what no gradient teaches is learnt after each step of the optimiser."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **kwargs: Any) -> None:
        """Call ``zoo.after_step``."""
        if model is not None:
            after_step(model)


def wrap(model: nn.Module) -> ZooForCausalLM | ZooForImageClassification:
    """A model in memory with the surface of transformers; the weights are shared.

    Args:
        model: from ``zoo.create_model``, a language model or an image classifier.

    Raises:
        ValueError: for any other.
    """
    if not isinstance(getattr(model, "config_name", None), str):
        raise ValueError(f"wrap takes a model built by zoo.create_model, got {type(model).__name__}")
    built: Any = model
    done = described_changes(model)
    config = ZooConfig(architecture=built.config_name, config=dataclasses.asdict(built.config), **done)
    classes = (ZooForCausalLM, ZooForImageClassification)
    kind = next((kind for kind in classes if kind.task == lookup(built.config_name).task), ZooForCausalLM)
    return kind(config, model)


def _knowing_earlier_folders(read: Any) -> Any:
    """``AutoConfig.from_pretrained``, which takes a folder that names its model but not the model type for ours."""

    def from_pretrained(cls: type, place: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            content = read_config(place) if os.path.isdir(place) else {}
        except (OSError, ValueError):  # transformers says what is wrong
            content = {}
        if {"architecture", "config"} <= content.keys() and "model_type" not in content:
            logger.warning(
                f"{place} was saved by an earlier version of the zoo: its config.json has no model_type, "
                '"zoo" is taken; save the model again and other programs know it too'
            )
            for remote in ("trust_remote_code", "code_revision"):
                kwargs.pop(remote, None)
            return ZooConfig.from_pretrained(place, *args, **kwargs)
        return read(cls, place, *args, **kwargs)

    return classmethod(from_pretrained)


AutoConfig.from_pretrained = _knowing_earlier_folders(AutoConfig.from_pretrained.__func__)  # type: ignore[method-assign]
AutoConfig.register("zoo", ZooConfig, exist_ok=True)
AutoModelForCausalLM.register(ZooConfig, ZooForCausalLM, exist_ok=True)
AutoModelForImageClassification.register(ZooConfig, ZooForImageClassification, exist_ok=True)
AutoTokenizer.register(ZooConfig, fast_tokenizer_class=PreTrainedTokenizerFast, exist_ok=True)
