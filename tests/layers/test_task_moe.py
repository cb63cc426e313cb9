"""Task-routed experts: the formula, the order of Edge-MoE and what it fetches, side losses, noise."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from zoo.kernels.moe import grouped
from zoo.layers.moe import (
    ConditionedGate,
    ExpertMemory,
    TaskEmbedding,
    TaskGates,
    TaskMoE,
    expert_by_expert,
    expert_reads,
    token_by_token,
)

close = partial(torch.testing.assert_close, atol=1e-12, rtol=1e-12)


def layer(conditioned: bool = False, **options: Any) -> tuple[TaskMoE, list[Any]]:
    """A layer for two tasks whose biases are not zero, and what tells it either task."""
    torch.manual_seed(0)
    router = ConditionedGate(12, 6, 5) if conditioned else TaskGates(12, 6, 2)
    experts = TaskMoE(router, 12, 10, 6, 2, **options).double()
    for bias in (experts.b1, experts.b2):
        torch.nn.init.normal_(bias)
    embed = TaskEmbedding(2, 5).double()
    return experts, [embed(0).detach(), embed(1).detach()] if conditioned else [0, 1]


def tokens(number: int = 30) -> torch.Tensor:
    return torch.randn(number, 12, dtype=torch.float64)


@pytest.mark.parametrize("conditioned", [False, True])
def test_orders_agree_and_read_what_is_counted(conditioned):
    experts, tasks = layer(conditioned)
    x = tokens()
    with torch.no_grad():
        outputs = []
        for task in tasks:
            routing, slow, fast = experts.route(x, task), ExpertMemory(experts), ExpertMemory(experts)
            plain = token_by_token(x, routing, slow)
            close(expert_by_expert(x, routing, fast), plain)
            close(experts(x, task), plain)
            used = int(experts.activity["experts_read"])
            assert (slow.reads, fast.reads) == expert_reads(routing.experts) == (30 * 2, used)
            expert_bytes = 8 * (12 * 10 + 10 + 10 * 12 + 12)
            assert (slow.num_bytes, fast.num_bytes) == (60 * expert_bytes, used * expert_bytes)
            outputs.append(plain)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


def test_only_experts_in_use_are_read():
    """Here for 2 of the 6: two tokens that agree."""
    experts, _ = layer()
    x = tokens(1).expand(2, -1).contiguous()
    routing, memory = experts.route(x, 0), ExpertMemory(experts)
    expert_by_expert(x, routing, memory)
    assert memory.reads == 2 and expert_reads(routing.experts) == (4, 2)


def test_the_layer_itself_multiplies_by_each_expert_in_use_once(monkeypatch):
    experts, _ = layer()
    factors: list[int] = []
    mm = torch.mm

    def counted(a, b, **options):
        factors.append(b.data_ptr())
        return mm(a, b, **options)

    monkeypatch.setattr(grouped.torch, "mm", counted)
    with torch.no_grad():
        experts(tokens(2), 0)
    used = int(experts.activity["experts_read"])
    assert used < 6 and len(factors) == len(set(factors)) == 2 * used


def test_weights_are_probabilities_that_are_not_normalised():
    experts, _ = layer()
    x = tokens()
    probability, chosen = (x @ experts.router.gates[1].weight.T).softmax(-1).topk(2)
    hidden = F.gelu(torch.einsum("md,mkdf->mkf", x, experts.w1[chosen]) + experts.b1[chosen])
    rows = torch.einsum("mkf,mkfd->mkd", hidden, experts.w2[chosen]) + experts.b2[chosen]
    close(experts(x, 1), (probability[..., None] * rows).sum(1))
    counts = torch.bincount(chosen.flatten(), minlength=6)
    assert torch.equal(experts.activity["tokens_per_expert"], counts)
    assert probability.sum(-1).max() < 1


def test_conditioned_gate_reads_token_and_task():
    experts, (task, _) = layer(conditioned=True)
    x = tokens()
    both = torch.cat([x, task.expand(30, -1)], dim=1)
    close(experts.router(x, task), both @ experts.router.gate.weight.T)


def test_balance_loss_is_published_in_training_only():
    experts, _ = layer(balance_weight=0.5)
    x = tokens()
    experts(x, 0)
    probability, chosen = experts.router(x, 0).softmax(-1).topk(2)
    gates = torch.zeros(30, 6, dtype=torch.float64).scatter(1, chosen, probability)
    importance, load = gates.sum(0), (gates > 0).double().sum(0)
    expected = sum(v.var() / v.mean() ** 2 for v in (importance, load))
    torch.testing.assert_close(experts.auxiliary_losses["load_balance"], 0.5 * expected)
    experts.eval()(x, 0)
    assert experts.auxiliary_losses == {}
    unweighted, _ = layer()
    unweighted(x, 0)
    assert unweighted.auxiliary_losses == {}


def test_noise_is_of_the_logits_and_in_training_only():
    experts, _ = layer(noise_std=3.0)
    x = tokens(4000)
    noisy, clean = experts.route(x, 0).scores.log(), experts.eval().route(x, 0).scores.log()
    noise = noisy - clean
    spread = (noise - noise.mean(-1, keepdim=True)).square().sum() / (4000 * 5)
    assert abs(spread.sqrt() - 3 / 6) < 0.01
    close(experts.route(x, 0).scores.log(), clean)


def test_autocast_computes_experts_in_low_precision_and_routes_in_float32():
    experts, _ = layer()
    experts, x = experts.float(), tokens().float()
    clean = experts(x, 0)
    counts = experts.activity["tokens_per_expert"]
    with torch.autocast("cpu", torch.bfloat16):
        low = experts(x, 0)
    assert low.dtype == torch.bfloat16 and torch.equal(experts.activity["tokens_per_expert"], counts)
    torch.testing.assert_close(low.float(), clean, atol=0.05, rtol=0.05)


def test_sizes_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match=r"top_k must lie in \[1, num_experts\]: got top_k 7, num_experts 6"):
        TaskMoE(TaskGates(12, 6, 2), 12, 10, 6, 7)
    with pytest.raises(ValueError, match="must not be negative, got -1 and"):
        layer(noise_std=-1)
