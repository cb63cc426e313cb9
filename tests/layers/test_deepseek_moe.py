"""DeepSeekMoE: the papers' routing by its definition, the bias that balances the load, the loss that does."""

from __future__ import annotations

import torch
from torch import Tensor

import zoo
from zoo.layers.moe.deepseek import DeepSeekMoE


def close(a: Tensor, b: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def experts(**options) -> DeepSeekMoE:
    torch.manual_seed(0)
    defaults = {"num_groups": 4, "top_groups": 2, "scale": 2.5}
    return DeepSeekMoE(16, 8, 16, 4, **defaults | options).double()


def by_definition(layer: DeepSeekMoE, x: Tensor) -> Tensor:
    """One token and expert after the other (V3, equations 12 to 15)."""
    y = torch.zeros_like(x)
    for m, token in enumerate(x):
        s = (layer.router.weight @ token).sigmoid()
        biased = s if layer.selection_bias is None else s + layer.selection_bias
        groups = biased.view(4, 4).topk(2).values.sum(-1).topk(2).indices.tolist()
        allowed = [e for e in range(16) if e // 4 in groups]
        chosen = sorted(allowed, key=lambda e: -biased[e].item())[:4]
        for e in chosen:
            weight = 2.5 * s[e] / s[chosen].sum()
            hidden = torch.nn.functional.silu(token @ layer.w1[e]) * (token @ layer.w3[e])
            y[m] += weight * (hidden @ layer.w2[e])
        y[m] += layer.get_submodule("shared")(token)
    return y


def test_experts_are_routed_by_the_papers_definition():
    layer, x = experts(), torch.randn(2, 15, 16, dtype=torch.float64)
    layer.selection_bias += 0.3 * torch.randn(16)
    layer.eval()
    close(layer(x).flatten(0, 1), by_definition(layer, x.flatten(0, 1)), 1e-10)
    assert layer.activity["tokens_per_expert"].sum() == 2 * 15 * 4
    mask = torch.rand(2, 15) < 0.5
    y, masked = layer(x), layer(x, mask)
    close(masked[mask], y[mask], 1e-12)
    assert not masked[~mask].any()
    assert layer.activity["tokens_per_expert"].sum() == mask.sum() * 4
    layer.selection_bias += 7.0  # the same to all: no other choice, and no other weight
    close(layer(x), y, 1e-12)


def test_bias_moves_once_a_step_by_the_sign_of_the_missing_load():
    layer = experts(bias_speed=0.01)
    x = torch.randn(2, 32, 16, dtype=torch.float64)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)

    def micro_batch(x: Tensor) -> Tensor:
        layer(x).square().mean().backward()
        return layer.activity["tokens_per_expert"]

    loads = micro_batch(x) + micro_batch(2 * x + 1)
    assert not layer.selection_bias.any()
    optimizer.step()
    layer.eval()(x)
    assert not layer.selection_bias.any()
    zoo.after_step(layer)
    expected = 0.01 * (loads.double().mean() - loads).sign()
    close(layer.selection_bias.double(), expected, 1e-7)
    assert expected.any() and layer.train()(x).requires_grad
    close(layer.selection_bias.double(), expected, 1e-7)
    zoo.after_step(layer.requires_grad_(False))  # the load of one pass, whatever the weights did
    assert not torch.equal(layer.selection_bias.double(), expected)


def test_bias_balances_a_skewed_router_without_a_loss():
    layer = experts(bias_speed=0.02, num_groups=1, top_groups=1)
    x = torch.randn(1, 256, 16, dtype=torch.float64) + torch.randn(16, dtype=torch.float64)
    layer(x)
    before = layer.activity["utilisation"]
    for _ in range(100):
        zoo.after_step(layer)
        layer(x)
    assert zoo.auxiliary_losses(layer) == {}
    load = layer.activity["tokens_per_expert"]
    assert before < 0.8 and layer.activity["utilisation"] > 0.98
    assert load.max() < 1.3 * 64


def test_balance_loss_is_of_each_sequence():
    layer = experts(balance_weight=0.1, bias_speed=None, score="softmax", normalize=False)
    x = torch.randn(3, 20, 16, dtype=torch.float64)
    layer(x)
    shares = (x @ layer.router.weight.T).softmax(-1)
    expected = 0.0
    for b in range(3):
        layer.eval()(x[b : b + 1])
        frequency = layer.activity["tokens_per_expert"].double() * 16 / (4 * 20)
        expected += 0.1 * (frequency * shares[b].mean(0)).sum() / 3
    layer.train()(x)
    close(layer.auxiliary_losses["load_balance"], expected, 1e-10)


def test_balance_loss_of_v3_counts_the_best_scores_whatever_bias_and_groups_choose():
    """V3, equations 17 to 20, one sequence, expert and token after the other."""
    layer = experts(balance_weight=1.0)
    layer.selection_bias += 0.3 * torch.randn(16)
    x = torch.randn(2, 20, 16, dtype=torch.float64)
    layer(x)
    expected = 0.0
    for sequence in x:
        scores = (sequence @ layer.router.weight.T).sigmoid()
        for e in range(16):
            chosen = sum(e in row.argsort(descending=True)[:4].tolist() for row in scores)
            probability = sum(row[e] / row.sum() for row in scores) / 20
            expected += chosen * 16 / (4 * 20) * probability / 2
    close(layer.auxiliary_losses["load_balance"], expected, 1e-10)


def test_load_is_that_of_all_processes(monkeypatch):
    layer = experts(bias_speed=0.01)
    layer(torch.randn(1, 8, 16, dtype=torch.float64))
    other = torch.arange(16) * 100  # tokens of another process
    load = layer.load + other
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.add_(other))
    zoo.after_step(layer)
    close(layer.selection_bias.double(), 0.01 * (load.double().mean() - load).sign(), 1e-7)
    assert not layer.load.any()
