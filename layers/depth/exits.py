"""Early exits: a token or an image leaves a stack of blocks once its output has settled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.dispatch import compute_dtype
from zoo.layers.precision import KeepsFloat32
from zoo.layers.report import Reports
from zoo.layers.state import is_traced

Read = Callable[[Tensor], Tensor]  # the stream (B, T, D) -> probabilities (B, T, classes)

MEASURES: dict[
    str, Callable[[Tensor, Tensor], Tensor]
] = {  # probabilities (..., C) now and at the exit before -> (...)
    "mean": lambda p, before: (p - before).abs().mean(-1),
    "l2": lambda p, before: (p - before).square().mean(-1).sqrt(),
    "max": lambda p, before: (p - before).abs().amax(-1),
    "cosine": lambda p, before: 1 - F.cosine_similarity(p, before, dim=-1),
    "doubt": lambda p, _: 1 - p.amax(-1),
}
OPEN, CLOSED = float("inf"), -1.0  # thresholds at which everything leaves, and nothing


class Exits(Reports, KeepsFloat32):
    r"""Where something may leave a stack of blocks: after block l_i, i = 0, 1, ..., if

    .. math:: d(p_i, p_{i-1}) \le \theta_i

    where p_i are the probabilities read off the stream there, p_{-1} those before block l_0, and d says how far they
    moved: "mean", "l2" (root mean square), "max" of the absolute differences, or "cosine", one less their similarity.
    "doubt" is one less the largest of p_i, whatever it was before. What leaves nowhere runs through all blocks.

    Args:
        after: l_0 < l_1 < ..., numbers of blocks, without the last one.
        measure: d.

    Attributes:
        thresholds: (exits,) float32: ``CLOSED`` (any negative number) where nothing leaves, as at first; ``OPEN``
            (infinity) where everything does.
        recorded: exit -> (items there, of those that have not left, their d); None unless calibration asks for it.
        activity: "left" (exits + 1,) int64, how many of the latest forward pass left where, the end included.

    Papers: Yue et al., "DeeR-VLA", arXiv 2411.02359; "doubt": Schuster et al., "Confident Adaptive Language Modeling",
    arXiv 2207.07061.
    """

    float32_buffers = ("thresholds",)
    thresholds: Tensor

    def __init__(self, after: Sequence[int], measure: str):
        super().__init__()
        self.after, self.measure = tuple(after), measure
        self.register_buffer("thresholds", torch.full((len(self.after),), CLOSED))
        self.recorded: dict[int, list[Tensor]] | None = None

    @property
    def needed(self) -> int:
        """How many exits, from the first, have to be looked at; 0 where all are closed."""
        if is_traced(self.thresholds):
            return len(self.after)
        wanted = (self.thresholds >= 0).nonzero().flatten().tolist()
        return 1 + max([*wanted, *(self.recorded or ())], default=-1)

    @property
    def compares(self) -> bool:
        """Whether d is of two outputs."""
        return self.measure != "doubt"

    def leaves(self, exit: int, now: Tensor, before: Tensor | None, gone: Tensor | None = None) -> Tensor:
        """Boolean (...): what leaves here, of probabilities (..., C) now and at the exit before."""
        distance = MEASURES[self.measure](now, now if before is None else before)
        if self.recorded is not None and exit in self.recorded:
            self.recorded[exit].append(distance.flatten() if gone is None else distance[~gone])
        return distance <= self.thresholds[exit]


class TokenExits(Exits):
    """Exits of the tokens of a language model, read through the model's own norm and head.

    A token that has left keeps its value: later blocks read keys, values or whatever they remember from it, and add
    nothing to it (state propagation). So a token's output depends on no later token, and a state that was advanced
    with exits is one that any token can continue from.

    In training a share ``sampling`` of the tokens leaves at exits drawn at random, which the one loss then teaches: the
    model sees streams of mixed depth, as in use.

    Args:
        after, measure: see ``Exits``.
        sampling: share of the tokens that leave early in training.
    """

    def __init__(self, after: Sequence[int], measure: str, sampling: float):
        super().__init__(after, measure)
        self.sampling = sampling

    def leaving(self, x: Tensor, read: Read, seq_idx: Tensor | None = None) -> Leaving | None:
        """One call of a model, whose stream x (B, T, D) enters the first block; None where no token will leave.

        Args:
            x: (B, T, D).
            read: the model's norm and head, as probabilities.
            seq_idx: (B, T); what is padding, negative, counts as gone.
        """
        gone = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device) if seq_idx is None else seq_idx < 0
        count = len(self.after)
        if self.training:
            draw = torch.randint(count, x.shape[:2], device=x.device)
            early = torch.rand(x.shape[:2], device=x.device) < self.sampling
            return Leaving(self, x, read, gone, count, draw.where(early, draw.new_tensor(count)))
        needed = self.needed
        return Leaving(self, x, read, gone, needed) if needed else None


class Leaving:
    """Which tokens have left, in one call of a model.

    Attributes:
        gone: (B, T).
        over: whether all have left, which a traced program does not know.
    """

    def __init__(
        self, exits: TokenExits, x: Tensor, read: Read, gone: Tensor, needed: int, drawn: Tensor | None = None
    ):
        self.exits, self.read, self.gone, self.needed, self.drawn = exits, read, gone, needed, drawn
        self.over = False
        self.counts: list[Tensor] = []
        self.before: Tensor | None = None
        self._look_before(-1, x)

    def after(self, block: int, x: Tensor, y: Tensor) -> Tensor:
        """The stream after a block that made y (B, T, D) of x."""
        if self.counts:
            y = torch.where(self.gone[..., None], x, y)
        self._look_before(block, y)
        if block in self.exits.after[: self.needed]:
            self._decide(self.exits.after.index(block), y)
        return y

    def _look_before(self, block: int, y: Tensor) -> None:
        if self.drawn is None and self.exits.compares and block + 1 == self.exits.after[0]:
            self.before = self.read(y)

    def _decide(self, exit: int, y: Tensor) -> None:
        if self.drawn is not None:
            leaves = self.drawn == exit
        else:
            now = self.read(y)
            leaves = self.exits.leaves(exit, now, self.before, self.gone)
            self.before = now
        leaves = leaves & ~self.gone
        self.gone = self.gone | leaves
        self.counts.append(leaves.sum())
        self.over = not is_traced(leaves) and bool(self.gone.all())

    def end(self) -> None:
        """Publish how many left where."""
        counts = [*self.counts, *[torch.zeros_like(self.counts[0])] * (len(self.exits.after) - len(self.counts))]
        self.exits.report({}, {"left": torch.stack([*counts, (~self.gone).sum()])})


class ImageExits(Exits):
    """Exits of the images of a classifier, each with a head of its own: norm, mean of the patches, linear layer.

    An image that has left is classified, and the others go on without it. In training every image gets, besides the
    model's logits, those of an exit drawn at random; ``weight`` is of their loss.

    Args:
        after, measure: see ``Exits``.
        dims: channels of the stream at each exit.
        num_classes: of the heads.
        weight: of the loss of the exits in training.
    """

    def __init__(self, after: Sequence[int], measure: str, dims: Sequence[int], num_classes: int, weight: float):
        super().__init__(after, measure)
        self.dims, self.weight = tuple(dims), weight
        self.reset(num_classes)

    def reset(self, num_classes: int) -> None:
        """Fresh heads."""
        self.heads = nn.ModuleList(ExitHead(dim, num_classes) for dim in self.dims)

    def sampled(self, logits: Sequence[Tensor]) -> Tensor:
        """Of the logits (B, C) of every exit, for each image those of one (B, C)."""
        every = torch.stack(list(logits), 1)
        drawn = torch.randint(every.shape[1], (len(every), 1, 1), device=every.device)
        return every.take_along_dim(drawn, 1)[:, 0]


class ExitHead(nn.Module):
    """Patches (B, N, dim) to logits (B, classes): the norm of each, their mean, a linear layer."""

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, dim) -> (B, classes)."""
        return self.linear(self.norm(tokens).mean(1))


def probabilities(logits: Tensor) -> Tensor:
    """(..., C), in float32 or wider."""
    return logits.softmax(-1, dtype=compute_dtype(logits))


def solve_threshold(distances: Tensor, count: int) -> float:
    """The threshold at which the ``count`` nearest of so many distances leave (more where some are equal)."""
    if count < 1 or not len(distances):
        return CLOSED
    return distances.sort().values[min(count, len(distances)) - 1].item()
