"""Routed hidden dimensions: the equations token by token, what a token computes, the dense limit, activity."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.kernels.flops import flop_counter
from zoo.layers import SwiGLU
from zoo.layers.lowrank import Monarch
from zoo.layers.moe import SubDimensionExperts, SubDimensionMLP, SubDimensionRouter

close = partial(torch.testing.assert_close, atol=1e-10, rtol=1e-10)
DIM, INNER, GROUPS, ACTIVE, SHARED = 24, 32, 8, 5, 3
WIDTH = DIM // GROUPS


def hidden(active: int = ACTIVE, shared: int = SHARED, **options: Any) -> SubDimensionMLP:
    made = SubDimensionMLP(DIM, INNER, SubDimensionRouter(DIM, GROUPS, active, shared, **options)).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.4)
    return made


def whole(layer: Any, out: bool) -> Tensor:
    """The matrix (F, D) into, or (D, F) out of, all groups."""
    others = layer.others.permute(0, 2, 1).flatten(0, 1) if out else layer.others.flatten(0, 1).T
    return torch.cat([layer.shared.weight, others], dim=0 if out else 1)


def gates(scores: Tensor) -> Tensor:
    """alpha g (N,) of a token's scores (N,)."""
    best = scores[SHARED:].topk(ACTIVE - SHARED).indices + SHARED
    kept = torch.zeros_like(scores)
    kept[:SHARED] = scores[:SHARED]
    kept[best] = scores[best]
    return len(scores) * kept.sum() * kept


def fused(y: Tensor, monarch: Any) -> Tensor:
    """(D,) by loops over the two block-diagonal matrices."""
    within = torch.block_diag(*(block.T for block in monarch.within.weight))
    across = torch.block_diag(*(block.T for block in monarch.across.weight))
    order = torch.arange(DIM).view(GROUPS, WIDTH).T.flatten()
    permutation = torch.eye(DIM, dtype=y.dtype)[order]
    return permutation.T @ across @ permutation @ within @ y


def test_equals_the_equations_token_by_token():
    """Full matrices of which a mask leaves the groups in use."""
    made, x = hidden(), torch.randn(2, 7, DIM, dtype=torch.float64)
    into, out, rows = whole(made.w13, out=False), whole(made.w2, out=True), []
    for token in x.flatten(0, 1):
        weight = gates((made.router.centroids @ token).softmax(0)).repeat_interleave(WIDTH)
        gate, up = (into @ (weight * token)).chunk(2)
        rows.append(fused((out @ (F.silu(gate) * up)) * (weight > 0), made.fusion))
    expected = torch.stack(rows).view_as(x)
    close(made(x), expected)
    parameters = list(made.parameters())
    for ours, theirs in zip(
        *(torch.autograd.grad(y.square().sum(), parameters) for y in (made(x), expected)), strict=True
    ):
        close(ours, theirs)


def test_inner_placement_equals_the_equations():
    made, x = SubDimensionExperts(DIM, INNER, GROUPS, ACTIVE, SHARED).double(), torch.randn(9, DIM, dtype=torch.float64)
    nn.init.normal_(made.router.weight)
    rows = []
    for token in x:
        weights, row = gates((made.router.weight @ token).softmax(0)), torch.zeros_like(token)
        for weight, w1, w3, w2 in zip(weights, made.w1, made.w3, made.w2, strict=True):
            row = row + weight * ((F.silu(token @ w1) * (token @ w3)) @ w2)
        rows.append(row)
    close(made(x), torch.stack(rows))


@pytest.mark.parametrize("placement", ["hidden", "inner"])
def test_all_groups_and_a_uniform_router_are_the_dense_layer(placement):
    """The fusion starts as the identity."""
    x, dense = torch.randn(5, DIM, dtype=torch.float64), SwiGLU(DIM, INNER).double()
    if placement == "hidden":
        made: Any = SubDimensionMLP(DIM, INNER, SubDimensionRouter(DIM, GROUPS, GROUPS, SHARED)).double()
        nn.init.zeros_(made.router.centroids)
        dense.w1.weight.data, dense.w3.weight.data = whole(made.w13, out=False).chunk(2)
        dense.w2.weight.data = whole(made.w2, out=True)
    else:
        made = SubDimensionExperts(DIM, INNER, GROUPS, GROUPS, SHARED).double()
        nn.init.zeros_(made.router.weight)
        for name in ("w1", "w3"):
            getattr(dense, name).weight.data = getattr(made, name).detach().mT.flatten(0, 1)
        dense.w2.weight.data = made.w2.detach().flatten(0, 1).T
    close(made(x), dense(x))


def test_what_a_token_leaves_out_changes_nothing_and_learns_nothing():
    made, x = hidden(), torch.randn(1, DIM, dtype=torch.float64)
    chosen = made.router(x).chosen[0].tolist()
    idle = [e for e in range(GROUPS - SHARED) if e not in chosen]
    before = made(x)
    gradients = torch.autograd.grad(before.square().sum(), [made.w13.others, made.w2.others, made.router.centroids])
    assert all(not g[idle].any() and g[chosen].any() for g in gradients[:2]) and gradients[2].any()
    with torch.no_grad():
        made.w13.others[idle] += 1
        made.w2.others[idle] += 1
    assert torch.equal(made(x), before)


def test_computes_the_share_of_the_groups_in_use():
    """Counted products: those of the dense layer times the share, and those of router and fusion."""
    x, counts = torch.randn(64, DIM, dtype=torch.float64), {}
    for active in (4, 8):
        with flop_counter(display=False) as counter:
            hidden(active)(x)
        counts[active] = counter.get_total_flops()
    small = 2 * 64 * (DIM * GROUPS + DIM * (WIDTH + GROUPS))
    assert {a: n - small for a, n in counts.items()} == {a: 2 * 64 * 3 * DIM * INNER * a // 8 for a in counts}


def test_a_monarch_mixes_everything_from_the_identity():
    monarch, x = Monarch(12, 4).double(), torch.randn(3, 12, dtype=torch.float64)
    assert torch.equal(monarch(x), x)
    for parameter in monarch.parameters():
        nn.init.normal_(parameter)
    assert (torch.autograd.functional.jacobian(monarch, x[0]) != 0).all()
    assert sum(p.numel() for p in monarch.parameters()) == 12 * (3 + 4)


def test_activity_and_losses_leave_padding_out():
    model: Any = zoo.create_model("mohd_nano")
    tokens, seq_idx = torch.randint(0, 256, (2, 20)), torch.zeros(2, 20, dtype=torch.int64)
    seq_idx[0, :5] = -1
    model(tokens, seq_idx=seq_idx)
    measures = zoo.activity(model)
    for layer in ("mixer", "mlp"):
        counts = measures[f"blocks.1.{layer}.router.tokens_per_group"]
        assert counts[:3].tolist() == [35] * 3 and counts[3:].sum() == 35
        assert measures[f"blocks.1.{layer}.router.share"] == 0.5
    loss = zoo.auxiliary_losses(model)["load_balance"]
    model(torch.where(seq_idx < 0, 7, tokens), seq_idx=seq_idx)
    assert torch.equal(loss, zoo.auxiliary_losses(model)["load_balance"])
    model.eval()(tokens)
    assert not zoo.auxiliary_losses(model)


def test_active_parameters_are_those_a_token_uses():
    c: Any = zoo.registry.lookup("mohd_355m").configure()
    model = zoo.create_model("mohd_355m", device="meta")
    dense = c.depth * (4 * c.dim**2 + 3 * c.dim * c.mlp_dim)
    assert zoo.model_info("mohd_355m").num_parameters - model.num_active_parameters() == dense // 2
    inner = zoo.create_model("mohd_355m", placement="inner", device="meta")
    idle = sum(p.numel() for p in inner.parameters()) - inner.num_active_parameters()
    assert idle == c.depth * 3 * c.dim * c.mlp_dim // 2


def test_published_totals_are_those_of_the_dense_models():
    """The paper names its sizes by LLaMA's parameters: 355 M, 495 M and 1.13 B."""
    for name, total in (("mohd_355m", 355e6), ("mohd_495m", 495e6), ("mohd_1_13b", 1.13e9)):
        c: Any = zoo.registry.lookup(name).configure()
        extra = c.depth * 2 * (c.dim * 16 + c.dim * (c.dim // 16 + 16))
        assert math.isclose(zoo.model_info(name).num_parameters - extra, total, rel_tol=5e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_groups": 7}, "num_groups must divide dim, got dim 96, num_groups 7"),
        (
            {"active_groups": 3},
            "shared groups must be at least one and fewer than the active ones.*3 shared, 3 active of 8",
        ),
        ({"active_groups": 9}, "those at most all, got 3 shared, 9 active of 8"),
        (
            {"placement": "inner", "num_groups": 5, "active_groups": 4},
            "must divide the inner channels, got 256",
        ),
        ({"placement": "outer"}, r"placement must be one of \('hidden', 'inner'\), got 'outer'"),
    ],
)
def test_wrong_options_say_the_rule(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model("mohd_nano", **options)
