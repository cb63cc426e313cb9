"""What the converters share: renaming by pairs of prefixes, and values as transformers writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def rename(
    state_dict: Mapping[str, Tensor], pairs: Sequence[tuple[str, str]], backwards: bool = False
) -> dict[str, Tensor]:
    """Replace the first prefix that fits each key; keys that none fits, and all tensors, stay as they are.

    Args:
        pairs: (published, ours); "#" in both stands for the same number. backwards: from ours to published.
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


def number(value: Any) -> float:
    """A float of a config.json, where transformers writes infinity as {"__float__": "Infinity"}."""
    if isinstance(value, Mapping):
        value = str(value["__float__"])  # "Infinity" reads as a float
    return float(value)
