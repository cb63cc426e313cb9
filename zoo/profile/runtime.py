r"""Idealised runtime: what a query takes where nothing else runs, of a prompt and of tokens after it.

.. math:: t(p, n) = a + b\,p + c\,p^2 + \sum_{i=1}^{n - 1} \left(d + e\,(p + i)\right)

The prompt's terms and the step's are fitted to a few measured times; n tokens take one prompt, which gives the first,
and n - 1 steps.

Paper: Narayanan et al., "Cheaply Evaluating Inference Efficiency Metrics for Autoregressive Transformer APIs", arXiv
2305.02440.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from zoo.layers.step import programmed
from zoo.profile.measure import seconds_in_turns
from zoo.profile.sample import sample

STEPS = 8  # measured at once: the first after a prompt is slower than the next, whose weights are near


@dataclasses.dataclass(frozen=True)
class Runtime:
    """A fitted law.

    Attributes:
        prompt: a, b, c: seconds, seconds a token and a token squared.
        step: d, e: seconds, and seconds for each token before it.
        errors: of measurements that were held out: what was asked for -> (predicted - measured) / measured.
    """

    prompt: tuple[float, float, float]
    step: tuple[float, float]
    errors: dict[str, float] = dataclasses.field(default_factory=dict)

    def prefill(self, tokens: int) -> float:
        """Seconds to the first token after a prompt."""
        a, b, c = self.prompt
        return a + b * tokens + c * tokens**2

    def decode(self, before: float) -> float:
        """Seconds of one step after so many tokens."""
        return self.step[0] + self.step[1] * before

    def seconds(self, prompt: int, new: int) -> float:
        """Of a query: ``new`` tokens after ``prompt`` tokens.

        Raises:
            ValueError: for fewer than one token of either.
        """
        if prompt < 1 or new < 1:
            raise ValueError(f"a query has a prompt and new tokens, at least one each, got {prompt} and {new}")
        between = (new - 1) * prompt + (new - 1) * new // 2  # sum of prompt + i
        return self.prefill(prompt) + (new - 1) * self.step[0] + between * self.step[1]


def fit(prompts: Mapping[int, float], steps: Mapping[float, float]) -> Runtime:
    """Least squares of relative errors, with no term below zero.

    Args:
        prompts: tokens -> seconds of reading them; three lengths or more.
        steps: tokens before -> seconds of one step; two lengths or more.

    Raises:
        ValueError: for fewer lengths, or times that are not positive.
    """
    if len(prompts) < 3 or len(steps) < 2:
        raise ValueError(f"fit needs three prompts and two steps at least, got {len(prompts)} and {len(steps)}")
    if min(*prompts.values(), *steps.values()) <= 0:
        raise ValueError("times must be positive")
    a, b, c = _not_negative(prompts, (0, 1, 2))
    d, e = _not_negative(steps, (0, 1))
    return Runtime((a, b, c), (d, e))


def _not_negative(times: Mapping[Any, float], powers: Sequence[int]) -> list[float]:
    """Coefficients of powers that fit best, leaving out the powers that would be negative."""
    lengths = torch.tensor(list(times), dtype=torch.float64)
    wanted = torch.tensor(list(times.values()), dtype=torch.float64)
    scale, kept = float(lengths.max()), list(powers)
    while True:
        columns = torch.stack([(lengths / scale) ** power / wanted for power in kept], 1)
        found = torch.linalg.lstsq(columns, torch.ones(len(wanted), 1, dtype=torch.float64)).solution[:, 0]
        if found.min() >= 0 or len(kept) == 1:
            known = {power: float(value) / scale**power for power, value in zip(kept, found, strict=True)}
            return [known.get(power, 0.0) for power in powers]
        kept.pop(int(found.argmin()))


@torch.no_grad()
def idealised_runtime(
    model: Any,
    lengths: Sequence[int] = (32, 64, 128, 256),
    held_out: Sequence[int] = (96, 192),
    *,
    batch: int = 1,
    runs: int = 5,
) -> Runtime:
    """Measure prompts and steps of a language model, fit them, and judge the fit by lengths it has not seen.

    Prompts and steps are measured in turns, ``STEPS`` steps one after another, as a query has them.

    Args:
        lengths: of prompts that are measured; steps follow each.
        held_out: of prompts that only judge.
        runs: medians are of so many.

    Raises:
        ValueError: for fewer than three lengths.
    """
    device, mode = next(model.parameters()).device, model.training
    model.eval()
    try:
        calls: dict[tuple[str, int], Callable[[], Any]] = {}
        for n in sorted({*lengths, *held_out}):
            calls["prompt", n], calls["step", n] = _calls(model, n, batch, runs)
        with programmed(model, alone=True):  # as `generate` takes them
            measured = {key: taken.median for key, taken in seconds_in_turns(calls, device, runs).items()}
    finally:
        model.train(mode)
    before = (1 + runs / 2) * STEPS  # tokens said when half of the steps are measured; the first turn is not counted
    steps = {n + before: measured["step", n] / STEPS for n in lengths}
    found = fit({n: measured["prompt", n] for n in lengths}, steps)
    errors = {f"prompt of {n}": found.prefill(n) / measured["prompt", n] - 1 for n in held_out}
    errors |= {f"step after {n}": found.decode(n + before) * STEPS / measured["step", n] - 1 for n in held_out}
    return dataclasses.replace(found, errors=errors)


def _calls(model: Any, length: int, batch: int, runs: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What reads a prompt, and what goes a step on after it."""
    tokens, state = sample(model, batch, length), model.init_state(batch, length + (runs + 1) * STEPS)
    model(tokens, state, logits_to_keep=1)
    read = lambda: model(tokens, model.init_state(batch, length + 1), logits_to_keep=1)  # noqa: E731
    return read, lambda: [model(tokens[:, :1], state) for _ in range(STEPS)]
