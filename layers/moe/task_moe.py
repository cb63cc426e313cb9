"""Experts that several tasks share, each task with a way of its own to choose among them (M3ViT)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.moe import Routing, top_k_routing
from zoo.layers.linear import WideLinear
from zoo.layers.moe.experts import RoutedExperts


class TaskGates(nn.Module):
    """One router a task (multi-gate): logits = W_task x."""

    def __init__(self, dim: int, num_experts: int, num_tasks: int):
        super().__init__()
        self.gates = nn.ModuleList(WideLinear(dim, num_experts, bias=False) for _ in range(num_tasks))

    def forward(self, x: Tensor, task: int) -> Tensor:
        """x (M, D) and the number of the task -> logits (M, E)."""
        return self.gates[task](x)  # type: ignore[operator]


class ConditionedGate(nn.Module):
    """One router for all tasks, which also reads an embedding of the task: logits = W [x; t]."""

    def __init__(self, dim: int, num_experts: int, task_dim: int):
        super().__init__()
        self.gate = WideLinear(dim + task_dim, num_experts, bias=False)

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        """x (M, D) and the embedding (task_dim,) of a ``TaskEmbedding`` -> logits (M, E)."""
        return self.gate(torch.cat([x, task.expand(len(x), -1)], dim=1))


class TaskEmbedding(nn.Module):
    """t = norm(W2 gelu(W1 onehot(task))), the vector (task_dim,) by which a ``ConditionedGate`` knows the task."""

    compute: Tensor  # empty, of the device and dtype to compute in

    def __init__(self, num_tasks: int, task_dim: int):
        super().__init__()
        self.num_tasks = num_tasks
        self.register_buffer("compute", torch.empty(0), persistent=False)
        self.fc1 = nn.Linear(num_tasks, task_dim)
        self.fc2 = nn.Linear(task_dim, task_dim)
        self.norm = nn.LayerNorm(task_dim, 1e-6)
        for linear in (self.fc1, self.fc2):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, task: int) -> Tensor:
        """Number of a task -> (task_dim,)."""
        one_hot = self.compute.new_zeros(self.num_tasks)
        one_hot[task] = 1
        return self.norm(self.fc2(F.gelu(self.fc1(one_hot))))


class TaskMoE(RoutedExperts):
    r"""Weighted sum of the ``top_k`` experts that the router of the task prefers; experts are two-layer MLPs.

    .. math::
        p = \mathrm{softmax}(\mathrm{router}(x, task) + \epsilon), \quad \mathcal{E} = \mathrm{top}_k(p), \quad
        y = \sum_{e \in \mathcal{E}} p_e (W^2_e \, \mathrm{gelu}(W^1_e x + b^1_e) + b^2_e)

    The weights of a token sum to less than 1: they are not normalised. :math:`\epsilon` is normal noise of standard
    deviation ``noise_std`` / E, in training mode only. Logits and softmax are float32 whatever the precision of the
    rest. Every token reaches all its experts, and only experts that a token chose are computed, each once for all its
    tokens. ``w1`` (E, D, F), ``b1`` (E, F), ``w2`` (E, F, D) and ``b2`` (E, D) hold all experts.

    Attributes:
        auxiliary_losses: in training mode "load_balance", already weighted, where its weight is not 0: CV²(importance)
            + CV²(load) with CV² the squared coefficient of variation over the experts, importance the sum of an
            expert's weights, and load the number of its tokens, through which no gradient flows.
        activity: of the latest forward pass: "tokens_per_expert" (E,) int64, what was really computed; "experts_read"
            () int64, the experts that had a token, whose weights were therefore needed. Not kept while exporting.

    Args:
        router: ``TaskGates`` or ``ConditionedGate``.
        dim: model width D.
        hidden_dim: width F of an expert.
        num_experts: E.
        top_k: experts a token.

    Raises:
        ValueError: for a top_k outside [1, num_experts], or a negative noise_std or balance_weight.

    Papers: Liang et al., "M³ViT", arXiv 2210.14793; the router and its losses: Riquelme et al., "Scaling Vision with
    Sparse Mixture of Experts", arXiv 2106.05974.
    """

    b1: nn.Parameter
    b2: nn.Parameter

    def __init__(
        self,
        router: TaskGates | ConditionedGate,
        dim: int,
        hidden_dim: int,
        num_experts: int,
        top_k: int,
        *,
        noise_std: float = 0.0,
        balance_weight: float = 0.0,
    ):
        super().__init__(router, dim, hidden_dim, num_experts, top_k, gated=False)
        if not (noise_std >= 0 and balance_weight >= 0):
            raise ValueError(f"noise_std and balance_weight must not be negative, got {noise_std} and {balance_weight}")
        self.noise_std, self.balance_weight = noise_std, balance_weight

    def init_weights(self) -> None:
        """The authors': routers uniform within E^-1/2, expert matrices within (D F)^-1/2 (torch's rule for the fan-in
        of three dimensions), biases 0."""
        super().init_weights()
        for weight in self.router.parameters():
            nn.init.uniform_(weight, -(self.num_experts**-0.5), self.num_experts**-0.5)
        for weight in (self.w1, self.w2):
            bound = weight[0].numel() ** -0.5
            nn.init.uniform_(weight, -bound, bound)

    def route(self, tokens: Tensor, task: int | Tensor) -> Routing:
        """The experts of each of the tokens (M, D), with their weights."""
        logits = self.router(tokens, task)  # (M, E)
        if self.training and self.noise_std:
            logits = logits + torch.randn_like(logits) * (self.noise_std / self.num_experts)
        return top_k_routing(logits, self.top_k)

    def forward(self, x: Tensor, task: int | Tensor) -> Tensor:
        """x (..., D) -> (..., D); ``task`` is what the router takes: a number or an embedding."""
        tokens = x.flatten(0, -2)
        routing = self.route(tokens, task)
        y = self.visit(tokens, routing).output
        counts = self.measure(routing)["tokens_per_expert"]
        losses = {}
        if self.training and self.balance_weight:
            flat = routing.experts.flatten()
            importance = routing.weights.new_zeros(self.num_experts).scatter_add(0, flat, routing.weights.flatten())
            variation = squared_variation(importance) + squared_variation(counts.to(importance.dtype))
            losses["load_balance"] = self.balance_weight * variation
        self.report(losses, {"tokens_per_expert": counts, "experts_read": (counts > 0).sum()})
        return y.view(x.shape)


def squared_variation(x: Tensor) -> Tensor:
    """var(x) / mean(x)², the unbiased variance over the squared mean; 0 for a single number."""
    return x.var(correction=min(1, len(x) - 1)) / (x.mean().square() + 1e-10)
