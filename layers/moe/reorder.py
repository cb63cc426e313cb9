"""In which order tokens meet experts, and how often an expert's weights are fetched for it (Edge-MoE)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.moe import Routing
from zoo.layers.moe.task_moe import TaskMoE


class ExpertMemory:
    """The weights of a ``TaskMoE`` as a device sees them that has room for one expert: each use is a fetch.

    Attributes:
        reads: fetches so far, each of one expert's two matrices and biases.
        num_bytes: what they amount to.
    """

    def __init__(self, layer: TaskMoE):
        self.layer = layer
        self.reads = self.num_bytes = 0

    def read(self, expert: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """w1 (D, F), b1 (F,), w2 (F, D), b2 (D,) of an expert."""
        layer = self.layer
        weights = (layer.w1[expert], layer.b1[expert], layer.w2[expert], layer.b2[expert])
        self.reads += 1
        self.num_bytes += sum(weight.nbytes for weight in weights)
        return weights


class ExpertReads(NamedTuple):
    """Fetches of an expert's weights in either order."""

    token_by_token: int
    expert_by_expert: int


def expert_reads(experts: Tensor) -> ExpertReads:
    """What the routing ``experts`` (M, k) costs: one fetch for each choice, or one for each expert that has tokens."""
    return ExpertReads(experts.numel(), experts.unique().numel())


def token_by_token(x: Tensor, routing: Routing, memory: ExpertMemory) -> Tensor:
    """The plain order: x (M, D) -> (M, D), every token fetches each of its experts."""
    output = _empty_sum(x, routing)
    for token, (experts, weights) in enumerate(zip(routing.experts.tolist(), routing.weights, strict=True)):
        for expert, weight in zip(experts, weights, strict=True):
            output[token] += weight * _mlp(x[token], *memory.read(expert))
    return output.to(x.dtype)


def expert_by_expert(x: Tensor, routing: Routing, memory: ExpertMemory) -> Tensor:
    """The reordering of Edge-MoE: x (M, D) -> (M, D), equal to ``token_by_token`` up to the order of a token's sum.

    Tokens are queued at the experts they chose, with their weights; then every expert whose queue is not empty is
    fetched once and works through it, and its results are added to the tokens' outputs. The number of fetches is that
    of the experts in use, whatever the number of tokens.

    ``TaskMoE`` itself computes in this order, all queues at once; here it is written out and its fetches are counted.

    Paper: Sarkar et al., "Edge-MoE", arXiv 2305.18691.
    """
    output = _empty_sum(x, routing)
    queues: dict[int, list[tuple[int, int]]] = {}
    for token, experts in enumerate(routing.experts.tolist()):
        for choice, expert in enumerate(experts):
            queues.setdefault(expert, []).append((token, choice))
    for expert, queue in queues.items():
        tokens, choices = torch.tensor(queue, device=x.device).T
        results = _mlp(x[tokens], *memory.read(expert))
        output[tokens] += routing.weights[tokens, choices, None] * results
    return output.to(x.dtype)


def _mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return F.gelu(x @ w1 + b1) @ w2 + b2


def _empty_sum(x: Tensor, routing: Routing) -> Tensor:
    return x.new_zeros(x.shape, dtype=compute_dtype(x, routing.weights))
