"""Model and data that fit: what one of them says and the other leaves open is taken over, a contradiction is said."""

from __future__ import annotations

import dataclasses
from typing import Any

from zoo.train.data import DataModule
from zoo.train.tasks import Task


def agree(task: Task, data: Any, fixed: bool = False) -> None:
    """Let a task's model and a data module fit each other, before anything is built or trained.

    Where the data demand something of a model (classes, channels, size) that `model_args` leave open, the model is
    built so; where the data leave it open, they are prepared as the model wants.

    Args:
        task: with a model that is not built yet; one whose model is not given what the data hold is left alone.
        data: other than a `DataModule` of this library it is left alone.
        fixed: the model has its weights already and is not changed.

    Raises:
        ValueError: in a line, where both say what they are and differ.
    """
    sketch = task.sketch()
    config = getattr(sketch, "config", None)
    if not isinstance(data, DataModule) or not dataclasses.is_dataclass(config) or not task.reads_data:
        return
    if fixed and (described := getattr(sketch, "pretrained_cfg", None)):
        data.follow(described)
    differing = {
        name: value
        for name, value in data.demands.items()
        if hasattr(config, name) and _shape(getattr(config, name)) != _shape(value)
    }
    told = {name for name in differing if fixed or not isinstance(task.given[0], str) or name in task.given[1]}
    if told:
        ours = ", ".join(f"{name} {getattr(config, name)}" for name in sorted(told))
        theirs = ", ".join(f"{name} {differing[name]}" for name in sorted(told))
        raise ValueError(
            f"the model has {ours}, the data have {theirs}: leave these out of the model's options, or set them alike"
        )
    if differing:
        task.change(**differing)
    if described := getattr(task.sketch() if differing else sketch, "pretrained_cfg", None):
        data.follow(described)
    known, used = getattr(config, "vocab_size", None), getattr(data, "vocab_size", None)
    if known is not None and used is not None and used > known:
        raise ValueError(f"the model has vocab_size {known}, the data {used}: set --model.model_args.vocab_size {used}")


def _shape(value: Any) -> Any:
    """An image's size as (height, width)."""
    return (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (list, tuple)) else value
