"""Early exits for any language model and image classifier."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from zoo.changes import Change, apply
from zoo.generate.decode import evaluating
from zoo.kernels.flops import flop_counter
from zoo.language.base import LanguageModel
from zoo.layers.depth.exits import CLOSED, MEASURES, OPEN, Exits, ImageExits, TokenExits, solve_threshold
from zoo.layers.precision import computes_in
from zoo.vision.base import VisionModel
from zoo.vision.hierarchical import HierarchicalModel

Model = TypeVar("Model", bound=nn.Module)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddedExits(Change, kind="exits"):
    """What ``add_exits`` did."""

    after: tuple[int, ...] = (0,)
    """Numbers of the blocks after which there are exits."""
    measure: str = "mean"
    """How an output tells that it has settled, see ``zoo.layers.depth.exits.Exits``."""
    sampling: float = 0.5
    """Share of the tokens of a language model that leave early in training."""
    weight: float = 1.0
    """Weight of the loss of an image classifier's exits in training."""

    def install(self, model: Any) -> None:
        """Put ``model.exits`` in place."""
        blocks = _blocks(model)
        if getattr(model, "exits", None) is not None:
            raise ValueError("the model has exits already: build it anew for others")
        inner = all(isinstance(block, int) and 0 <= block < len(blocks) - 1 for block in self.after)
        if not self.after or not inner or list(self.after) != sorted(set(self.after)):
            raise ValueError(
                f"after must hold numbers of blocks in [0, {len(blocks) - 1}), in order, got {list(self.after)}: the "
                f"last of the {len(blocks)} blocks has the model's own head"
            )
        if self.measure not in MEASURES or not 0 <= self.sampling <= 1 or not self.weight >= 0:
            raise ValueError(
                f"measure must be one of {', '.join(MEASURES)}, sampling in [0, 1] and weight at least 0, got "
                f"{self.measure!r}, {self.sampling}, {self.weight}"
            )
        tokens = isinstance(model, LanguageModel)
        exits = TokenExits(self.after, self.measure, self.sampling) if tokens else self._of_images(model)
        like = computes_in(model)
        device = None if like.is_meta else like.device  # its weights may yet be on their way
        model.exits = exits.to(device, like.dtype).train(model.training)

    def _of_images(self, model: VisionModel) -> ImageExits:
        if isinstance(model, HierarchicalModel) and self.measure != "doubt":
            raise ValueError(
                f"the maps of {type(model).__name__} change their width, so the first exit has nothing to compare "
                f"with: take measure='doubt', got {self.measure!r}"
            )
        if getattr(model, "auxiliary_head", None) is not None:
            raise ValueError("the model has an auxiliary head, which exits take the place of: set auxiliary_weight=0")
        dims = [model.feature_info[block]["num_chs"] for block in self.after]
        return ImageExits(self.after, self.measure, dims, model.config.num_classes, self.weight)


class Calibration(NamedTuple):
    """What ``calibrate_exits`` found.

    Attributes:
        thresholds: of every exit; negative where nothing leaves.
        shares: of the calibration data, how much left at each exit and at the end.
        costs: FLOPs of a token or image that leaves there, those of all exits looked at included.
        flops: their mean by these shares.
    """

    thresholds: list[float]
    shares: list[float]
    costs: list[float]
    flops: float


def add_exits(
    model: Model, after: Sequence[int], *, measure: str = "mean", sampling: float = 0.5, weight: float = 1.0
) -> Model:
    """Let tokens or images leave a model after some of its blocks, in place.

    At first all exits are closed and the model is what it was. Train it (the tasks do what is needed), then
    ``calibrate_exits``; or set ``model.exits.thresholds``: infinity lets everything leave, negative numbers nothing.

    A language model's exits read the stream through its own norm and head. Tokens leave one by one; later blocks
    remember of those that left what they would of any (keys and values of the value that they left with), so generation
    goes on from the same states and caches, recurrent ones too. A step in which all rows have left computes no more
    than that. An image classifier has a head an exit, and images that left are computed no further.

    Args:
        model: a language model whose blocks run one after the other, or an image classifier.
        after: numbers of blocks (stages of a hierarchical model), ascending, without the last.
        measure: of what an output must fall below: "mean", "l2", "max" or "cosine", its change since the exit before;
            "doubt", one less its largest probability.
        sampling: share of the tokens that leave early in training.
        weight: of the loss of images that do.

    Returns:
        The model.

    Raises:
        TypeError: for another kind of model.
        ValueError: for numbers out of range, or a model that goes another way through its blocks.

    Papers: Yue et al., "DeeR-VLA", arXiv 2411.02359; Schuster et al., "CALM", arXiv 2207.07061.
    """
    apply(model, AddedExits(after=tuple(after), measure=measure, sampling=sampling, weight=weight))
    return model


@torch.no_grad()
def calibrate_exits(
    model: nn.Module,
    batches: Tensor | Iterable[Tensor],
    *,
    shares: Sequence[float] | None = None,
    budget: float | None = None,
) -> Calibration:
    r"""Set the thresholds so that of the calibration data given shares leave at each exit.

    One exit after the other, its threshold is that of the floor(N q_i) items nearest to settled among those that have
    not left before: the exact shares but for items of equal distance. A budget is spent by the shares
    :math:`q_i \propto r^i`, whose r is solved for.

    Args:
        model: with exits.
        batches: token ids (B, T) or images (B, C, H, W), one tensor or several, read once for each exit.
        shares: q_i of every exit and of the end, of sum 1.
        budget: mean FLOPs of a token or image, in place of shares.

    Raises:
        ValueError: for a model without exits, shares that are none, or a budget that no shares have.

    Paper: Yue et al., "DeeR-VLA", arXiv 2411.02359, section 3.3.
    """
    exits, given = _exits(model), [batches] if isinstance(batches, Tensor) else list(batches)
    if (shares is None) == (budget is None):
        raise ValueError(f"give shares or a budget, got shares={shares}, budget={budget}")
    count, costs = len(exits.after), exit_costs(model, given[0])
    wanted = geometric_shares(costs, budget) if shares is None else list(shares)  # type: ignore[arg-type]
    if len(wanted) != count + 1 or min(wanted) < 0 or not math.isclose(sum(wanted), 1, abs_tol=1e-6):
        raise ValueError(f"shares must be {count + 1} numbers of sum 1, one an exit and one for the end, got {wanted}")
    exits.thresholds.fill_(CLOSED)
    left, total = [], 0
    for exit, share in enumerate(wanted[:-1]):
        distances = _distances(model, exits, exit, given)
        total = total or len(distances)
        threshold = solve_threshold(distances, math.floor(total * share + 1e-9))
        exits.thresholds[exit] = threshold
        left.append(int((distances <= exits.thresholds[exit]).sum()))
    found = [part / total for part in (*left, total - sum(left))]
    flops = sum(share * cost for share, cost in zip(found, costs, strict=True))
    return Calibration(exits.thresholds.tolist(), found, costs, flops)


@torch.no_grad()
def exit_costs(model: nn.Module, inputs: Tensor) -> list[float]:
    """FLOPs of a token or image of inputs that leaves at each exit, and of one that goes to the end: counted, with all
    of them leaving there, the outputs read at exits and what later blocks remember included.

    Raises:
        ValueError: for a model without exits.
    """
    exits, costs = _exits(model), []
    kept = exits.thresholds.clone()
    try:
        for exit in range(len(exits.after) + 1):
            exits.thresholds.fill_(CLOSED)
            exits.thresholds[exit : exit + 1] = OPEN
            exits.recorded = {len(exits.after) - 1: []} if exit == len(exits.after) else None  # looked at, and closed
            costs.append(counted(model, inputs))
    finally:
        exits.recorded = None
        exits.thresholds.copy_(kept)
    return costs


def geometric_shares(costs: Sequence[float], budget: float) -> list[float]:
    """q_i in proportion to r^i, with the r at which the mean of the costs is the budget.

    Raises:
        ValueError: for a budget outside the costs.
    """
    if not costs[0] < budget < costs[-1]:
        raise ValueError(f"a budget lies between the costs of the first exit and of the end, {costs}, got {budget}")
    places = torch.arange(len(costs), dtype=torch.float64)
    spent, low, high = torch.tensor(costs, dtype=torch.float64), -50.0, 50.0  # logarithms of r
    for _ in range(100):
        middle = (low + high) / 2
        shares = (middle * places).softmax(0)
        low, high = (middle, high) if shares @ spent < budget else (low, middle)
    return shares.tolist()


def _distances(model: nn.Module, exits: Exits, exit: int, batches: Sequence[Tensor]) -> Tensor:
    """At one exit, of all that come there."""
    exits.recorded = {exit: []}
    try:
        with evaluating(model):
            for batch in batches:
                model(batch)
        return torch.cat(exits.recorded[exit])
    finally:
        exits.recorded = None


@torch.no_grad()
def counted(model: Any, inputs: Tensor) -> float:
    """FLOPs of a token, run with a state that remembers it, or of an image."""
    language = isinstance(model, LanguageModel)
    with evaluating(model), flop_counter(display=False) as counter:
        model(*((inputs, model.init_state(len(inputs))) if language else (inputs,)))
    return counter.get_total_flops() / (inputs.numel() if language else len(inputs))


def _exits(model: nn.Module) -> Exits:
    exits = getattr(model, "exits", None)
    if not isinstance(exits, Exits):
        raise ValueError(f"the {type(model).__name__} has no exits: call zoo.add_exits first")
    return exits


def _blocks(model: Any) -> nn.ModuleList:
    if isinstance(model, LanguageModel):
        if not model.straight:
            raise ValueError(f"exits are between blocks that run one after the other; {type(model).__name__}'s do not")
        return model.blocks
    if not isinstance(model, VisionModel):
        raise TypeError(f"exits are for language models and image classifiers, got a {type(model).__name__}")
    own = [getattr(type(model), name) is getattr(VisionModel, name) for name in ("forward", "forward_features")]
    if not all(own) or model.config.num_classes == 0:
        raise ValueError(
            f"{type(model).__name__} goes its own way through its blocks, or has no classes: exits are for plain "
            "classifiers"
        )
    return model.layer_list()[1]
