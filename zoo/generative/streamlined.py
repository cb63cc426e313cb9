r"""Less memory and fewer operations of a model of clips, without training: Streamlined Inference.

*Feature slicer*: blocks within frames compute some frames at a time, blocks over time some places at a time, which
nothing but the rounding of products over other numbers of rows tells from all at once. *Operator grouping*: a slice
goes through all of a block's operations before the next one, so that only what goes into a block and comes out of it
exists whole; without it every operation is sliced by itself. *Step rehash*: some steps take from the step before what
a part of the model made there.

Paper: Zhan et al., "Fast and Memory-Efficient Video Diffusion Using Streamlined Inference", arXiv 2411.01171, NeurIPS
2024. Its authors slice U-Nets, whose norms over groups of a slice are not those of the whole; norms here are of a
token. Which features of which steps are used again is not published with the code: here the attention of all blocks,
in all but every n-th step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.generative.adaptive import AdaptiveBlock
from zoo.generative.diffusion import DiffusionModel, Shortcut, Shortened
from zoo.generative.video import VideoDiT
from zoo.generative.wrapped import Forward, wrapped


@contextmanager
def sliced(model: VideoDiT, frames: int = 1, places: int = 1, *, grouped: bool = True) -> Iterator[None]:
    """Blocks of a model of clips compute a slice at a time within.

    Args:
        frames: slices of the frames of all clips, in blocks within frames.
        places: slices of the places of all clips, in blocks over time.
        grouped: a slice goes through a whole block; through attention and MLP by themselves where False.

    Raises:
        ValueError: for another model, or numbers below 1.
    """
    if not isinstance(model, VideoDiT):
        raise ValueError(f"slices are of models of clips, got {type(model).__name__}")
    if min(frames, places) < 1:
        raise ValueError(f"a number of slices must be at least 1, got {frames} and {places}")

    def parts(blocks: Any) -> list[nn.Module]:
        return list(blocks) if grouped else [part for block in blocks for part in (block.attn, block.mlp)]

    def into(count: int):
        def wrap(module: nn.Module, forward: Forward) -> Forward:
            return partial(in_slices, forward, count)

        return wrap

    with wrapped(parts(model.spatial), into(frames)), wrapped(parts(model.temporal), into(places)):
        yield


def in_slices(forward: Forward, count: int, x: Tensor, *args: Tensor | None) -> Tensor:
    """What ``forward`` makes of slices of the rows of x and of all tensors besides, of the shape of x."""
    given = [[None] * count if one is None else one.tensor_split(count) for one in args]
    parts = [part for part in zip(x.tensor_split(count), *given, strict=True) if len(part[0])]
    if torch.is_grad_enabled() or not parts:
        return torch.cat([forward(*part) for part in parts]) if parts else forward(x, *args)
    whole, end = x.new_empty(x.shape), 0
    for part in parts:
        end += len(part[0])
        whole[end - len(part[0]) : end] = forward(*part)
    return whole


@dataclasses.dataclass(frozen=True)
class StepRehash(Shortcut):
    """A shortcut of ``DiffusionModel.sample``: attention is computed in the first steps and in every n-th one after
    them; the others take what it made last.

    Attributes:
        every: n; 1 computes all.
        first: steps that compute all of it before.

    Raises:
        ValueError: for an n below 1 or a negative number of steps.
    """

    every: int = 2
    first: int = 1

    def __post_init__(self):
        if self.every < 1 or self.first < 0:
            raise ValueError(f"every must be at least 1 and first at least 0, got {self.every} and {self.first}")

    def begin(self, model: DiffusionModel, steps: int) -> Shortened:
        """As of ``Shortcut``: a model of adaptive blocks, and steps that there are."""
        self.check_steps(steps)
        blocks = [module for module in model.modules() if isinstance(module, AdaptiveBlock)]
        if not blocks:
            raise ValueError(f"step rehash takes attention of adaptive blocks again, got {type(model).__name__}")
        return Reused(self, [block.attn for block in blocks])

    def check_steps(self, steps: int) -> None:
        """Raise a ValueError where more than all steps are to be computed first."""
        if self.first > steps:
            raise ValueError(f"first must be at most the {steps} steps, got {self.first}")

    def computes(self, step: int) -> bool:
        """Whether a step computes its attention."""
        return step < max(self.first, 1) or (step - self.first) % self.every == 0


class Reused(Shortened):
    """One call of a sampler in which modules make something in some steps, which the others take again."""

    def __init__(self, options: StepRehash, modules: list[nn.Module]):
        self.options, self.modules = options, modules
        self.made: dict[nn.Module, Tensor] = {}

    @contextmanager
    def around(self, step: int) -> Iterator[None]:
        self.passes += 1
        if self.options.every == 1:
            yield
            return
        fresh = self.options.computes(step)

        def wrap(module: nn.Module, forward: Forward) -> Forward:
            def run(*args: Any) -> Tensor:
                if fresh:
                    self.made[module] = forward(*args)
                return self.made[module]

            return run

        with wrapped(self.modules, wrap):
            yield


def rehashed(options: StepRehash, steps: int) -> int:
    """Steps of so many that compute their attention."""
    return sum(options.computes(step) for step in range(steps))
