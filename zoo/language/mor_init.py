"""Shared blocks from the layers of a model that shares none.

Papers: Bae et al., "Mixture-of-Recursions", arXiv 2507.10524, and "Relaxed Recursive Transformers", arXiv 2410.20672;
the choice of layers is that of the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zoo.language.base import LanguageModel
from zoo.registry import nearest

Groups = list[list[int]]  # for each shared block the layers whose mean it becomes


def spread(first: int, last: int, count: int) -> list[int]:
    """``count`` whole numbers from ``first`` to ``last``, evenly spaced and rounded."""
    return [round(first + (last - first) * index / max(1, count - 1)) for index in range(count)]


def average(layers: Sequence[int], blocks: Groups) -> Groups:
    """The mean of all layers that the block stands for."""
    return [[layers[place] for place in places] for places in blocks]


def stepwise(layers: Sequence[int], blocks: Groups) -> Groups:
    """Layers at even steps, the first and the last among them."""
    return [[layers[place]] for place in spread(0, len(layers) - 1, len(blocks))]


def lower(layers: Sequence[int], blocks: Groups) -> Groups:
    """The first layers."""
    return [[layer] for layer in layers[: len(blocks)]]


def upper(layers: Sequence[int], blocks: Groups) -> Groups:
    """The last layers."""
    return [[layer] for layer in layers[len(layers) - len(blocks) :]]


def random(layers: Sequence[int], blocks: Groups) -> Groups:
    """Layers drawn without replacement, in order."""
    return [[layers[place]] for place in sorted(torch.randperm(len(layers))[: len(blocks)].tolist())]


CHOICES: dict[str, Callable[[Sequence[int], Groups], Groups]] = {
    "stepwise": stepwise, "average": average, "lower": lower, "upper": upper, "random": random,
}  # fmt: skip


@torch.no_grad()
def init_recursions(model: LanguageModel, source: LanguageModel, ends: int, plan: Groups, how: str) -> None:
    """Load the weights of ``source`` into ``model``, whose router keeps its own.

    Args:
        model: with blocks of which all but ``ends`` at each end are shared.
        source: of the same widths and more blocks. Where these are no multiple, some are left out at even steps.
        ends: blocks of their own at each end, which take those of the source.
        plan: the shared blocks, by number, that each recursion runs.
        how: "stepwise", "average", "lower", "upper" or "random".

    Raises:
        ValueError: for another ``how``, a source with fewer blocks than the recursions run, or of other widths.
    """
    if how not in CHOICES:
        raise ValueError(f"how must be one of {list(CHOICES)}, got {how!r}{nearest(how, CHOICES)}")
    run, inner = [block for blocks in plan for block in blocks], len(source.blocks) - 2 * ends
    if inner < len(run):
        raise ValueError(
            f"the source needs at least {len(run) + 2 * ends} blocks, as many as the recursions run: got "
            f"{len(source.blocks)}"
        )
    layers = spread(ends, ends + inner - 1, len(run))
    blocks = [[place for place, block in enumerate(run) if block == shared] for shared in range(max(run) + 1)]
    groups = [[index] for index in range(ends)]
    groups += CHOICES[how](layers, blocks)
    groups += [[len(source.blocks) - ends + index] for index in range(ends)]
    theirs, ours = source.state_dict(), model.state_dict()
    found = {name: tensor for name, tensor in theirs.items() if not name.startswith("blocks.")}
    for index, group in enumerate(groups):
        for name in (name for name in ours if name.startswith(f"blocks.{index}.")):
            copies = [theirs.get(f"blocks.{layer}.{name.split('.', 2)[2]}") for layer in group]
            found[name] = _mean([copy for copy in copies if copy is not None])
    wrong = [name for name, tensor in found.items() if name not in ours or ours[name].shape != tensor.shape]
    if wrong:
        raise ValueError(f"the source must have the widths of the model; these differ: {', '.join(sorted(wrong)[:5])}")
    model.load_state_dict(found, strict=False)


def _mean(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors).mean(0) if len(tensors) > 1 else tensors[0]
