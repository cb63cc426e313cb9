"""Masks between weights and the layers that compute with them, and how they move while a model learns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList

from zoo.layers.quant.between import between, put_between
from zoo.layers.sparse.pattern import Pattern

MODULUS = 2**63 - 25  # a prime


class Mask(nn.Module):
    r"""W M in the place of a weight W, with a mask M that is held and saved, all 1 at first.

    What is masked computes nothing and gets no gradient; the number beneath is kept as it is.

    Args:
        weight: (N, C); of a convolution (N, C, ...), whose rows are its taps; of experts (E, C, N), ``mirrored``.
        pattern: among which numbers of a matrix the kept ones are chosen, and how many.
        mirrored: columns are outputs.
    """

    mask: Tensor

    def __init__(self, weight: Tensor, pattern: Pattern, mirrored: bool = False):
        super().__init__()
        self.pattern, self.mirrored = pattern, mirrored
        device = None if weight.is_meta else weight.device  # where a checkpoint's tensors will come
        self.register_buffer("mask", torch.ones(weight.shape, dtype=torch.bool, device=device))
        for matrix in self._matrices(torch.empty(weight.shape, device="meta")):
            pattern.count(*matrix.shape)

    def forward(self, weight: Tensor) -> Tensor:
        """Of the shape and dtype of the weight."""
        return weight * self.mask

    def chosen(self, score: Tensor) -> Tensor:
        """The places of the largest scores in the pattern, bool, of the shape of the weight."""
        found = torch.stack([self.pattern.choose(matrix) for matrix in self._matrices(score)])
        return (found.mT if self.mirrored else found).reshape(score.shape)

    @torch.no_grad()
    def keep(self, score: Tensor) -> None:
        """Let the mask be of the largest scores; nothing on a weight without memory."""
        if not score.is_meta:
            self.mask.copy_(self.chosen(score))

    def follow(self, weight: Tensor) -> None:
        """Move with the weight after an optimiser step, or move it, in place; see ``zoo.after_step``."""

    def extra_repr(self) -> str:
        """Shape and pattern."""
        return f"{tuple(self.mask.shape)}, {self.pattern}"

    def _matrices(self, score: Tensor) -> Tensor:
        """(E, N, C), E = 1 for all but experts."""
        return score.mT if self.mirrored else score.flatten(1)[None]


class Shrinking(Mask):
    r"""All numbers compute until ``steps`` optimiser steps are done; then the mask of the largest is set.

    After each step before, those outside the pattern as it is then are multiplied by ``shrink``; which they are may
    change from step to step:

    .. math:: w \leftarrow \rho \, w \quad \text{where } |w| \text{ is not among the largest}

    ``shrink`` 0 is iterative hard thresholding, 1 leaves everything as it is: one-shot pruning at the end.

    Paper: see ``zoo.masks.ISSP``.
    """

    done: Tensor

    def __init__(self, weight: Tensor, pattern: Pattern, mirrored: bool, shrink: float, steps: int):
        super().__init__(weight, pattern, mirrored)
        self.shrink, self.steps = shrink, steps
        self.register_buffer("done", torch.zeros((), dtype=torch.int64, device=self.mask.device))

    @torch.no_grad()
    def follow(self, weight: Tensor) -> None:
        """Shrink, or set the mask."""
        self.done += 1
        if self.done == self.steps:
            self.keep(weight.abs())
        elif self.done < self.steps and self.shrink != 1:
            weight.copy_(torch.where(self.chosen(weight.abs()), weight, self.shrink * weight))


class Evolving(Mask):
    r"""So many links at random places, of which every so often the weakest go and as many come at other places.

    Of n links those that go are the share zeta of the positive ones and of the negative ones that are closest to 0; the
    new ones are normal with a standard deviation of 0.1. ``evolutions`` times at most, every ``every`` optimiser steps.
    Draws follow from the seed and the evolutions so far alone.

    Args:
        count: n, of a matrix.

    Paper: see ``zoo.masks.Evolution``.
    """

    done: Tensor

    def __init__(
        self, weight: Tensor, count: int, mirrored: bool, *, zeta: float, every: int, evolutions: int | None, seed: int
    ):
        super().__init__(weight, Pattern(), mirrored)
        self.count, self.zeta, self.every, self.evolutions, self.seed = count, zeta, every, evolutions, seed
        self.register_buffer("done", torch.zeros((), dtype=torch.int64, device=self.mask.device))
        if not self.mask.is_meta:
            draws, flat = self._generator(), self._flat(self.mask)
            for row in flat:
                row.zero_()
                row[torch.randperm(len(row), generator=draws)[:count].to(row.device)] = True
            self.mask.copy_(flat.view(self.mask.shape))

    @torch.no_grad()
    def follow(self, weight: Tensor) -> None:
        """Evolve where it is time."""
        self.done += 1
        round_, rest = divmod(int(self.done), self.every)
        if rest or (self.evolutions is not None and round_ > self.evolutions):
            return
        draws = self._generator()
        values, flat = self._flat(weight).clone(), self._flat(self.mask).clone()
        for row, mask in zip(values, flat, strict=True):
            gone = weakest(row, mask, self.zeta)
            mask[gone] = False
            empty = (~mask).nonzero()[:, 0]
            new = empty[torch.randperm(len(empty), generator=draws)[: len(gone)].to(empty.device)]
            row[new] = (0.1 * torch.randn(len(gone), generator=draws)).to(row)
            mask[new] = True
        weight.copy_(values.view(weight.shape))
        self.mask.copy_(flat.view(self.mask.shape))

    def _flat(self, tensor: Tensor) -> Tensor:
        """(E, numbers), E = 1 for all but experts."""
        return tensor.flatten(1) if self.mirrored else tensor.reshape(1, -1)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed * 1_000_003 + int(self.done)) % MODULUS)


def weakest(values: Tensor, mask: Tensor, zeta: float) -> Tensor:
    """Places of the share zeta of the kept numbers (n,) closest to 0, of the positive and of the negative ones."""
    signs = [((values >= 0) & mask).nonzero()[:, 0], ((values < 0) & mask).nonzero()[:, 0]]
    return torch.cat([side[values[side].abs().argsort(stable=True)[: int(zeta * len(side))]] for side in signs])


class MovingList(ParametrizationList):
    """A weight and its mask, which hears of the optimiser's steps."""

    def after_step(self) -> None:
        """Let masks follow; see ``zoo.after_step``."""
        weight: Any = self.original
        if hasattr(weight, "full_tensor"):
            raise ValueError("masks that move need whole weights, these are sharded: train by DDP, not fsdp2")
        for part in self:
            if isinstance(part, Mask):
                part.follow(weight)


def put_masks(model: nn.Module, names: Iterable[str], make: Callable[[str], Mask]) -> None:
    """Put masks between the weights of these names and their layers, in place; see ``put_between``."""
    put_between(model, names, make)
    for layer, name, _ in list(between(model, Mask)):
        held: Any = layer.parametrizations
        held[name].__class__ = MovingList


def masks(model: nn.Module) -> dict[str, Mask]:
    """Name of a weight -> its mask, for all that have one."""
    names = {module: name for name, module in model.named_modules()}
    found = {f"{names[layer]}.{name}".lstrip("."): mask for layer, name, mask in between(model, Mask)}
    return found  # type: ignore[return-value]


def unmask(model: nn.Module) -> None:
    """Leave plain weights with zeros where the masks have them, in place."""
    for layer, name, _ in list(between(model, Mask)):
        parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
