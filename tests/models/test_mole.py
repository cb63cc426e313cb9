"""Latent experts: a loop over tokens, what a conversion loses, sizes, saving."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.kernels.moe import Latent, grouped_matmul, moe, top_k_routing
from zoo.layers.moe import LatentMatrix, MoE

close = partial(torch.testing.assert_close, atol=1e-10, rtol=1e-10)
FAMILIES = {"moe": {}, "deepseek": {}, "smallthinker": {}, "gpt_oss": {}, "m3vit": {}, "qwen3": {}}
QWEN3 = {"qk_norm": "head", "normalize": True, "num_experts": 6, "top_k": 3, "head_dim": 24}


def layer(experts: int = 6, top_k: int = 3, **options: Any) -> MoE:
    return MoE(12, 5, experts, top_k, **options).double()


def latent(groups: int, out_rank: int | None = None, bias: bool = False) -> MoE:
    made = layer(bias=bias)
    made.replace_matrices(made.latent_matrices(4, 6 // groups, out_rank))
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def by_token(x: Tensor, made: Any) -> Tensor:
    """The equation of the paper, an assignment at a time, x (M, D)."""
    routing = top_k_routing(made.router(x), made.top_k, normalize=True)
    rows = []
    for token, weights, experts in zip(x, routing.weights, routing.experts.tolist(), strict=True):
        row = torch.zeros_like(token)
        for weight, e in zip(weights, experts, strict=True):
            g = e // (made.num_experts // len(made.w1.shared))
            gate, up = (token @ w.shared[g] @ w.each[e] for w in (made.w1, made.w3))
            if made.b1 is not None:
                gate, up = gate + made.b1[e], up + made.b3[e]
            hidden = F.silu(gate) * up
            out = hidden @ made.w2[e] if isinstance(made.w2, Tensor) else hidden @ made.w2.each[e] @ made.w2.shared[g]
            row = row + weight * (out if made.b2 is None else out + made.b2[e])
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("groups", "out_rank", "bias"), [(1, None, False), (2, 4, True), (3, None, True), (6, 2, False)]
)
def test_equals_a_loop_over_tokens(groups, out_rank, bias):
    made, x = latent(groups, out_rank, bias), torch.randn(2, 9, 12, dtype=torch.float64)
    mask = torch.rand(2, 9) > 0.3
    expected = by_token(x.flatten(0, 1), made).view_as(x)
    close(made(x), expected)
    close(made(x, mask), expected * mask[..., None])
    with torch.no_grad():
        close(made(x[:1, :1]), expected[:1, :1])
    parameters = list(made.parameters())
    given = [torch.autograd.grad(y.square().sum(), parameters) for y in (made(x), by_token(x.flatten(0, 1), made))]
    for ours, theirs in zip(*given, strict=True):
        close(ours, theirs)


def test_a_groups_projection_is_computed_once_a_token(monkeypatch):
    """Rows that are multiplied by the shared matrices: one for each group among a token's experts."""
    made, x = latent(groups=2), torch.randn(1, 20, 12, dtype=torch.float64)
    routing = top_k_routing(made.router(x[0]), 3)
    distinct = sum(len(set(row)) for row in (routing.experts // 3).tolist())
    counts = []

    def counted(rows: Tensor, weight: Tensor, offsets: Tensor, **options: Any) -> Tensor:
        counts.append(int(offsets[-1]))
        return grouped_matmul(rows, weight, offsets, **options)

    monkeypatch.setattr(sys.modules["zoo.kernels.moe.latent"], "grouped_matmul", counted)
    made(x)
    assert counts == [distinct, distinct] and 20 < distinct < 40


def converted(family: str, **options: Any) -> tuple[Any, Any]:
    """A nano in float64, and itself with latent experts."""
    name, given = ("moe_nano", QWEN3) if family == "qwen3" else (f"{family}_nano", {})
    made: Any = [zoo.create_model(name, dtype=torch.float64, **given).eval() for _ in range(2)]
    made[1].load_state_dict(made[0].state_dict())
    return made[0], zoo.latent_experts(made[1], **options)


def run(model: Any) -> Tensor:
    torch.manual_seed(1)
    if hasattr(model.config, "vocab_size"):
        return model(torch.randint(0, model.config.vocab_size, (2, 20)))
    dtype = next(model.parameters()).dtype
    return model(torch.rand(1, model.config.in_chans, *model.config.image_shape, dtype=dtype))


@pytest.mark.parametrize("family", FAMILIES)
def test_conversion_loses_the_discarded_singular_values(family):
    model, changed = converted(family, rank=7, group_size=2, out_rank=5)
    layers = [[m for m in found.modules() if hasattr(m, "expert_parameters")] for found in (model, changed)]
    assert layers[0]
    for before, after in zip(*layers, strict=True):
        for name in ("w1", "w3", "w2"):
            if getattr(before, name) is None:
                continue
            source, matrix = getattr(before, name).detach(), getattr(after, name)
            stacks = (source if name == "w2" else source.mT).unflatten(0, (-1, 2)).flatten(1, 2)  # (G, 2 F, D)
            lost = torch.linalg.svdvals(stacks)[:, matrix.rank :].square().sum()
            close((matrix.product() - source).square().sum(), lost)
        assert torch.equal(*(torch.cat([p.flatten() for p in m.router.parameters()]) for m in (before, after)))


@pytest.mark.parametrize("family", FAMILIES)
def test_full_rank_changes_nothing(family):
    made: Any = zoo.create_model("moe_nano" if family == "qwen3" else f"{family}_nano", device="meta")
    found = next(m for m in made.modules() if hasattr(m, "expert_parameters"))
    full = min(found.w1.shape[1], 2 * found.w1.shape[2])
    model, changed = converted(family, rank=full, group_size=2, out_rank=full)
    torch.testing.assert_close(run(changed), run(model), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("family", ["deepseek", "m3vit"])
def test_saved_and_reloaded_like_any_model(family, tmp_path):
    model = zoo.latent_experts(zoo.create_model(f"{family}_nano"), 6, out_rank=5).eval()
    zoo.save_model(model, tmp_path)
    again: Any = zoo.create_model(f"local-dir:{tmp_path}").eval()
    assert torch.equal(run(again), run(model))
    assert zoo.model_info(f"local-dir:{tmp_path}").num_parameters == sum(p.numel() for p in model.parameters())


def test_ranks_and_equal_experts():
    """What is lost falls with the rank; equal experts need no more than one of them; a cut of each comes first."""
    matrices, lost = torch.randn(4, 9, 5, dtype=torch.float64), []
    for rank in range(1, 10):
        made = LatentMatrix(4, 1, 9, 5, rank).double()
        made.solve(matrices)
        lost.append((made.product() - matrices).norm().item())
    assert lost == sorted(lost, reverse=True) and lost[-1] < 1e-12 < lost[-2]
    made = LatentMatrix(4, 2, 9, 5, 5).double()
    made.solve(matrices[:1].expand(4, -1, -1))
    close(made.product(), matrices[:1].expand(4, -1, -1))
    made = LatentMatrix(4, 1, 9, 5, 9).double()
    made.solve(matrices, expert_rank=2)
    values = torch.linalg.svdvals(made.product())
    close(values[:, :2], torch.linalg.svdvals(matrices)[:, :2])
    assert values[:, 2:].max() < 1e-12


def test_sizes():
    """A group of the sheet's size, and the registered ones beside what they are made of."""
    with torch.device("meta"):
        made = MoE(2048, 1408, 8)
        before = sum(p.numel() for p in made.expert_parameters())
        made.replace_matrices(made.latent_matrices(1408))
    assert (before, sum(p.numel() for p in made.parameters()) - 8 * 2048) == (69_206_016, 60_555_264)
    assert made.num_idle_parameters == 6 * (2 * 1408 * 1408 + 1408 * 2048)
    for name, depth, dim, inner, groups in (
        ("olmoe_1b_7b", 16, 2048, 1024, 8), ("qwen3_30b_a3b", 48, 2048, 768, 16),
    ):  # fmt: skip
        saved = 2 * depth * groups * inner * (8 * dim - dim - 8 * inner)
        assert zoo.model_info(name).num_parameters - zoo.model_info(f"mole_{name}").num_parameters == saved
    model = zoo.latent_experts(zoo.create_model("olmoe_1b_7b", device="meta"), 1024, 8).state_dict()
    kept = zoo.create_model("mole_olmoe_1b_7b", device="meta").state_dict()
    assert {key: value.shape for key, value in model.items()} == {key: value.shape for key, value in kept.items()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"rank must lie in \[1, 128\], which loses nothing, got 0"),
        ({"rank": 4, "group_size": 3}, "group_size must divide the experts, got 3 for 4 experts"),
        ({"rank": 4, "out_rank": 500}, r"rank must lie in \[1, 128\].*got 500"),
    ],
)
def test_wrong_options_say_the_rule_and_change_nothing(options, message):
    model = zoo.create_model("moe_nano")
    with pytest.raises(ValueError, match=message):
        zoo.latent_experts(model, **options)
    assert isinstance(model.blocks[0].mlp.w1, nn.Parameter)
    with pytest.raises(ValueError, match="TransformerLanguageModel has none"):
        zoo.latent_experts(zoo.create_model("transformer_nano"), 4)
    with pytest.raises(ValueError, match="must be plain matrices, it is a LatentMatrix"):
        zoo.latent_experts(zoo.create_model("mole_nano"), 4)


def test_factors_that_do_not_fit_name_the_matrix():
    x, weight = torch.randn(3, 4), partial(torch.randn, 6)
    routing = top_k_routing(torch.randn(3, 6), 2)
    with pytest.raises(ValueError, match="the first factor of up"):
        moe(x, routing, Latent(torch.randn(2, 5, 3), weight(3, 7)), weight(7, 4))
    with pytest.raises(ValueError, match="groups of up must divide the experts, got 4 groups of 6 experts"):
        moe(x, routing, Latent(torch.randn(4, 4, 3), weight(3, 7)), weight(7, 4))
