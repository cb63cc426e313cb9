"""What is asked of a continuation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from zoo.language.base import LanguageModel
from zoo.layers.cache.build import Cache
from zoo.registry import nearest
from zoo.text.stream import stop_strings
from zoo.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from zoo.decoding.draft import Draft
    from zoo.decoding.specpc import SpecPC
    from zoo.decoding.tim import TIM


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The options of ``zoo.generate``, which says what they mean, checked.

    Raises:
        ValueError: for one that is out of its range, or that goes without another.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    num_samples: int = 1
    share_prompt: bool | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    eos_token: int | Sequence[int] | None = None
    stop: str | Sequence[str] = ()
    tokenizer: Tokenizer | None = None
    generator: torch.Generator | None = None
    compile: bool = False
    cache: Cache = None
    prefill_chunk: int | None = None
    batch_invariant: bool = False
    draft: Draft | None = None
    compress: SpecPC | None = None
    memory: TIM | None = None

    def __post_init__(self):
        for name, least in (
            ("max_new_tokens", 1), ("min_new_tokens", 0), ("top_k", 1), ("num_samples", 1), ("num_beams", 1),
            ("prefill_chunk", 1),
        ):  # fmt: skip
            count = getattr(self, name)
            if count is None and name in ("top_k", "prefill_chunk"):
                continue
            if not isinstance(count, int) or isinstance(count, bool):
                raise ValueError(f"{name} must be an integer, got {count!r}")
            if count < least:
                raise ValueError(f"{name} must be at least {least}, got {count}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be at least 0 and finite, got {self.temperature}")
        for name, share in (("top_p", self.top_p), ("min_p", self.min_p)):
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {share}")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty must be above 0 and finite, got {self.repetition_penalty}")
        for name, number in (("presence_penalty", self.presence_penalty), ("length_penalty", self.length_penalty)):
            if not math.isfinite(number):
                raise ValueError(f"{name} must be finite, got {number}")
        if self.stop_strings and self.tokenizer is None:
            raise ValueError(f"stop strings need the model's tokenizer=, got stop={self.stop!r} without one")
        if self.compile and self.cache is not None:
            raise ValueError("a step under a cache policy is not compiled: leave out compile=True, or cache=")
        if self.num_beams > 1:
            self._check_beams()
        if self.draft is not None:
            self._check_draft()

    def _check_draft(self) -> None:
        for name, plain in (("num_beams", 1), ("compile", False), ("batch_invariant", False)):
            if getattr(self, name) != plain:
                raise ValueError(f"a draft does not go with {name}={getattr(self, name)}: leave out one of them")

    def _check_beams(self) -> None:
        if self.temperature != 0:
            raise ValueError(
                f"beams are searched, not drawn: num_beams={self.num_beams} goes with temperature=0, got "
                f"{self.temperature}"
            )
        if self.num_samples > self.num_beams:
            raise ValueError(
                f"of {self.num_beams} beams at most as many are samples, got num_samples={self.num_samples}"
            )
        if self.stop_strings:
            raise ValueError("stop strings do not go with beams: ask for num_beams=1, or end by eos_token")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings, however many."""
        return stop_strings(self.stop)

    @property
    def ends(self) -> tuple[int, ...]:
        """Every id that ends a row: those asked for or else the tokenizer's."""
        if self.eos_token is None:
            return () if self.tokenizer is None else self.tokenizer.eos_ids
        return (self.eos_token,) if isinstance(self.eos_token, int) else tuple(self.eos_token)

    @property
    def filler(self) -> int:
        """What follows in a row that has ended before others."""
        return next(iter(self.ends), 0)


def checked(model: nn.Module, max_new_tokens: int, given: dict[str, Any]) -> Options:
    """The options for a model.

    Raises:
        TypeError: for one that does not exist, with the nearest. ValueError: see ``Options``, and for another
            model than a language model, ids beyond its vocabulary and another model's tokenizer.
    """
    if not isinstance(model, LanguageModel):
        raise ValueError(f"generate takes a language model, got {type(model).__name__}")
    names = [field.name for field in dataclasses.fields(Options)]
    for name in given:
        if name not in names:
            raise TypeError(f"generate has no option {name!r}{nearest(name, names)}; its options: {', '.join(names)}")
    from zoo.decoding import TIM, SpecPC, as_draft  # which is built on this package

    if given.get("draft") is not None:
        given = {**given, "draft": as_draft(given["draft"])}
    for name, kind in (("compress", SpecPC), ("memory", TIM)):
        if not isinstance(given.get(name), kind | None):
            raise ValueError(f"{name} must be a zoo.decoding.{kind.__name__}, got {type(given[name]).__name__}")
    options = Options(max_new_tokens=max_new_tokens, **given)
    if options.tokenizer is not None:
        options.tokenizer.check(model)
    if options.draft is not None:
        options.draft.check(model, options)
    if options.compress is not None:
        options.compress.check(model)
    if options.memory is not None:
        options.memory.check(options)
    size = model.config.vocab_size
    for token in options.ends:
        if not isinstance(token, int) or isinstance(token, bool):
            raise ValueError(f"eos_token must be an integer or several, got {options.eos_token!r}")
        if not 0 <= token < size:
            raise ValueError(f"eos_token must be in [0, vocab_size = {size}), got {token}")
    return options
