"""What the converters share: renaming by pairs of prefixes, and values as transformers writes them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

DECODER = {  # options of a published config.json that nearly every decoder has, and ours
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "depth",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
    "initializer_range": "initializer_range",
    "num_attention_heads": "num_heads",
}
_WITHIN = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def rename(
    state_dict: Mapping[str, Tensor], pairs: Sequence[tuple[str, str]], backwards: bool = False
) -> dict[str, Tensor]:
    """Replace the first prefix that fits each key; keys that none fits, and all tensors, stay as they are.

    Args:
        pairs: (published, ours); "#" in both stands for the same number.
        backwards: from ours to published.
    """
    rules = []
    for pair in pairs:
        old, new = reversed(pair) if backwards else pair
        rules.append((re.compile(re.escape(old).replace(r"\#", r"(\d+)")), new))
    renamed = {}
    for key, tensor in state_dict.items():
        for pattern, new in rules:
            if found := pattern.match(key):
                for number in found.groups():
                    new = new.replace("#", number, 1)
                key = new + key[found.end() :]
                break
        renamed[key] = tensor
    return renamed


def replace(state_dict: Mapping[str, Tensor], pairs: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Replace parts of the keys, one pair (old, new) after another."""
    renamed = dict(state_dict)
    for old, new in pairs:
        renamed = {key.replace(old, new): tensor for key, tensor in renamed.items()}
    return renamed


def unwrapped(state_dict: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors without the names of wrappers, from the barest form to the one that only lost wrappers within.

    Training wraps a model, or parts of it: "module." (several processes), "_orig_mod." (compiled), "model." (a task's),
    in any order. "model." may also belong to a published layout, so every form that a shared prefix leaves is given.

    Raises:
        ValueError: for two tensors that have the same name without them.
    """
    bare = {_WITHIN.sub("", key): tensor for key, tensor in state_dict.items()}
    if len(bare) < len(state_dict):
        raise ValueError(
            "the checkpoint holds a model and a wrapper of it: the same names with and without '_orig_mod.'"
        )
    forms = [bare]
    while prefix := next((p for p in ("module.", "model.") if bare and all(key.startswith(p) for key in bare)), None):
        bare = {key.removeprefix(prefix): tensor for key, tensor in bare.items()}
        forms.insert(0, bare)
    return forms


def number(value: Any) -> float:
    """A float of a config.json, where transformers writes infinity as {"__float__": "Infinity"}."""
    if isinstance(value, Mapping):
        value = str(value["__float__"])  # "Infinity" reads as a float
    return float(value)


def written(value: float) -> Any:
    """The inverse of ``number``: JSON has no infinity."""
    return {"__float__": "Infinity" if value > 0 else "-Infinity"} if math.isinf(value) else value
