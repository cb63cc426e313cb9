"""R-Sparse: no number goes, but a token reads a part of each matrix alone, the columns of its largest inputs."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zoo.changes import Change, apply
from zoo.layers.sparse import Pattern
from zoo.layers.sparse.rank_aware import RankAware, RankAwareLinear, low_rank, rank_of
from zoo.layers.sparse.replace import weights_of
from zoo.quantize.calibration import model_outputs, watching
from zoo.sparsify.method import Method

if TYPE_CHECKING:
    from zoo.quantize.calibration import Calibration

SCORES = 1 << 16  # that are kept of a layer, to find thresholds among
SHARES = (0.5, 1.0)  # between which a search draws


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActivationSparse(Change, kind="activation_sparse"):
    """``RankAware`` in the place of weights, for ``zoo.sparsify`` or a file to fill."""

    names: tuple[str, ...] = ()
    """Of the weights."""
    ranks: tuple[int, ...] = ()
    """Of each."""

    def install(self, model: nn.Module) -> None:
        """Put them in place."""
        if not self.names or len(self.names) != len(self.ranks):
            raise ValueError("a model with sparse activations names its weights, each with a rank: zoo.sparsify does")
        layers: dict[str, Any] = {name: model.get_submodule(name.rpartition(".")[0]) for name in self.names}
        if unknown := [name for name, layer in layers.items() if type(layer) is not nn.Linear]:
            raise ValueError(f"{unknown[0]} is not the weight of a plain linear layer")
        for (name, layer), rank in zip(layers.items(), self.ranks, strict=True):
            _put(model, name, RankAware(layer.weight.shape, rank, layer.weight), layer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RSparse(Method, name="r_sparse", calibrated=True, pattern="activations"):
    r"""Each token keeps its inputs of the largest :math:`|x_c| \lVert W_{:c} \rVert`, by a threshold of each layer that
    leaves the share (1 - sparsity) share of them on the calibration; the others pass through the best product of low
    rank, of (1 - sparsity) (1 - share) of the numbers. Linear layers alone, not experts.

    With ``generations`` each layer has a share of its own: of so many changes of a few shares, drawn one after another,
    those are kept that change the outputs on the calibration less. The authors search with a population.

    Paper: Zhang et al., "R-Sparse: Rank-Aware Activation Sparsity for Efficient LLM Inference", arXiv 2504.19449; the
    shares it finds are 0.96 on average.
    """

    share: float = 0.95
    """Of what is read, that is of columns, in [0, 1]; the rest is of low rank."""
    generations: int = 0
    """Changes of the shares that are tried; 0: all layers have the same."""
    seed: int = 0
    """Of the changes."""

    def __post_init__(self):
        if not 0 <= self.share <= 1 or self.generations < 0:
            raise ValueError(
                "share must lie in [0, 1] and generations be at least 0, got "
                f"share {self.share} and generations {self.generations}"
            )

    def takes(self, model: nn.Module, name: str) -> bool:
        """Linear layers."""
        return type(model.get_submodule(name.rpartition(".")[0])) is nn.Linear

    def check(self, model: nn.Module, names: Sequence[str], pattern: Pattern) -> None:
        """A pattern is of weights."""
        if pattern.name != self.pattern:
            raise ValueError(f"r_sparse keeps all numbers of a matrix: it takes no pattern, got {pattern.name!r}")

    def see(self, model: nn.Module, names: Sequence[str], calibration: Calibration | None) -> Mapping[str, Any]:
        """The calibration, and scores (K,) of the inputs of each layer."""
        assert calibration is not None
        return {"calibration": calibration, "scores": input_scores(model, names, calibration)}

    def put(self, model: nn.Module, names: Sequence[str], pattern: Pattern, known: Mapping[str, Any]) -> None:
        """Find shares, then thresholds and factors."""
        found = Search(model, names, pattern.sparsity, known["scores"])
        shares = dict.fromkeys(names, self.share)
        if self.generations:
            shares = found.best(shares, known["calibration"], self.generations, self.seed)
        made = {name: found.made(name, share) for name, share in shares.items()}
        apply(model, ActivationSparse(names=tuple(names), ranks=tuple(made[name].rank for name in names)))
        for name in names:
            _matrix(model, name).load_state_dict(made[name].state_dict())


class Search:
    """What each layer would be with a share, and how the outputs of the model change.

    Args:
        model: dense.
        names: of weights.
        sparsity: of all layers.
        scores: of their inputs, (K,) rising.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], sparsity: float, scores: Mapping[str, Tensor]):
        self.model, self.names, self.sparsity, self.scores = model, names, sparsity, scores
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}

    def made(self, name: str, share: float) -> RankAware:
        """The matrix in the place of a weight."""
        weight, scores = weights_of(self.model, name), self.scores[name]
        rank = rank_of(weight.shape, self.sparsity, share)
        found = RankAware(weight.shape, rank, weight)
        place = round(len(scores) * (1 - (1 - self.sparsity) * share))
        threshold = scores[min(place, len(scores)) - 1].item() if place else -1.0
        if rank and name not in self.factors:
            self.factors[name] = low_rank(weight, min(weight.shape))
        left, right = self.factors[name] if rank else (weight.new_zeros(len(weight), 0), weight[:0])
        found.fill(weight, left[:, :rank], right[:rank], threshold)
        return found

    @torch.no_grad()
    def change(self, shares: Mapping[str, float], calibration: Calibration, expected: Tensor) -> float:
        """The mean squared change of the model's outputs; the model is left as it was."""
        layers = {name: self.model.get_submodule(name.rpartition(".")[0]) for name in self.names}
        made = {name: self.made(name, shares[name]) for name in self.names}
        try:
            for name, matrix in made.items():
                _put(self.model, name, matrix, layers[name])
            return (model_outputs(self.model, calibration) - expected).square().mean().item()
        finally:
            for name, layer in layers.items():
                self.model.set_submodule(name.rpartition(".")[0], layer)

    def best(self, shares: dict[str, float], calibration: Calibration, generations: int, seed: int) -> dict[str, float]:
        """The shares of the least change among the first and so many that each change a quarter of the best so far."""
        with torch.no_grad():
            expected = model_outputs(self.model, calibration)
        dice, least = random.Random(seed), self.change(shares, calibration, expected)
        for _ in range(generations):
            other = dict(shares)
            for name in dice.sample(list(self.names), max(1, len(self.names) // 4)):
                other[name] = dice.uniform(*SHARES)
            found = self.change(other, calibration, expected)
            if found < least:
                shares, least = other, found
        return shares


@torch.no_grad()
def input_scores(model: nn.Module, names: Sequence[str], calibration: Calibration) -> dict[str, Tensor]:
    """Name of a weight -> |x_c| times the norm of its column, of some inputs of all tokens, (K,) rising, float32."""
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    norms = {name: weights_of(model, name).float().norm(dim=0) for name in names}
    most = max(1, SCORES // len(calibration.batches))

    def see(name: str, x: Tensor) -> None:
        scores = (x.float().abs() * norms[name]).flatten()
        parts[name].append(scores[:: -(-len(scores) // most)] if len(scores) > most else scores)

    with watching({name: model.get_submodule(name.rpartition(".")[0]) for name in names}, see):
        calibration.run(model)
    return {name: torch.cat(found).sort().values for name, found in parts.items()}


def nbytes_read(model: nn.Module) -> float:
    """Bytes of weights that a token of the latest forward pass reads on average: all that are saved but embeddings, and
    of sparse activations a part."""
    held = {id(tensor): tensor.nbytes for tensor in model.state_dict(keep_vars=True).values()}
    products = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    for module in model.modules():
        if isinstance(module, nn.Embedding) and id(module.weight) not in products:
            held.pop(id(module.weight), None)
    sparse = [module for module in model.modules() if isinstance(module, RankAware)]
    unread = sum(sum(t.nbytes for t in module.state_dict().values()) - module.nbytes_read() for module in sparse)
    return sum(held.values()) - unread


def _put(model: nn.Module, name: str, matrix: RankAware, layer: Any) -> None:
    model.set_submodule(name.rpartition(".")[0], RankAwareLinear(matrix, layer.bias).train(layer.training))


def _matrix(model: nn.Module, name: str) -> RankAware:
    found: Any = model.get_submodule(name.rpartition(".")[0])
    return found.weight
