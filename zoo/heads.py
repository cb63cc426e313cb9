"""What was learnt of a model's heads, kept with the model."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from torch import nn

from zoo.changes import Change, apply
from zoo.language.base import LanguageModel
from zoo.layers.cache import Dense
from zoo.layers.cache.pruning import governed_parts

Model = TypeVar("Model", bound=LanguageModel)
Gates = tuple[tuple[float, ...], ...]
Scores = tuple[tuple[tuple[float, float], ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadRoles(Change, kind="head_roles"):
    """Gates or scores of key-value heads, see ``keep_heads``."""

    gates: Gates = ()
    scores: Scores = ()

    def install(self, model: nn.Module) -> None:
        """Note them on the model; what was noted before and is not given stays."""
        if not isinstance(model, LanguageModel):
            raise ValueError(f"heads of language models are kept, got {type(model).__name__}")
        given = {name: rows for name, rows in (("gates", self.gates), ("scores", self.scores)) if rows}
        heads = [part.heads for part in governed_parts(model.init_state(1, cache=Dense()))]
        for name, rows in given.items():
            if [len(row) for row in rows] != heads:
                raise ValueError(
                    f"{name} must have a row a layer with attention and an entry a key-value head, {heads}; got "
                    f"{[len(row) for row in rows]}"
                )
        known: Any = model
        known.head_roles = {**getattr(model, "head_roles", {}), **given}


def keep_heads(model: Model, *, gates: Gates = (), scores: Scores = ()) -> Model:
    """Keep with a language model what tells its heads apart, for all policies that ask and have none of their own.

    >>> zoo.keep_heads(model, gates=zoo.cache.learn_gates(model))
    >>> zoo.save_model(model, "folder")
    >>> model = zoo.create_model("local-dir:folder")
    >>> zoo.generate(model, tokens, 100, cache=zoo.cache.DuoAttention())  # by those gates

    Args:
        model: a language model, whose outputs do not change.
        gates: of ``zoo.cache.learn_gates``, for ``DuoAttention`` and ``LServe``.
        scores: of ``zoo.cache.head_scores``, for ``RazorAttention``.

    Returns:
        The model.

    Raises:
        ValueError: for another number of layers or heads, or as ``zoo.changes.apply``.
    """
    if not gates and not scores:
        raise ValueError("there is nothing to keep: give gates= or scores=")
    apply(model, HeadRoles(gates=gates, scores=scores))
    return model
