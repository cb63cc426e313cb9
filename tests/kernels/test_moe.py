from __future__ import annotations

import math
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DeepseekV3Config, MixtralConfig, SwitchTransformersConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersTop1Router

from zoo.kernels.moe import (
    Routing,
    expert_utilisation,
    grouped_matmul,
    load_balance_loss,
    moe,
    router_z_loss,
    sort_by_expert,
    top_k_routing,
)

ALL = ["reference", "grouped", "triton"]
FAST = ["grouped", "triton"]
# Rows of each of five experts, and rows of none.
LOADS = {
    "even": [8, 8, 8, 8, 8, 0],
    "uneven": [1, 0, 17, 16, 5, 0],
    "one takes all": [0, 0, 0, 33, 0, 0],
    "first and last empty": [0, 3, 20, 4, 0, 2],
    "none taken": [0, 0, 0, 0, 0, 7],
    "no rows": [0, 0, 0, 0, 0, 0],
}


def offsets_of(load: list[int]) -> Tensor:
    return torch.tensor([0, *load[:-1]]).cumsum(0)


def make_inputs(load, depth=7, columns=6, dtype=torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(sum(load))
    randn = partial(torch.randn, generator=generator)
    return {"x": randn(sum(load), depth).to(dtype), "weight": randn(len(load) - 1, depth, columns).to(dtype)}


def make_moe(tokens=13, dim=6, hidden=5, experts=4, top_k=2, dtype=torch.float32) -> dict:
    logits = torch.randn(tokens, experts, dtype=dtype)
    return {
        "x": torch.randn(tokens, dim, dtype=dtype),
        "routing": top_k_routing(logits, top_k),
        "up": torch.randn(experts, dim, hidden, dtype=dtype),
        "down": torch.randn(experts, hidden, dim, dtype=dtype),
        "gate": torch.randn(experts, dim, hidden, dtype=dtype),
    }


def by_token(x, routing, up, down, gate, capacity=math.inf) -> tuple[Tensor, int]:
    """The definition of ``moe``, an assignment at a time; also how many were dropped."""
    outputs, taken, dropped = [], [0] * len(up), 0
    for token, weights, experts in zip(x, routing.weights, routing.experts.tolist(), strict=True):
        y = torch.zeros_like(token)
        for w, e in zip(weights, experts, strict=True):
            taken[e] += 1
            if taken[e] > capacity:
                dropped += 1
                continue
            y = y + w * ((F.silu(token @ gate[e]) * (token @ up[e])) @ down[e])
        outputs.append(y)
    return torch.stack(outputs), dropped


@pytest.mark.parametrize("impl", ALL)
@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_is_each_row_times_the_matrix_of_its_expert(load, impl):
    inputs, bias = make_inputs(load, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    expected = torch.zeros(sum(load), 6, dtype=torch.float64)
    owner = [e for e, rows in enumerate(load) for _ in range(rows)]
    for row, e in enumerate(owner):
        if e < 5:
            expected[row] = inputs["x"][row] @ inputs["weight"][e] + bias[e]
    torch.testing.assert_close(grouped_matmul(**inputs, offsets=offsets_of(load), bias=bias, impl=impl), expected)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_accuracy_over_loads(load, impl, assert_accurate):
    if sum(load):
        assert_accurate(partial(grouped_matmul, offsets=offsets_of(load)), make_inputs(load), impl)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("depth", "columns"), [(1, 1), (33, 40)])
def test_accuracy_over_dtypes_and_sizes(impl, dtype, depth, columns, assert_accurate):
    load = [0, 18, 1, 3]
    call = partial(grouped_matmul, offsets=offsets_of(load))
    assert_accurate(call, make_inputs(load, depth, columns, dtype), impl)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)], ids=str)
@pytest.mark.parametrize("impl", FAST)
def test_accuracy_of_mixed_dtypes(impl, dtypes, assert_accurate):
    load = [4, 0, 9, 0]
    inputs = {name: t.to(dtype) for (name, t), dtype in zip(make_inputs(load).items(), dtypes, strict=True)}
    assert_accurate(partial(grouped_matmul, offsets=offsets_of(load)), inputs, impl)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_accuracy_at_extremes(impl, scale, assert_accurate):
    load = [4, 0, 9, 0]
    inputs = make_inputs(load)
    inputs["x"] = inputs["x"] * scale
    assert_accurate(partial(grouped_matmul, offsets=offsets_of(load)), inputs, impl)


@pytest.mark.parametrize("impl", ALL)
def test_gradcheck_of_the_product(impl):
    load = [2, 0, 3, 1]
    inputs = [t.double().requires_grad_() for t in make_inputs(load, 3, 2).values()]
    bias = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, w, b: grouped_matmul(x, w, offsets_of(load), bias=b, impl=impl),
        (*inputs, bias),
        fast_mode=impl == "triton",
    )


def test_an_expert_that_is_not_finite_touches_its_own_rows_only():
    load = [3, 4, 0, 2]
    inputs = {name: t.requires_grad_() for name, t in make_inputs(load).items()}
    with torch.no_grad():
        inputs["weight"][1] = torch.nan
    for impl in FAST:
        y = grouped_matmul(**inputs, offsets=offsets_of(load), impl=impl)
        assert y[:3].isfinite().all() and not y[3:7].isfinite().any() and (y[7:] == 0).all()
        dx, dweight = torch.autograd.grad(y[:3].sum(), list(inputs.values()))
        assert dx[:3].isfinite().all() and (dx[7:] == 0).all() and dweight.isfinite().all()


@pytest.mark.parametrize("impl", ALL)
def test_moe_equals_a_loop_over_tokens(impl):
    inputs = make_moe(dtype=torch.float64)
    output, dropped = moe(**inputs, impl=impl)
    torch.testing.assert_close(output, by_token(**inputs)[0])
    assert dropped == 0


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_single_token_without_gradient_is_not_sorted(dtype, gated, monkeypatch):
    inputs = make_moe(tokens=1, top_k=3, dtype=dtype)
    inputs["routing"].experts[0, 1] = 4  # no expert
    if not gated:
        del inputs["gate"]
    sorted_ones = moe(**inputs)  # with gradients recorded
    if dtype != torch.float16:
        monkeypatch.setattr(sys.modules["zoo.kernels.moe.experts"], "sort_by_expert", None)
    with torch.no_grad():
        alone = moe(**inputs)
    torch.testing.assert_close(alone, sorted_ones)
    assert alone.output.dtype == dtype


def test_moe_with_biases_and_without_a_gate_equals_a_loop():
    inputs = make_moe(dtype=torch.float64)
    del inputs["gate"]
    up_bias, down_bias = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    x, routing, up, down = inputs.values()
    every = torch.stack([F.gelu(x @ up[e] + up_bias[e]) @ down[e] + down_bias[e] for e in range(4)], dim=1)
    chosen = every.gather(1, routing.experts[..., None].expand(-1, -1, 6))
    output = moe(**inputs, up_bias=up_bias, down_bias=down_bias, activation=F.gelu).output
    torch.testing.assert_close(output, (routing.weights[..., None] * chosen).sum(1))


@pytest.mark.parametrize("tokens", [1, 13])
def test_moe_with_biases_and_a_unit_of_its_own_equals_a_loop(tokens):
    inputs = make_moe(tokens=tokens, dtype=torch.float64)
    up_bias, gate_bias, down_bias = (torch.randn(4, size, dtype=torch.float64) for size in (5, 5, 6))
    x, routing, up, down, gate = inputs.values()
    hidden = [(x @ up[e] + up_bias[e] + 1) * (x @ gate[e] + gate_bias[e]).tanh() for e in range(4)]
    every = torch.stack([hidden[e] @ down[e] + down_bias[e] for e in range(4)], dim=1)
    chosen = every.gather(1, routing.experts[..., None].expand(-1, -1, 6))
    options = {"up_bias": up_bias, "gate_bias": gate_bias, "down_bias": down_bias}
    with torch.no_grad():
        output = moe(**inputs, **options, glu=lambda gate, up: (up + 1) * gate.tanh()).output
    torch.testing.assert_close(output, (routing.weights[..., None] * chosen).sum(1))


@pytest.mark.parametrize("impl", ALL)
def test_equal_experts_are_the_dense_mlp(impl):
    inputs = make_moe(dtype=torch.float64)
    for name in ("up", "down", "gate"):
        inputs[name] = inputs[name][:1].expand(4, -1, -1)
    x, _, up, down, gate = inputs.values()
    dense = (F.silu(x @ gate[0]) * (x @ up[0])) @ down[0]
    logits = torch.randn(13, 4, dtype=torch.float64)
    inputs["routing"] = top_k_routing(logits, 3, normalize=True)
    torch.testing.assert_close(moe(**inputs, impl=impl).output, dense)
    inputs["routing"] = switch = top_k_routing(logits, 1)
    torch.testing.assert_close(moe(**inputs, impl=impl).output, logits.softmax(-1).amax(-1, keepdim=True) * dense)
    assert (switch.weights[:, 0] == switch.scores.amax(-1)).all()


@pytest.mark.parametrize("impl", ALL)
def test_one_expert_gets_every_token(impl):
    inputs = make_moe(top_k=1, dtype=torch.float64)
    inputs["routing"] = Routing(torch.ones(13, 1).double(), torch.full((13, 1), 2), torch.empty(0))
    x, _, up, down, gate = inputs.values()
    torch.testing.assert_close(moe(**inputs, impl=impl).output, (F.silu(x @ gate[2]) * (x @ up[2])) @ down[2])


@pytest.mark.parametrize("impl", ALL)
@pytest.mark.parametrize("capacity", [1, 4, 13])
def test_capacity_keeps_the_first_tokens_of_each_expert(capacity, impl):
    inputs = make_moe(dtype=torch.float64)
    expected, expected_dropped = by_token(**inputs, capacity=capacity)
    output, dropped = moe(**inputs, capacity=capacity, impl=impl)
    torch.testing.assert_close(output, expected)
    assert dropped == expected_dropped
    assert (dropped > 0) == (capacity < 13)


def test_capacity_drops_what_transformers_switch_drops():
    config = SwitchTransformersConfig(d_model=6, num_experts=4, expert_capacity=3, router_jitter_noise=0.0)
    router = SwitchTransformersTop1Router(config)
    x = torch.randn(1, 20, 6)
    kept, weights, logits = router(x)
    routing = top_k_routing(logits[0], 1)
    order = sort_by_expert(routing.experts, 4, capacity=3)
    ours = torch.zeros(20, 4, dtype=torch.int64)
    for e, (start, end) in enumerate(zip(order.offsets[:-1].tolist(), order.offsets[1:].tolist(), strict=True)):
        ours[order.order[start:end], e] = 1
    assert torch.equal(ours, kept[0]) and order.dropped == 20 - kept.sum()
    torch.testing.assert_close(routing.weights, weights[0])


def test_sorted_order_is_by_expert_then_token():
    experts = torch.tensor([[2, 0], [0, 3], [2, 3], [0, 2]])  # 3: no expert
    order, inverse, offsets, dropped = sort_by_expert(experts, 3)
    assert order.tolist() == [1, 2, 6, 0, 4, 7, 3, 5]
    assert offsets.tolist() == [0, 3, 3, 6] and dropped == 0
    assert torch.equal(order[inverse], torch.arange(8))
    for capacity, kept, bounds in ((2, [1, 2, 0, 4], [0, 2, 2, 4]), (1, [1, 0], [0, 1, 1, 2])):
        order, inverse, offsets, dropped = sort_by_expert(experts, 3, capacity=capacity)
        assert order[: len(kept)].tolist() == kept and offsets.tolist() == bounds
        assert dropped == 6 - len(kept)
        assert torch.equal(order[inverse], torch.arange(8))


@pytest.mark.parametrize("impl", ALL)
@pytest.mark.parametrize("capacity", [None, 2])
def test_gradcheck_of_everything(capacity, impl):
    """Of tokens, router logits and expert weights; the choice of experts does not change under small steps."""
    logits = torch.tensor([[1.0, 3.0, 2.0], [3.0, 0.5, 1.0], [0.2, 1.0, 4.0], [0.1, 2.0, 1.0]])
    shapes = {"x": (4, 3), "up": (3, 3, 2), "down": (3, 2, 3), "gate": (3, 3, 2), "down_bias": (3, 3)}
    tensors = [logits.double(), *(torch.randn(shape, dtype=torch.float64) for shape in shapes.values())]

    def call(logits, *tensors):
        routing = top_k_routing(logits, 2, normalize=True, scale=1.5)
        return moe(routing=routing, **dict(zip(shapes, tensors, strict=True)), capacity=capacity, impl=impl).output

    assert torch.autograd.gradcheck(call, [t.requires_grad_() for t in tensors], fast_mode=impl == "triton")


def test_dropped_assignments_leave_no_gradient():
    inputs = make_moe(tokens=5, top_k=1)
    weights = torch.rand(5, 1, requires_grad=True)
    x = inputs["x"].requires_grad_()
    inputs["routing"] = Routing(weights, torch.tensor([[0], [0], [0], [1], [4]]), torch.empty(0))
    output, dropped = moe(**inputs, capacity=2)
    dx, dweights = torch.autograd.grad(output.square().sum(), (x, weights))
    for t in (output, dx, dweights):
        assert (t[[2, 4]] == 0).all() and (t[[0, 1, 3]] != 0).any(1).all()
    assert dropped == 1  # the last token chose no expert


def test_no_tokens():
    output = moe(**make_moe(tokens=0), capacity=3)
    assert output.output.shape == (0, 6) and output.dropped == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_tokens_keep_their_dtype(dtype):
    inputs = make_moe()
    exact = moe(**inputs).output
    half = {name: t.to(dtype) if isinstance(t, Tensor) else t for name, t in inputs.items()}
    output = moe(**half).output
    assert output.dtype == dtype
    assert (output - exact).abs().max() < 8 * torch.finfo(dtype).eps * exact.abs().max()


def test_two_runs_agree_and_compile_as_one_graph():
    inputs = make_moe(tokens=200)
    inputs["x"].requires_grad_()
    call = partial(moe, capacity=60)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    runs = [run(**inputs) for run in (call, call, compiled)]
    gradients = [torch.autograd.grad(run.output.square().sum(), inputs["x"])[0] for run in runs]
    assert runs[0].dropped > 0
    for run, gradient in zip(runs, gradients, strict=True):
        assert torch.equal(run.output, runs[0].output) and torch.equal(gradient, gradients[0])


def test_permuting_the_experts_changes_nothing():
    logits, inputs = torch.randn(13, 4), make_moe()
    shuffle = torch.tensor([2, 0, 3, 1])
    first = moe(**inputs | {"routing": top_k_routing(logits, 2)}).output
    for name in ("up", "down", "gate"):
        inputs[name] = inputs[name][shuffle]
    second = moe(**inputs | {"routing": top_k_routing(logits[:, shuffle], 2)}).output
    torch.testing.assert_close(first, second)


def test_equals_the_mixtral_of_transformers():
    config = MixtralConfig(
        hidden_size=16, intermediate_size=24, num_local_experts=8, num_experts_per_tok=2, router_jitter_noise=0.0
    )
    peer = MixtralSparseMoeBlock(config)
    for p in peer.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x = torch.randn(3, 20, 16, requires_grad=True)
    gate, up = peer.experts.gate_up_proj.mT.chunk(2, dim=-1)
    tokens = x.flatten(0, 1)
    logits = tokens @ peer.gate.weight.T
    routing = top_k_routing(logits, 2, normalize=True)
    ours = moe(tokens, routing, up, peer.experts.down_proj.mT, gate=gate).output.view_as(x)
    theirs = peer(x)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    leaves = [x, *peer.parameters()]
    found, expected = (torch.autograd.grad(y.square().sum(), leaves, retain_graph=True) for y in (ours, theirs))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * b.abs().max().item(), rtol=1e-5)
    loss = load_balance_loss(routing.scores, routing.experts)
    torch.testing.assert_close(loss, load_balancing_loss_func((logits,), 8, 2))
    mask = torch.rand(3, 20) < 0.7
    masked = load_balance_loss(routing.scores, routing.experts, mask=mask.flatten())
    torch.testing.assert_close(masked, load_balancing_loss_func((logits,), 8, 2, mask))
    assert loss != masked


@pytest.mark.parametrize(("groups", "top_groups"), [(1, 1), (4, 2), (4, 3)])
@pytest.mark.parametrize("normalize", [False, True])
def test_equals_the_deepseek_v3_router_of_transformers(groups, top_groups, normalize):
    config = DeepseekV3Config(
        hidden_size=12, n_routed_experts=16, num_experts_per_tok=4, n_group=groups, topk_group=top_groups,
        norm_topk_prob=normalize, routed_scaling_factor=2.5,
    )  # fmt: skip
    peer = DeepseekV3TopkRouter(config)
    torch.nn.init.normal_(peer.weight)
    peer.e_score_correction_bias.normal_(std=0.3)
    logits, weights, experts = peer(torch.randn(50, 12))
    bias = peer.e_score_correction_bias.requires_grad_()
    ours = top_k_routing(
        logits, 4, score="sigmoid", normalize=normalize, scale=2.5, bias=bias, num_groups=groups, top_groups=top_groups
    )
    order, peer_order = ours.experts.argsort(-1), experts.argsort(-1)
    assert torch.equal(ours.experts.gather(1, order), experts.gather(1, peer_order))
    torch.testing.assert_close(ours.weights.gather(1, order), weights.gather(1, peer_order), atol=1e-5, rtol=1e-5)
    found, expected = (
        torch.autograd.grad(w.square().sum(), peer.weight, retain_graph=True) for w in (ours[0], weights)
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.autograd.grad(ours.weights.sum(), bias, allow_unused=True) == (None,)


def test_a_bias_selects_and_does_not_weigh():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    bias = torch.tensor([0.0, 0.0, 0.0, 10.0])
    for score, function in {"softmax": partial(torch.softmax, dim=-1), "sigmoid": torch.sigmoid}.items():
        weights, experts, scores = top_k_routing(logits, 2, score=score, bias=bias)
        assert experts.tolist() == [[3, 0]]
        torch.testing.assert_close(weights, function(logits)[:, [3, 0]])
        torch.testing.assert_close(scores, function(logits))


def test_a_constant_added_to_the_bias_changes_nothing():
    logits = torch.randn(20, 8, dtype=torch.float64)
    for groups in (1, 4):
        call = partial(top_k_routing, logits, 3, score="sigmoid", num_groups=groups, top_groups=min(groups, 2))
        bias = torch.randn(8, dtype=torch.float64)
        assert torch.equal(call(bias=bias).experts, call(bias=bias - 5).experts)


def test_groups_are_chosen_by_their_best_scores():
    logits = torch.tensor([[3.0, -9.0, 2.0, 1.9]])  # the best alone, and the best two
    assert top_k_routing(logits, 1, score="sigmoid", num_groups=2).experts.item() == 2
    assert top_k_routing(logits, 1, score="sigmoid", num_groups=2, group_top=1).experts.item() == 0


def test_routing_in_half_precision_is_computed_in_float32():
    logits = torch.randn(5, 4, dtype=torch.bfloat16)
    routing = top_k_routing(logits, 2, normalize=True, score="sigmoid")
    assert routing.weights.dtype == torch.float32
    for a, b in zip(routing, top_k_routing(logits.float(), 2, normalize=True, score="sigmoid"), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_balanced_routing_has_the_smallest_balance_loss(top_k):
    tokens = torch.arange(10)[:, None]
    balanced = (tokens + torch.arange(top_k)) % 5
    even = torch.full((10, 5), 0.2)
    torch.testing.assert_close(load_balance_loss(even, balanced), torch.tensor(float(top_k)))
    collapsed = F.one_hot(torch.zeros(10, dtype=torch.int64), 5).float()
    torch.testing.assert_close(load_balance_loss(collapsed, balanced * 0), torch.tensor(5.0 * top_k))


def test_balance_loss_differentiates_through_the_mean_score():
    scores = torch.rand(6, 3, requires_grad=True)
    experts = torch.tensor([[0], [0], [0], [1], [1], [2]])
    (gradient,) = torch.autograd.grad(load_balance_loss(scores, experts), scores)
    torch.testing.assert_close(gradient, (3 * torch.tensor([3.0, 2.0, 1.0]) / 6 / 6).expand(6, 3))


def test_router_z_loss():
    logits = torch.zeros(4, 8)
    logits[2:] = torch.nan
    mask = torch.tensor([True, True, False, False])
    torch.testing.assert_close(router_z_loss(logits[:2]), torch.tensor(math.log(8) ** 2))
    torch.testing.assert_close(router_z_loss(logits, mask=mask), torch.tensor(math.log(8) ** 2))
    assert router_z_loss(logits, mask=mask & False) == 0
    found = router_z_loss(torch.tensor([[0.0, 1.0], [1000.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor((math.log(1 + math.e) ** 2 + 1e6) / 2))


def test_utilisation():
    experts = torch.tensor([[0, 1], [0, 4], [0, 2], [3, 3]])  # 4: no expert
    shares, entropy, counts = expert_utilisation(experts, 4)
    assert counts.tolist() == [3, 1, 1, 2]
    torch.testing.assert_close(shares, torch.tensor([3, 1, 1, 2]) / 7)
    torch.testing.assert_close(entropy, -(shares * shares.log()).sum())
    even = expert_utilisation(torch.arange(8)[:, None] % 4, 4)
    torch.testing.assert_close(even.entropy, torch.tensor(math.log(4)))
    masked = expert_utilisation(experts, 4, mask=torch.tensor([True, True, False, False]))
    torch.testing.assert_close(masked.shares, torch.tensor([2, 1, 0, 0]) / 3)
    assert masked.entropy.isfinite()


@pytest.mark.parametrize("change", ["x", "weight", "offsets", "bias"])
def test_wrong_shape_names_the_argument(change):
    load = [3, 4, 0]
    inputs = make_inputs(load) | {"offsets": offsets_of(load), "bias": torch.randn(2, 6)}
    inputs[change] = inputs[change][..., None]
    with pytest.raises(ValueError, match=f"grouped_matmul: {change} must have shape"):
        grouped_matmul(**inputs)


@pytest.mark.parametrize("impl", ["reference", "grouped"])
@pytest.mark.parametrize("offsets", [[1, 2, 7], [0, 5, 3], [0, 5, 8]], ids=str)
def test_impossible_offsets(offsets, impl):
    with pytest.raises(ValueError, match="offsets must rise from 0 to at most the number of rows 7"):
        grouped_matmul(**make_inputs([3, 4, 0]), offsets=torch.tensor(offsets), impl=impl)


def test_offsets_are_int64_and_sizes_positive():
    inputs = make_inputs([3, 4, 0])
    with pytest.raises(ValueError, match=r"offsets must be int64 on cpu, got torch.int32"):
        grouped_matmul(**inputs, offsets=torch.tensor([0, 3, 7], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"E, D and F must be at least 1, got \(2, 7, 0\)"):
        grouped_matmul(inputs["x"], inputs["weight"][..., :0], torch.tensor([0, 3, 7]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "relu"}, r"score must be one of \['softmax', 'sigmoid'\], got 'relu'"),
        ({"num_groups": 3}, "num_groups must divide the experts"),
        ({"num_groups": 2, "top_groups": 3}, r"top_groups lie in \[1, num_groups\]"),
        ({"top_k": 9}, r"top_k must lie in \[1, 8\]"),
        ({"top_k": 5, "num_groups": 2}, r"top_k must lie in \[1, 4\]"),
        ({"num_groups": 4, "group_top": 3}, r"group_top in \[1, 2\]"),
        ({"bias": torch.zeros(7)}, "bias must have shape"),
    ],
)
def test_impossible_routing(options, message):
    with pytest.raises(ValueError, match=message):
        top_k_routing(torch.randn(3, 8), **{"top_k": 2} | options)


def test_impossible_sorting():
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        sort_by_expert(torch.zeros(3, 2, dtype=torch.int64), 4, capacity=0)
    with pytest.raises(ValueError, match="experts must be int64, got"):
        sort_by_expert(torch.zeros(3, 2), 4)


@pytest.mark.parametrize("change", ["up", "down", "gate"])
def test_expert_weights_must_fit_together(change):
    inputs = make_moe()
    inputs[change] = inputs[change][:3] if change == "gate" else inputs[change][:, 1:]
    with pytest.raises(ValueError, match=f"moe: {change} must have shape"):
        moe(**inputs)
