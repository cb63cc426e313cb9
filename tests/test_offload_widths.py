"""Experts in several widths within a memory: the order of their planes, what is read of them, and the text."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch

import zoo
from zoo.benchmarks import widths as bench
from zoo.layers.quant import Format, Record, install, matrices
from zoo.offload import D2MoE
from zoo.offload.d2moe import planes
from zoo.offload.hebf import hottest_first, one_by_one, timeline
from zoo.offload.offload import stays
from zoo.quantize.d2moe import routers

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12]]
NEW = 4


def text(model: Any) -> list[Any]:
    return zoo.generate(model, PROMPTS, NEW, temperature=0)


@pytest.fixture(scope="module")
def model() -> Any:
    """Experts in 2 to 4 bits, routers of widths that have an opinion."""
    torch.manual_seed(0)
    found: Any = zoo.expert_widths(zoo.create_model("moe_nano", depth=2).eval(), (2, 3, 4))
    names = [name for name, p in found.named_parameters() if p.dim() == 3 and ".mlp.w" in name]
    made = {name: Record.nearest(matrices(found, name).float(), Format(layout="nested", bits=4)) for name in names}
    install(found, made)
    for router in routers(found):
        torch.nn.init.normal_(router.weight, std=1.0)  # type: ignore[arg-type]
    return found


def test_of_the_next_planes_the_one_that_most_tokens_need():
    needs = {0: [3, 1, 0], 1: [5, 5, 2], 2: [1, 1, 1]}
    expected = [(1, 0), (1, 1), (0, 0), (1, 2), (0, 1), (2, 0), (2, 1), (2, 2)]
    assert hottest_first(needs) == expected
    assert one_by_one(needs) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    assert hottest_first({}) == hottest_first({3: [0, 0]}) == []


def test_bubbles_by_hand():
    """Three experts; a plane takes 2 or 1 to load, a token 1 to compute."""
    tokens = {(0, 0): 1, (1, 0): 4, (2, 1): 1}
    needs = {0: [1], 1: [4], 2: [1, 1]}
    assert timeline(one_by_one(needs), tokens, [2, 1], 1) == (9, 3)  # waits for 0, then for 1
    assert timeline(hottest_first(needs), tokens, [2, 1], 1) == (8, 2)
    assert timeline(hottest_first(needs), tokens, [2, 1], 1, held=4) == (6, 0)


def test_the_hottest_first_waits_less():
    """Of 32 requests to 8 experts in 3 widths; the sums of both are the same, and the order changes nothing else."""
    dice, ends = random.Random(0), {hottest_first: 0.0, one_by_one: 0.0}
    for _ in range(32):
        tokens = {(e, dice.randrange(3)): dice.choice([0, 1, 2, 8, 30]) for e in range(8)}
        needs = {e: [n] * (last + 1) for (e, last), n in tokens.items()}
        for order in ends:
            assert set(order(needs)) == set(one_by_one(needs))
            found = timeline(order(needs), tokens, [4, 2, 2], 0.5)
            assert abs(found.end - found.idle - 0.5 * sum(tokens.values())) < 1e-9
            ends[order] += found.end
    assert ends[hottest_first] < 0.97 * ends[one_by_one]


@pytest.mark.parametrize("order", ["hottest_first", "one_by_one"])
def test_the_text_is_that_of_the_model_in_memory_which_is_never_exceeded(model, order, tmp_path):
    plain, policy = text(model), D2MoE(order=order)
    parts = policy.parts(model)
    assert len(parts) == 2 * model.experts[0].num_experts * 3
    least = stays(model, parts) + policy.least(parts)
    with pytest.raises(ValueError, match="must hold what stays"):
        zoo.offload(copy.deepcopy(model), memory=least - 1, policy=policy)
    sources = [(copy.deepcopy(model), 0)] if order == "one_by_one" else [(zoo.save_model(model, tmp_path), 4)]
    for source, more in sources:
        small: Any = zoo.offload(source, memory=least + more * policy.slot(parts), policy=policy)
        assert len(small.offloaded.memory) == 3 + more
        assert all(torch.equal(*rows) for rows in zip(text(small), plain, strict=True))
        assert len(small.offloaded.held) <= 3 + more


@pytest.mark.parametrize("widest", [True, False])
def test_planes_that_no_token_needs_are_not_read(model, widest):
    """The sum over distinct experts and planes, counted at the routers; of the fewest bits the codes alone."""
    model = copy.deepcopy(model)
    wanted: set[int] = set()
    small: Any = zoo.offload(model, memory="1GB", policy="d2moe")
    for index, router in enumerate(routers(small)):
        if not widest:
            torch.nn.init.zeros_(router.weight)  # type: ignore[arg-type]
            router.bias.data[:] = torch.tensor([1.0, 0.0, 0.0])

        def see(tokens: Any, routing: Any, index: int = index, router: Any = router) -> Any:
            for width, part in type(router).routings(router, tokens, routing):
                first = index * 3 * small.experts[0].num_experts
                chosen = [e for e in part.experts.unique().tolist() if e < small.experts[0].num_experts]
                wanted.update(first + 3 * e + level for e in chosen for level in range(width - 1))
                yield width, part

        router.routings = see  # type: ignore[assignment]
    text(small)
    small.offloaded.wait()
    units, traffic = small.offloaded.units, small.offloaded.traffic
    assert set(small.offloaded.held) == wanted and traffic.loads == len(wanted) == traffic.late
    assert traffic.bytes == sum(units[number].nbytes for number in wanted)
    levels, count = {number % 3 for number in wanted}, 3 * small.experts[0].num_experts
    assert levels == ({0, 1, 2} if widest else {0})
    assert units[0].nbytes == sum(getattr(small.experts[0], name).nbytes_at(2) for name in ("w1", "w2", "w3")) / (
        count // 3
    )


def test_high_planes_of_the_layer_that_ran_make_room_first(model):
    small: Any = zoo.offload(copy.deepcopy(model), memory="1GB", policy=D2MoE())
    held: Any = small.offloaded.leaves.__self__
    count = 3 * small.experts[0].num_experts
    held.now, held.waiting = 1, {2, count + 4}
    assert held.leaves([0, 1, count, count + 1, count + 4]) == count + 1  # layer 1 runs again last
    assert held.leaves([0, 1, count + 4]) == 1 and held.leaves([2, count + 4]) == count + 4
    assert [names[0] for names in planes(small.experts[0])] == ["w1.codes", "w1.plane1", "w1.plane2"]


def test_what_is_refused(model):
    plain = zoo.create_model("moe_nano")
    for call, message in (
        (lambda: D2MoE(order="coldest"), "order must be one of hottest_first, one_by_one, got 'coldest'"),
        (lambda: D2MoE(slots=0), "slots must be at least 1, got 0"),
        (lambda: zoo.offload(copy.deepcopy(model), memory="1GB", policy=D2MoE(slots=2)), "an expert's 3 planes, got 2"),
        (lambda: zoo.offload(plain, memory="1GB", policy="d2moe"), "no experts in several widths"),
        (lambda: zoo.quantize(plain, "d2moe", shares=(0.5, 0.5)), r"shares must be 3 numbers in"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()


def test_while_routers_learn_a_width_takes_its_share_of_the_tokens(model):
    """Those that want it most; the others are passed by."""
    router = copy.deepcopy(routers(model)[0])
    router.soft, router.shares = True, (0.3, 0.4, 0.3)  # type: ignore[assignment]
    tokens = torch.randn(10, model.config.dim)
    experts = torch.stack([torch.randperm(4)[:2] for _ in range(10)])
    experts[0] = len(router.weight)  # type: ignore[arg-type]  # none
    routing = zoo.kernels.Routing(torch.ones(10, 2), experts, None)
    p = router(tokens, experts)
    for place, (width, part) in enumerate(router.routings(tokens, routing)):  # type: ignore[operator]
        taken = (part.weights != 0) & (experts < len(router.weight))  # type: ignore[arg-type]
        assert width == place + 2 and taken.sum() == [6, 8, 6][place]
        assert torch.equal(part.weights[taken], p[..., place][taken])
        left = ~taken & (experts < len(router.weight))  # type: ignore[arg-type]
        assert p[..., place][taken].min() >= p[..., place][left].max()


def test_the_benchmark_of_widths(model):
    """What is noted, where one width for all would be, and its verdicts."""
    with bench.noted(model) as seen, torch.no_grad():
        model(torch.tensor([PROMPTS[2]]))
    assert len(seen) == 2 and all(sum(asked.values()) == 4 * model.experts[0].top_k for asked in seen)
    assert "routings" not in vars(routers(model)[0])
    ends = {f"one_by_one {disk}": 2.0 for disk in (16, 64)} | {"hottest_first 16": 1.5, "hottest_first 64": 2.5}
    score = {"read": 1.0, "shares": [1.0, 0.0, 0.0], "ends": ends}
    held = [{"widths": f"all {bits}", "bits": bits, "score": 5.0 - bits, **score} for bits in (2, 3, 4)]
    assert bench.on_the_line(held, 2.5) == 2.5 and bench.on_the_line(held, 4.0) == 1.0
    held.append({"widths": "alpha 0.01", "bits": 2.5, "score": 2.4, **score, "read": 2.0})
    assert bench.show(held)[-1][3] == "-0.100"
    assert [line.rpartition(": ")[2] for line in bench.verdicts(held)] == ["met.", "missed.", "met.", "missed."]
