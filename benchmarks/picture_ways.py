"""Ways to read fewer tokens of an image, for ``zoo bench vision_language``: a line of ``WAYS`` each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

import zoo
from zoo.benchmarks.picture_tokens import (
    ALL,
    BUDGETS,
    Random,
    Read,
    Reader,
    carried,
    dynamic,
    long_vlm,
    look_m,
    reading,
    rewoven,
)
from zoo.benchmarks.picture_training import pictures, plain, taught
from zoo.quantize import Calibration
from zoo.vision_language import VTCCLS, EfficientVLA

PLAIN, BATCH = "all", 100  # the way that keeps all tokens without any method
JUDGED = 128  # pictures with texts that say which layers change least


@dataclasses.dataclass(frozen=True)
class Way:
    """A method that reads fewer tokens of an image."""

    read: Reader
    budgets: Sequence[int] = (ALL, *BUDGETS)
    batch: int = BATCH
    exact: bool = True
    """Where all tokens stay, it is the plain model bit for bit."""


def by(prepared: Callable[[], Any], read: Reader) -> Reader:
    """As ``read``, of another model than the plain one."""

    def of_another(model: Any, images: Tensor, asked: Tensor, budget: int) -> Read:
        return read(prepared(), images, asked, budget)

    return of_another


@cache
def fewer_layers(count: int) -> Any:
    """The plain model with so many of its blocks, judged by texts that it was trained on."""
    model = plain()
    images, text = pictures().sources["train"].fetch(torch.arange(JUDGED), 0)
    length = [int((labels >= 0).nonzero()[-1]) + 1 for labels in text["labels"]]
    texts = [text["tokens"][row : row + 1, : length[row]] for row in range(JUDGED)]
    calibration = Calibration(list(zip(images.split(1), texts, strict=True)))
    return zoo.prune_layers(model, len(model.language.blocks) - count, calibration)


def efficient_vla(budget: int, text: int) -> EfficientVLA:
    """Chosen in the first layer."""
    return EfficientVLA(budget=budget, key=min(4, budget), layer=0)


WAYS: dict[str, Way] = {
    PLAIN: Way(reading(lambda budget, text: None), (ALL,)),
    "at random": Way(reading(lambda budget, text: Random(budget))),
    "VTC-CLS": Way(reading(lambda budget, text: VTCCLS(budget))),
    "LongVLM": Way(reading(long_vlm, class_feature=False)),
    "Dynamic-LLaVA": Way(by(partial(taught, "dynamic_llava"), reading(dynamic))),
    "EfficientVLA": Way(reading(efficient_vla)),
    "EfficientVLA, 3 layers": Way(by(partial(fewer_layers, 3), reading(lambda budget, text: None)), (ALL,)),
    "EfficientVLA, 2 layers": Way(by(partial(fewer_layers, 2), reading(efficient_vla)), (ALL, 16, 8), exact=False),
    "EfficientVLA, 1 layer": Way(by(partial(fewer_layers, 1), reading(lambda budget, text: None)), (ALL,), exact=False),
    "LOOK-M": Way(reading(partial(look_m, merge="pivot"))),
    "LOOK-M, dropped": Way(reading(partial(look_m, merge="none"))),
    "reweaving": Way(by(partial(taught, "reweaving"), rewoven)),
    "VideoScan": Way(carried, (1,), batch=1),
}
