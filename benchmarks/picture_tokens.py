"""How fewer tokens of an image are read, for ``zoo bench vision_language``: what its ways are made of."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import zoo
from zoo.cache import LookM
from zoo.layers import ModelState
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.pruning import governed_parts
from zoo.vision_language import DynamicLLaVA, LongVLM, Reduction, Seen, VideoScan

ALL = 37  # tokens of a picture
BUDGETS = (24, 16, 12, 8, 4, 2)
RECENT = 4  # tokens that LOOK-M keeps for being the newest, of the question


class Read(NamedTuple):
    """What was read of pictures and questions."""

    state: ModelState
    logits: Tensor
    """(B, V), of what follows."""
    kept: float
    """Tokens of a picture, the mean over the layers."""
    further: Callable[[Tensor, ModelState], Tensor]
    """Of the next tokens (B, 1) and the state: logits (B, 1, V)."""


Reader = Callable[[Any, Tensor, Tensor, int], Read]
"""Of a model, pictures (B, C, H, W), what is asked of each (B, T), and how many tokens of a picture may stay."""
Made = Callable[[int, int], "Reduction | Policy | None"]
"""Of such a number, and of how many tokens a text has: what keeps them."""


def reading(made: Made, class_feature: bool = True) -> Reader:
    """By what leaves tokens out before the language model, or in the memory of its attention.

    Args:
        class_feature: the class token's feature is the model's matter, and not that of ``made``.
    """

    def read(model: Any, images: Tensor, asked: Tensor, budget: int) -> Read:
        if not class_feature:
            model = wordless(model)
        method = made(budget, 1 + asked.shape[1])
        reduction, cache = (method, None) if isinstance(method, Reduction) else (None, method)
        count = model.tokens_of_image(reduction)
        rows = asked.new_zeros(len(asked), 1), asked.new_full((len(asked), count), model.config.image_token)
        state = model.init_state(len(asked), cache=cache)
        logits = model(images, torch.cat([*rows, asked], 1), state, logits_to_keep=1, reduction=reduction)[:, -1]
        held = [part.filled - asked.shape[1] - 1 for part in governed_parts(state)] or [count]
        return Read(state, logits, sum(held) / len(held), model.language)

    return read


def carried(model: Any, images: Tensor, asked: Tensor, budget: int) -> Read:
    """A picture is the one frame of a video."""
    scan = VideoScan(model, memory=budget, prompt=[0])
    scan.add(images[0])
    kept = scan.held - 1
    logits = model.language(asked, scan.state, logits_to_keep=1)[:, -1]
    return Read(scan.state, logits, kept, model.language)


def woven(model: Any, images: Tensor, keep: int) -> zoo.Rewoven:
    """After pictures as a chunk of their own, of which so many tokens are kept; all later chunks see these."""
    features = model.see(images)
    tokens = features.new_full(features.shape[:2], model.config.image_token, dtype=torch.int64)
    model.language.reweaving.keep = keep
    text = zoo.Rewoven(model.language)
    text.read(tokens, embedded=features, logits_to_keep=1)
    return text


def rewoven(model: Any, images: Tensor, asked: Tensor, budget: int) -> Read:
    """A picture is a chunk, and what is said of it the next; or all is one chunk, where all tokens may stay."""
    state, begin = model.language.init_state(len(asked)), asked.new_zeros(len(asked), 1)
    if budget == ALL:
        places = asked.new_full((len(asked), ALL), model.config.image_token)
        text, tokens = zoo.Rewoven(model.language), torch.cat([begin, places, asked], 1)
        features = model.see(images)
        embedded = model.language.enter(tokens).masked_scatter(
            (tokens == model.config.image_token)[..., None], features
        )
        logits = text.read(tokens, embedded=embedded, state=state, logits_to_keep=1)
        text.memory = None
    else:
        text = woven(model, images, budget)
    past = text.memory

    def further(tokens: Tensor, state: ModelState, **call: Any) -> Tensor:
        text.memory = past  # what is said is in the state
        return text.read(tokens, state=state, **call)

    if budget != ALL:
        logits = further(torch.cat([begin, asked], 1), state, logits_to_keep=1)
    return Read(state, logits[:, -1], budget, further)


def wordless(model: Any) -> Any:
    """The same parts, and no feature of the class token."""
    model = copy.copy(model)
    model.config = dataclasses.replace(model.config, class_feature=False)
    return model


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


def dynamic(budget: int, text: int) -> DynamicLLaVA:
    """What was learnt keeps so many tokens of a picture; all of the text stays."""
    return DynamicLLaVA(image_keep=1 if budget == ALL else (budget + 0.5) / ALL, text_keep=1)
