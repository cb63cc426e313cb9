"""Converters between published checkpoints and the zoo: one file a family, pure functions over dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.checkpoints.convert import based, deepseek, efficientvit, falcon_h1, m3vit, mamba, mixtral, vovnet

__all__ = ["CONVERTERS", "foreign_config", "to_zoo"]

CONVERTERS = (deepseek, falcon_h1, mamba, mixtral)


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict under the zoo's names; one that no converter recognises is returned as it is."""
    for converter in (*CONVERTERS, based, efficientvit, m3vit, vovnet):
        if converter.recognises(state_dict):
            return converter.to_zoo(state_dict)
    return dict(state_dict)


def foreign_config(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A transformers ``config.json`` -> family and configuration fields.

    Raises:
        ValueError: for a model type without a converter.
    """
    for converter in CONVERTERS:
        if config.get("model_type") in converter.MODEL_TYPES:
            return converter.config_from_transformers(config)
    known = ", ".join(name for converter in CONVERTERS for name in converter.MODEL_TYPES)
    raise ValueError(
        f"config.json has model_type {config.get('model_type')!r}, which has no converter here; folders written by "
        f"zoo.save_model and transformers' {known} can be loaded"
    )
