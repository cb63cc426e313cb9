"""Adapters of models with zeros: no zero is lost by PERP, PST's scores and masks by hand; files and merging."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from adapt.test_contract import built, inputs, plain, trained
from torch import nn

import zoo
from zoo.adapt import adapters_of, own_names
from zoo.layers.adapt import placed
from zoo.layers.adapt.sparse import MaskedLoRA, StructuredScores
from zoo.layers.sparse.masks import masks

PRUNED = {"kind": "pruned", "ratio": 0.6}


def pruned(name: str = "transformer_nano", **options: Any) -> Any:
    return built(name, changes=[PRUNED], **options)


@pytest.mark.parametrize(("name", "rank"), [("transformer_nano", 3), ("vit_nano", 2), ("vovnet_nano", 0)])
def test_perp_keeps_every_zero(name, rank, tmp_path):
    """Untrained it is the pruned model; what else learns are biases and norms; merging is exact and has the masks."""
    model = pruned(name)
    x, expected = inputs(model), model(inputs(model))
    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    held = {key: mask.mask.clone() for key, mask in masks(model).items()}
    zoo.adapt(model, "perp", rank=rank)
    assert torch.equal(model(x), expected)
    trained(model)
    learns = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert learns <= set(own_names(model)) and any("norm" in key or key.endswith("bias") for key in learns)
    assert bool([key for key in learns if key.endswith((".A", ".B"))]) is bool(rank)
    assert all(torch.equal(tensor, start[key]) for key, tensor in plain(model).items())
    found = model(x)
    assert not torch.allclose(found, expected)

    zoo.save_adapter(model, tmp_path)
    again = pruned(name, adapter=tmp_path)
    assert torch.equal(again(x), found) and adapters_of(again) == adapters_of(model)
    merged = zoo.merge_adapter(copy.deepcopy(model))
    assert torch.equal(merged(x), found) and merged.state_dict().keys() == start.keys()
    assert all(torch.equal(mask.mask, held[key]) for key, mask in masks(merged).items())
    settled = zoo.settle(merged)
    assert torch.equal(settled(x), found)
    assert all(torch.equal(settled.get_parameter(key) != 0, mask) for key, mask in held.items())


def test_a_masked_product_by_hand():
    model = pruned()
    zoo.adapt(model, "perp", rank=2, alpha=6.0, targets=["blocks.0.mixer.q_proj"])
    layer = model.blocks[0].mixer.q_proj
    assert isinstance(layer, MaskedLoRA)
    nn.init.normal_(layer.B)
    weight, mask = layer.base_layer.parametrizations.weight.original, masks(model)[
        "blocks.0.mixer.q_proj.base_layer.weight"
    ].mask  # fmt: skip
    x = torch.randn(5, layer.in_features, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ ((weight + 3 * layer.B @ layer.A) * mask).mT)
    torch.testing.assert_close(layer.plain()(x), layer(x), rtol=0, atol=0)
    dy = torch.randn(5, layer.out_features, dtype=torch.float64)
    layer(x.requires_grad_()).backward(dy)
    A, B, again = (t.detach().clone().requires_grad_() for t in (layer.A, layer.B, x))
    (again @ ((weight.detach() + 3 * B @ A) * mask).mT).backward(dy)
    for found, expected in ((layer.A, A), (layer.B, B), (x, again)):
        torch.testing.assert_close(found.grad, expected.grad)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.float()(x.detach().float()).dtype == torch.bfloat16


def scores(**options: Any) -> StructuredScores:
    torch.manual_seed(0)
    layer = nn.Linear(7, 5, dtype=torch.float64).requires_grad_(False)
    given = {"rank": 2, "score_rank": 3, "ratio": 0.6, "steps": 10, "beta": 1.0, "alpha": 1.0} | options
    return StructuredScores(layer, **given)


def test_scores_are_magnitudes_at_first_and_their_rank_is_bounded():
    layer = scores()
    assert torch.equal(layer.score(layer.weight), layer.weight.abs())
    for part in (layer.B, layer.R, layer.C):
        nn.init.normal_(part)
    learnt = layer.score(layer.weight) - layer.weight.abs()
    assert torch.linalg.matrix_rank(learnt) == 5 == min(5, 3 + 2)
    wide = StructuredScores(nn.Linear(40, 30, dtype=torch.float64), 8, 3, 0.5, 10, 1.0, 0.5)
    for part in (wide.B, wide.R, wide.C):
        nn.init.normal_(part)
    assert torch.linalg.matrix_rank(wide.score(wide.weight) - wide.weight.abs()) == 3 + 2
    torch.testing.assert_close(wide.score(wide.weight)[2, 1], wide.weight[2, 1].abs() + 0.5 * (
        wide.A[2] @ wide.B[:, 1] + wide.R[2, 0] + wide.C[0, 1]
    ))  # fmt: skip


def test_zeros_come_by_a_cubic_and_are_those_of_the_least_scores():
    layer, seen = scores(), []
    for _ in range(12):
        seen.append(layer.sparsity)
        layer.after_step()
        count = int(layer.mask.sum())
        assert count == round(35 * (1 - layer.sparsity))
        order = layer.score(layer.weight).flatten().argsort(descending=True)
        assert layer.mask.flatten()[order[:count]].all()
    expected = [0, 0, *(0.6 * (1 - (1 - k / 6) ** 3) for k in range(1, 6)), *[0.6] * 5]
    assert seen == pytest.approx(expected)
    assert torch.equal(layer.plain().weight != 0, layer.mask)


def test_the_gradient_of_a_mask_goes_straight_through():
    """As of W' M and, for the scores, of G W' alone."""
    layer = scores()
    for part in (layer.B, layer.V, layer.R, layer.C):
        nn.init.normal_(part, std=0.1)
    for _ in range(8):
        layer.after_step()
    x, dy = torch.randn(4, 7, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    y = layer(x)
    with torch.no_grad():
        assert torch.equal(layer(x), y) and torch.equal(layer.plain()(x), y)
    y.backward(dy)
    w = (layer.weight + layer.U @ layer.V).detach()
    of_score = dy.mT @ x * w
    of_weight = dy.mT @ x * layer.mask + of_score * w.sign()
    torch.testing.assert_close(layer.R.grad, of_score.sum(1, keepdim=True))
    torch.testing.assert_close(layer.C.grad, of_score.sum(0, keepdim=True))
    torch.testing.assert_close(layer.B.grad, layer.A.detach().mT @ of_score)
    torch.testing.assert_close(layer.V.grad, layer.U.detach().mT @ of_weight)
    assert layer.weight.grad is None


def test_pst_makes_zeros_in_a_plain_model(tmp_path):
    """The contract's steps with the masks moving; the adapter's file has them."""
    model = zoo.adapt(built("transformer_nano"), "pst", ratio=0.8, steps=4, rank=2)
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, x = torch.optim.AdamW(learns, lr=1e-2), inputs(model)
    for _ in range(5):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        zoo.after_step(model)
    found = model(x)
    zoo.save_adapter(model, tmp_path)
    assert torch.equal(built("transformer_nano", adapter=tmp_path)(x), found)
    held = {name: layer.mask for name, layer in placed(model).items()}
    merged = zoo.merge_adapter(model)
    assert torch.equal(merged(x), found)
    for name, mask in held.items():
        assert torch.equal(merged.get_submodule(name).weight != 0, mask)
        assert int(mask.sum()) == round(0.2 * mask.numel())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: zoo.adapt(built("transformer_nano"), "perp"),
            r'zoo\.mask_weights\(model, "pruned"\) first, or --sparsi',
        ),
        (lambda: zoo.adapt(pruned(), "perp", rank=-1), "perp: rank must not be negative, got -1"),
        (lambda: zoo.adapt(pruned(), "pst"), "is masked, rounded or noisy, and pst takes plain weights"),
        (lambda: zoo.adapt(built("transformer_nano"), "pst", ratio=1.0), r"sparsity must lie in \[0, 1\)"),
        (lambda: zoo.adapt(built("transformer_nano"), "pst", steps=0), "steps must be at least 1, got 0"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
