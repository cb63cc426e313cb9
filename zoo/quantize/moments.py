"""What the inputs of layers are like, as far as the squared error of their outputs depends on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.moe import MoEOutput, Routing
from zoo.layers.moe.experts import RoutedExperts
from zoo.quantize.calibration import Calibration, watching

DAMPING = 0.01  # of the mean of the diagonal, so that the matrix can be inverted
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def second_moments(model: nn.Module, names: Iterable[str], calibration: Calibration) -> dict[str, Tensor]:
    r""":math:`H = \frac{1}{M} \sum_m x_m x_m^T`, float32, of all inputs of a weight's rows, by the name of the weight:
    (C, C) of linear layers and of convolutions without groups, (E, C, C) of experts, of the tokens that each has got;
    of one that has got none, of inputs that are all alike.

    Others, embeddings and convolutions in groups, are not in it. Weights that are tied have the sum of theirs.
    """
    places = {name: model.get_submodule(name.rpartition(".")[0]) for name in names}
    layers = {name: module for name, module in places.items() if _rows(module) is not None}
    experts = {name.rpartition(".")[0]: m for name, m in places.items() if isinstance(m, RoutedExperts) and _plain(m)}
    sums: dict[int, Tensor] = {}
    counts: dict[int, Tensor] = {}

    def add(weight: Any, moment: Tensor, count: Tensor) -> None:
        sums[id(weight)] = sums.get(id(weight), 0) + moment
        counts[id(weight)] = counts.get(id(weight), 0) + count

    def see(name: str, x: Tensor) -> None:
        rows: Any = _rows(layers[name])
        rows = rows(x.float())
        add(layers[name].weight, rows.mT @ rows, torch.tensor(len(rows)))

    with ExitStack() as stack:
        stack.enter_context(watching(layers, see))
        for layer in experts.values():
            layer.visit = partial(_visited, layer, add)  # type: ignore[method-assign]
            stack.callback(layer.__dict__.pop, "visit")
        calibration.run(model)
    weights = {name: getattr(module, name.rpartition(".")[2]) for name, module in places.items()}
    found = {name: (sums[id(w)], counts[id(w)]) for name, w in weights.items() if id(w) in sums}
    return {name: _mean(moment, count.to(moment.device)) for name, (moment, count) in found.items()}


def _mean(moment: Tensor, count: Tensor) -> Tensor:
    alike = torch.eye(moment.shape[-1], device=moment.device)
    return torch.where(count > 0, moment / count.clamp(min=1), alike)


def _rows(module: Any) -> Any:
    """From the inputs of a layer to what the rows of its matrix are multiplied with, (M, C); None of other layers."""
    if isinstance(module, nn.Linear):
        return partial(torch.flatten, end_dim=-2)
    return partial(_patches, module) if type(module) in CONVS and module.groups == 1 else None


def _patches(conv: Any, x: Tensor) -> Tensor:
    """What a convolution of any number of axes sees at each place, its channels first."""
    sizes = list(zip(conv.kernel_size, conv.stride, conv.dilation, strict=True))
    sides = [(p, p) for p in conv.padding] if not isinstance(conv.padding, str) else [(0, 0)] * len(sizes)
    if conv.padding == "same":
        sides = [(d * (k - 1) // 2, d * (k - 1) - d * (k - 1) // 2) for k, _, d in sizes]
    x = F.pad(x, list(chain.from_iterable(reversed(sides))))
    for axis, (k, s, d) in enumerate(sizes, 2):
        x = x.unfold(axis, (k - 1) * d + 1, s)[..., ::d]
    return x.movedim(1, len(sizes) + 1).flatten(len(sizes) + 1).flatten(0, -2)


def _plain(layer: RoutedExperts) -> bool:
    return all(isinstance(w, nn.Parameter) for w in (layer.w1, layer.w2, layer.w3) if w is not None)


def _visited(
    layer: Any, add: Any, tokens: Tensor, routing: Routing, kept: Tensor | None = None, capacity: int | None = None
) -> MoEOutput:
    """``RoutedExperts.visit``; before it the tokens of each expert, and what its last matrix gets of them, are seen."""
    chosen = routing.experts if kept is None else routing.experts.masked_fill(~kept[:, None], layer.num_experts)
    inner = {name: w.new_zeros(len(w), w.shape[1], w.shape[1], dtype=torch.float32) for name, w in _matrices(layer)}
    counts = torch.zeros(layer.num_experts, 1, 1)
    for e in chosen.unique().tolist():
        if e < layer.num_experts:
            x = tokens[(chosen == e).any(-1)]
            counts[e] = len(x)
            for name, rows in (("w1", x), ("w3", x), ("w2", hidden(layer, e, x))):
                if name in inner:
                    inner[name][e] = rows.float().mT @ rows.float()
    for name, w in _matrices(layer):
        add(w, inner[name], counts)
    return type(layer).visit(layer, tokens, routing, kept, capacity)


def _matrices(layer: Any) -> list[tuple[str, Tensor]]:
    return [(name, w) for name in ("w1", "w3", "w2") if (w := getattr(layer, name)) is not None]


def hidden(layer: Any, e: int, x: Tensor) -> Tensor:
    """What the last matrix of an expert is multiplied with, (M, F), for tokens (M, D)."""
    first, up = (
        x @ w[e] + (0 if b is None else b[e]) if w is not None else None
        for w, b in ((layer.w1, layer.b1), (layer.w3, layer.b3))
    )
    if up is None:
        return layer.act(first)
    return layer.act(first) * up if layer.glu is None else layer.glu(first, up)


def damped(moment: Tensor | None, columns: int) -> Tensor:
    """(..., C, C) positive definite, of a second moment or, where there is none, of inputs that are all alike."""
    if moment is None:
        return torch.eye(columns)
    least = DAMPING * _diagonal(moment).mean(-1) + torch.finfo(torch.float32).tiny
    return moment + least[..., None, None] * torch.eye(columns, device=moment.device)


def _diagonal(moment: Tensor) -> Tensor:
    return moment.diagonal(dim1=-2, dim2=-1)


def mean_squares(moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean square (..., 1, C) of each input."""
    return {name: _diagonal(moment).unsqueeze(-2).clone() for name, moment in moments.items()}


def output_error(off: Tensor, moment: Tensor) -> Tensor:
    """The mean squared error of each output (..., N) of matrices that are ``off`` (..., N, C)."""
    return (off @ moment * off).sum(-1)
