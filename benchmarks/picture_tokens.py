"""Ways to read fewer tokens of an image, for ``zoo bench vision_language``: a line of ``WAYS`` each."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.cache import LookM
from zoo.layers import ModelState
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.pruning import governed_parts
from zoo.vision_language import VTCCLS, EfficientVLA, LongVLM, Reduction, Seen, VideoScan

ALL, PLAIN = 37, "all"  # tokens of a picture; the way that keeps them without any method
BUDGETS = (24, 16, 12, 8, 4, 2)
BATCH = 100
RECENT = 4  # tokens that LOOK-M keeps for being the newest, of the question


class Read(NamedTuple):
    """What was read of pictures and questions."""

    state: ModelState
    logits: Tensor
    """(B, V), of what follows."""
    kept: float
    """Tokens of a picture, the mean over the layers."""


Reader = Callable[[Any, Tensor, Tensor, int], Read]
"""Of a model, pictures (B, C, H, W), what is asked of each (B, T), and how many tokens of a picture may stay."""
Made = Callable[[int, int], "Reduction | Policy | None"]
"""Of such a number, and of how many tokens a text has: what keeps them."""


@dataclasses.dataclass(frozen=True)
class Way:
    """A method that reads fewer tokens of an image."""

    read: Reader
    budgets: Sequence[int] = (ALL, *BUDGETS)
    batch: int = BATCH


def reading(made: Made, class_feature: bool = True) -> Reader:
    """By what leaves tokens out before the language model, or in the memory of its attention.

    Args:
        class_feature: the class token's feature is the model's matter, and not that of ``made``.
    """

    def read(model: Any, images: Tensor, asked: Tensor, budget: int) -> Read:
        if not class_feature:
            model = copy.copy(model)  # the same parts, another configuration
            model.config = dataclasses.replace(model.config, class_feature=False)
        method = made(budget, 1 + asked.shape[1])
        reduction, cache = (method, None) if isinstance(method, Reduction) else (None, method)
        count = model.tokens_of_image(reduction)
        rows = asked.new_zeros(len(asked), 1), asked.new_full((len(asked), count), model.config.image_token)
        state = model.init_state(len(asked), cache=cache)
        logits = model(images, torch.cat([*rows, asked], 1), state, logits_to_keep=1, reduction=reduction)[:, -1]
        held = [part.filled - asked.shape[1] - 1 for part in governed_parts(state)] or [count]
        return Read(state, logits, sum(held) / len(held))

    return read


def carried(model: Any, images: Tensor, asked: Tensor, budget: int) -> Read:
    """A picture is the one frame of a video."""
    scan = VideoScan(model, memory=budget, prompt=[0])
    scan.add(images[0])
    kept = scan.held - 1
    return Read(scan.state, model.language(asked, scan.state, logits_to_keep=1)[:, -1], kept)


@dataclasses.dataclass(frozen=True)
class Random(Reduction):
    """The class token's feature, and patches at random: what any choice should beat."""

    keep: int

    def count(self, features: int) -> int:
        return min(self.keep, features)

    def reduce(self, seen: Seen) -> Tensor:
        first, patches = seen.features[:, :1], seen.patches
        drawn = torch.rand(patches.shape[:2], generator=torch.Generator().manual_seed(0))
        places = drawn.topk(self.count(seen.features.shape[1]) - 1, dim=1).indices.sort(dim=1).values
        return torch.cat([first, patches.take_along_dim(places[..., None], 1)], 1)


def rounds(tokens: int, left: int) -> tuple[int, ...]:
    """Pairs to merge, round by round, until so many are left."""
    found = []
    while tokens > left:
        found.append(min(tokens // 2, tokens - left))
        tokens -= found[-1]
    return tuple(found)


def long_vlm(budget: int, text: int) -> LongVLM:
    """A clip of one frame: the class token's feature, and merged patches."""
    return LongVLM(images=1, segments=1, merges=rounds(ALL - 1, budget - 1), classes=1, heads=4)


def look_m(budget: int, text: int, merge: str) -> LookM:
    """Text stays first of all, so what is heavy are it and so many tokens of the picture."""
    return LookM(heavy=text - RECENT + budget, recent=RECENT, merge=merge)


WAYS: dict[str, Way] = {
    PLAIN: Way(reading(lambda budget, text: None), (ALL,)),
    "at random": Way(reading(lambda budget, text: Random(budget))),
    "VTC-CLS": Way(reading(lambda budget, text: VTCCLS(budget))),
    "LongVLM": Way(reading(long_vlm, class_feature=False)),
    "EfficientVLA": Way(reading(lambda budget, text: EfficientVLA(budget=budget, key=min(4, budget), layer=0))),
    "LOOK-M": Way(reading(partial(look_m, merge="pivot"))),
    "LOOK-M, dropped": Way(reading(partial(look_m, merge="none"))),
    "VideoScan": Way(carried, (1,), batch=1),
}
