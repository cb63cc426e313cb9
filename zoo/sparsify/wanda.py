"""Pruning by the magnitude of weights and of what they multiply."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zoo.layers.moe.experts import RoutedExperts
from zoo.layers.sparse.replace import weights_of
from zoo.quantize.calibration import watching
from zoo.sparsify.method import Method

if TYPE_CHECKING:
    from zoo.quantize.calibration import Calibration


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanda(Method, name="wanda", calibrated=True, pattern="row"):
    r"""The score of a number is :math:`|w_{nc}| \, \lVert x_c \rVert_2`, over the tokens of the calibration.

    All layers are scored by the inputs that the dense model gives them; the authors prune block after block, and score
    a block by the inputs of the pruned ones before it. Of experts each sees its own tokens; one without any keeps by
    magnitude.

    Paper: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", arXiv 2306.11695.
    """

    def see(self, model: nn.Module, names: Sequence[str], calibration: Calibration | None) -> Mapping[str, Any]:
        """The norm of each input of each matrix."""
        assert calibration is not None
        return input_norms(model, names, calibration)

    def score(self, matrix: Tensor, known: Any) -> Tensor:
        """|w| times the norm of what it multiplies."""
        return matrix.abs() * torch.where(known.any(-1, keepdim=True), known, 1)[..., None, :]


@torch.no_grad()
def input_norms(model: nn.Module, names: Sequence[str], calibration: Calibration) -> dict[str, Tensor]:
    """Name of a weight -> norms (C,) of the inputs of its matrix, or (E, C) of experts, float32."""
    squares = {}
    for name in names:
        weight = weights_of(model, name)
        squares[name] = torch.zeros(*weight.shape[:-2], weight.shape[-1], device=weight.device)
    placed = {name: (model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names}
    linears = {name: module for name, (module, _) in placed.items() if not isinstance(module, RoutedExperts)}
    experts = {name: place for name, place in placed.items() if name not in linears}

    def see(name: str, x: Tensor) -> None:
        squares[name] += x.flatten(0, -2).float().square().sum(0)

    with watching(linears, see), _watched_experts(experts, squares):
        calibration.run(model)
    return {name: total.sqrt() for name, total in squares.items()}


class _Watched(nn.Module):
    """Matrices of experts (E, C, N) that note the squares of their inputs."""

    def __init__(self, weight: nn.Parameter, squares: Tensor):
        super().__init__()
        self.weight, self.squares = weight, squares
        self.shape = weight.mT.shape

    def matmul(self, x: Tensor, bias: Tensor | None = None, index: int = 0) -> Tensor:
        """x (M, C) -> (M, N), with matrix ``index``."""
        self.squares[index] += x.float().square().sum(0)
        return x @ self.weight[index].to(x.dtype)


@contextmanager
def _watched_experts(experts: Mapping[str, tuple[nn.Module, str]], squares: Mapping[str, Tensor]) -> Iterator[None]:
    weights = {name: getattr(*place) for name, place in experts.items()}
    for name, (module, attribute) in experts.items():
        delattr(module, attribute)
        module.add_module(attribute, _Watched(weights[name], squares[name]))
    try:
        yield
    finally:
        for name, (module, attribute) in experts.items():
            delattr(module, attribute)
            module.register_parameter(attribute, weights[name])
