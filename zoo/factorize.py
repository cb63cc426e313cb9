"""Products of two narrow matrices in place of a model's matrices."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from torch import nn

from zoo.layers.adapt import require_unadapted
from zoo.layers.lowrank import SOLVERS, LowRank, SparseLowRank
from zoo.layers.lowrank.factors import is_factorable, replace, sides
from zoo.layers.quant import records
from zoo.patterns import check_used, matched, patterns_of
from zoo.registry import nearest

Model = TypeVar("Model", bound=nn.Module)


def factorize(
    model: Model,
    rank: int | float,
    solver: str = "svd",
    *,
    skip: str | Collection[str] = (),
    only_smaller: bool = True,
) -> Model:
    """Replace linear layers and convolutions by two of rank r, in place: r (in + out) numbers for in times out.

    Subclasses with rules of their own (routers in float32), grouped convolutions, what is replaced already and weights
    that two layers share, such as a tied head's, stay as they are. The new parameters are no optimiser's yet.
    ``zoo.save_model`` writes the factors, and ``create_model`` builds them where it finds some.

    Args:
        model: any module.
        rank: r of every layer, at most its full rank min(in, out); or a fraction in (0, 1) of the largest rank that
            saves numbers, in out / (in + out) rounded down. in is that of a convolution times its kernel.
        solver: "svd", the nearest product, exact at full rank; "random", fresh factors to train from; "nmf", one factor
            not negative (semi-nonnegative factorisation, exact at full rank).
        skip: names of layers to leave, with wildcards, as in ("head", "blocks.0.*").
        only_smaller: leave the layers whose factors would have as many numbers as they have, or more.

    Returns:
        The model.

    Raises:
        ValueError: for a rank below 1 that is no fraction, an unknown solver, a pattern that fits no layer, a model
            that ``zoo.quantize`` has compressed, or where no layer would change; nothing is changed then.
        TypeError: for a ``skip`` that is no pattern of names or several.

    Papers: see ``LowRank``; the library of the latter is greenformer.
    """
    if not (0 < rank < 1 or (rank >= 1 and rank == int(rank))):
        raise ValueError(f"rank must be an integer from 1 on, or a fraction between 0 and 1, got {rank}")
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}{nearest(solver, SOLVERS)}; solvers: {', '.join(SOLVERS)}")
    require_unadapted(model, "zoo.factorize")
    layers = replaceable(model)
    if not layers and records(model):
        raise ValueError("zoo.factorize comes before zoo.quantize, which left no matrix to factorise")
    patterns = patterns_of(skip)
    check_used(patterns, layers, "layer")
    ranks = {name: _rank(layer, rank) for name, layer in layers.items() if not matched(name, patterns)}
    chosen = {name: r for name, r in ranks.items() if r and (not only_smaller or _is_smaller(layers[name], r))}
    if not chosen:
        raise ValueError(f"rank {rank} makes none of the {len(ranks)} layers smaller: take a lower one")
    for name, r in chosen.items():
        replace(model, name, r).solve(layers[name], solver)
    return model


def replaceable(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that narrow matrices may replace, by name."""
    owners: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    made = [module for module in model.modules() if isinstance(module, (LowRank, SparseLowRank))]
    inner = {part for module in made for part in module.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if name and module not in inner and is_factorable(module) and owners[id(module.weight)] == 1
    }


def _rank(layer: nn.Module, rank: int | float) -> int:
    rows, columns = sides(layer)
    return int(rank * (rows * columns // (rows + columns))) if rank < 1 else min(int(rank), rows, columns)


def _is_smaller(layer: nn.Module, rank: int) -> bool:
    rows, columns = sides(layer)
    return rank * (rows + columns) < rows * columns
