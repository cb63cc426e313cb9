r"""Fewer steps and fewer tokens of a clip, without training: On-device Sora.

*Linear proportional leap*: where the velocities of a straight path stop turning, the rest of the way is one step, to
the image at once. *Temporal dimension token merging*: in the first steps attention reads, in place of two consecutive
frames, their mean, and what it makes is given to both; norms, residuals and MLPs stay those of all frames. Half the
tokens, and over time a quarter of the pairs.

Paper: Kim et al., "On-device Sora: Enabling Diffusion-Based Text-to-Video Generation for Mobile Devices", arXiv
2502.04363; numbers are those of the authors' code, which compares the first clip's first frame where all are compared
here. Its blocks that are loaded while others compute are ``zoo.offload``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.generative.diffusion import DiffusionModel, Shortcut, Shortened
from zoo.generative.video import VideoDiT
from zoo.generative.wrapped import Forward, wrapped


@dataclasses.dataclass(frozen=True)
class OnDeviceSora(Shortcut):
    """A shortcut of ``DiffusionModel.sample``; leaps are for any model of the straight path, merging for clips.

    Attributes:
        watch: the step, counted from 0, from which on velocities are compared with those of the step before; None for
            no leap.
        patience: steps in a row whose cosine is no higher than the best before, the last of which leaps.
        tolerance: how much higher counts.
        leap: leap at this step whatever the velocities; None to go by them.
        merged: first steps in which attention reads means of two frames.

    Raises:
        ValueError: for numbers below 0, or a patience below 1.
    """

    watch: int | None = 14
    patience: int = 3
    tolerance: float = 1e-3
    leap: int | None = None
    merged: int = 0

    def __post_init__(self):
        numbers = [n for n in (self.watch, self.tolerance, self.leap, self.merged) if n is not None]
        if min(numbers, default=0) < 0 or self.patience < 1:
            raise ValueError(f"steps and tolerance must be at least 0 and patience at least 1, got {self}")

    def begin(self, model: DiffusionModel, steps: int) -> Shortened:
        """As of ``Shortcut``: a straight path for leaps, a ``VideoDiT`` for merging, and steps that there are."""
        if self.merged > steps or (self.leap is not None and self.leap >= steps):
            raise ValueError(f"merged must be at most the {steps} steps, and leap one of them from 0, got {self}")
        if self.merged and not isinstance(model, VideoDiT):
            raise ValueError(f"merging frames is for models of clips, got {type(model).__name__}: give merged=0")
        if (self.watch is not None or self.leap is not None) and model.config.path != "straight":
            raise ValueError(f"a leap needs a straight path, got {model.config.path!r}: give watch=None")
        return _Run(self, model)


class _Run(Shortened):
    def __init__(self, options: OnDeviceSora, model: DiffusionModel):
        self.options, self.model = options, model
        self.before: Tensor | None = None
        self.best, self.waited = 0.0, 0

    @contextmanager
    def around(self, step: int) -> Iterator[None]:
        self.passes += 1
        merging = isinstance(self.model, VideoDiT) and step < self.options.merged
        with merged_frames(self.model) if merging else nullcontext():  # type: ignore[arg-type]
            yield

    def leaps(self, step: int, velocity: Tensor) -> bool:
        options, before = self.options, self.before
        self.before = velocity
        if options.leap is not None:
            return step >= options.leap
        if options.watch is None or step < options.watch or before is None:
            return False
        cosine = F.cosine_similarity(velocity.flatten(1).float(), before.flatten(1).float()).mean().item()
        if cosine > self.best + options.tolerance:
            self.best, self.waited = cosine, 0
        else:
            self.waited += 1
        return self.waited >= options.patience


@contextmanager
def merged_frames(model: VideoDiT) -> Iterator[None]:
    """All attention within reads means of two consecutive frames; a last one without a second stays as it is."""
    frames = model.config.frames

    def within(module: nn.Module, forward: Forward, x: Tensor, *args: Tensor | None) -> Tensor:
        """x (B * frames, places, dim)."""
        clips = x.unflatten(0, (-1, frames))
        made = forward(halved(clips, 1).flatten(0, 1), *args)
        return doubled(made.unflatten(0, (len(clips), -1)), frames, 1).flatten(0, 1)

    def over(module: nn.Module, forward: Forward, x: Tensor, *args: Tensor | None) -> Tensor:
        """x (B * places, frames, dim)."""
        return doubled(forward(halved(x, 1), *args), frames, 1)

    def of(way: Forward):
        return lambda module, forward: partial(way, module, forward)

    spatial, temporal = ([block.attn for block in blocks] for blocks in (model.spatial, model.temporal))  # type: ignore[union-attr]
    with wrapped(spatial, of(within)), wrapped(temporal, of(over)):  # type: ignore[arg-type]
        yield


def halved(x: Tensor, dim: int) -> Tensor:
    """Means of two consecutive slices of an axis, and the last where their number is odd."""
    length = x.shape[dim]
    pairs = x.narrow(dim, 0, length // 2 * 2).unflatten(dim, (-1, 2)).mean(dim + 1)
    return torch.cat([pairs, x.narrow(dim, length - 1, 1)], dim) if length % 2 else pairs


def doubled(x: Tensor, length: int, dim: int) -> Tensor:
    """Each slice twice, the last once where ``length`` is odd."""
    return x.repeat_interleave(2, dim).narrow(dim, 0, length)
