"""D2MoE: several widths in one record, experts that compute a token in one of them, and the routers that say which."""

from __future__ import annotations

import copy
import importlib
import itertools
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.kernels.moe import Routing
from zoo.layers.moe.widths import ExpertWidths
from zoo.layers.quant import Format, Record, records
from zoo.quantize import METHODS, Calibration
from zoo.quantize.d2moe import routers
from zoo.quantize.store import Store

NESTED = Format(layout="nested", bits=4, group_size=16, scale_dtype="float32")


def matrix(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def text(name: str, rows: int = 4) -> Tensor:
    return torch.tensor(list(topics[name].encode()[: 128 * rows])).view(rows, 128)


SEEN = Calibration([text("compound", 2)])
PIXELS = Calibration([torch.zeros(1, 1, 8, 8)])


@pytest.fixture(scope="module")
def trained() -> Any:
    return zoo.create_model("moe_nano", pretrained=True).eval()


@pytest.fixture(scope="module")
def small(trained) -> Any:
    return zoo.quantize(copy.deepcopy(trained), "d2moe", calibration=SEEN, epochs=2, lr=0.05)


def test_each_width_is_a_part_of_the_next_and_takes_its_share_of_the_error():
    """A sign lowers the squared error of a group by s^2 a weight, s the mean of what was left."""
    w, record = matrix(6, 32), Record.nearest(matrix(6, 32), NESTED)
    plain = Record.nearest(w, Format(bits=2, group_size=16, scale_dtype="float32"))
    errors = []
    for width in (2, 3, 4):
        narrow = record.at(width)
        found = narrow.dequantise()
        torch.testing.assert_close(narrow.matmul(matrix(3, 32)), matrix(3, 32) @ found.mT, rtol=1e-4, atol=1e-4)
        assert narrow.codes is record.codes and record.width == 4, "nobody else reads fewer bits"
        errors.append((found - w).unflatten(1, (2, 16)).square().mean(-1))
        if width == 2:
            assert torch.equal(found, plain.dequantise())
    for level, (before, after) in enumerate(itertools.pairwise(errors), 1):
        step: Any = getattr(record, f"step{level}")
        torch.testing.assert_close(before - after, step.square(), rtol=1e-4, atol=1e-5)
    assert torch.equal(record.dequantise(), found)


def test_bytes_by_hand_and_what_a_width_reads():
    """b0 + 24 / g bits, and 1 + 16 / g for each sign."""
    form = Format(layout="nested", bits=5, base_bits=3, group_size=64)
    record = Record((2, 8, 128), form)
    by_hand = [3 + 24 / 64 + more * (1 + 16 / 64) for more in range(3)]
    assert record.nbytes * 8 == 2 * 8 * 128 * by_hand[-1]
    assert [record.nbytes_at(bits) * 8 / (2 * 8 * 128) for bits in (3, 4, 5)] == by_hand


@pytest.mark.parametrize("count", [1, 9])
@torch.no_grad()
def test_experts_compute_each_token_in_its_width(small, count):
    """As one token after another does, by hand, through the matrices of its widths."""
    layer = copy.deepcopy(small.blocks[0].mlp)
    router: ExpertWidths = layer.precision
    torch.nn.init.normal_(router.weight, std=3.0)
    x = torch.randn(count, layer.precision.weight.shape[-1], generator=torch.Generator().manual_seed(3))
    experts = torch.stack(
        [torch.randperm(layer.num_experts, generator=torch.Generator().manual_seed(i))[:2] for i in range(count)]
    )
    routing = Routing(torch.rand(count, 2), experts, None)
    found = layer.visit(x, routing).output
    p = router(x, experts)
    widths = torch.tensor(router.widths)[p.argmax(-1)]
    assert count == 1 or len(set(widths.flatten().tolist())) > 1
    assert router.activity["bits"] == widths.float().mean()
    expected = torch.zeros_like(x)
    for m in range(count):
        for j in range(2):
            held = [layer.w1, layer.w3, layer.w2]
            w1, w3, w2 = (w.at(int(widths[m, j])).dequantise(int(experts[m, j])) for w in held)
            hidden = torch.nn.functional.silu(x[m] @ w1.mT) * (x[m] @ w3.mT)
            expected[m] += routing.weights[m, j] * (hidden @ w2.mT)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    masked = layer.visit(x, routing, kept=torch.zeros(count, dtype=torch.bool)).output
    assert not masked.any()


def test_a_mixture_of_widths_is_their_mean_and_routers_learn_through_it(small):
    layer = copy.deepcopy(small.blocks[0].mlp)
    router: ExpertWidths = layer.precision
    router.soft = True
    x = torch.randn(5, layer.precision.weight.shape[-1])
    experts, weights = torch.randint(0, layer.num_experts, (5, 1)), torch.ones(5, 1)
    found = layer.visit(x, Routing(weights, experts, None)).output
    p, parts = router(x, experts), []
    layer.precision = None
    held = {name: getattr(layer, name) for name in ("w1", "w3", "w2")}
    for width in router.widths:
        layer.replace_matrices({name: record.at(width) for name, record in held.items()})
        parts.append(layer.visit(x, Routing(weights, experts, None)).output)
    expected = sum(p[:, 0, place, None] * part for place, part in enumerate(parts))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(router.spent, (p[:, 0] @ torch.tensor([2.0, 3.0, 4.0])).mean())
    (found.sum() + router.spent).backward()
    assert router.weight.grad.any() and router.bias.grad.any()


def test_experts_alone_have_several_widths_and_a_folder_keeps_them(small, tmp_path):
    held = records(small)
    nested = {name for name, record in held.items() if record.format.layout == "nested"}
    assert (
        nested == {name for name in held if name.rpartition(".")[2] in ("w1", "w2", "w3") and ".mlp." in name} != set()
    )
    again: Any = zoo.create_model(f"local-dir:{zoo.save_model(small, tmp_path)}").eval()
    x = text("specialnames", 1)
    with torch.no_grad():
        assert torch.equal(again(x), small(x))
        state = again.init_state(1)
        steps = torch.cat([again(part, state) for part in x[:, :20].split([16, 1, 1, 1, 1], 1)], 1)
        torch.testing.assert_close(steps, again(x[:, :20]), rtol=1e-4, atol=1e-4)
    assert [change.kind for change in zoo.changes.changes_of(again)] == ["expert_widths"]


def test_fewer_bits_where_they_are_dearer_and_never_a_worse_loss(trained):
    """At no price all stay in the largest width unless the outputs get better; wild steps are not kept."""
    experts = [name for name, p in trained.named_parameters() if p.dim() == 3]
    bits = {}
    for spending, lr in ((0.0, 1e4), (0.05, 0.05)):
        method: Any = METHODS["d2moe"](spending=spending, lr=lr, epochs=1)  # type: ignore[call-arg]
        model = copy.deepcopy(trained)
        known = method.prepare(model, experts, SEEN, Store(None, {}))
        for name in experts:
            zoo.layers.quant.install(model, {name: method.record(*_of(model, method, name), known[name])})
        with torch.no_grad():
            model(SEEN.batches[0])
        bits[spending] = torch.stack([router.activity["bits"] for router in routers(model)]).mean().item()
    assert bits[0.0] == 4.0 and 2 <= bits[0.05] < 3.8


def test_a_weight_that_fails_leaves_no_routers(trained, monkeypatch):
    def broken(*_: Any) -> None:
        raise KeyboardInterrupt

    model = copy.deepcopy(trained).train()
    monkeypatch.setattr(importlib.import_module("zoo.quantize"), "_record", broken)
    with pytest.raises(KeyboardInterrupt):
        zoo.quantize(model, "d2moe", calibration=SEEN, epochs=0)
    assert model.state_dict().keys() == trained.state_dict().keys() and model.training
    assert not routers(model) and not zoo.changes.changes_of(model)


def _of(model: Any, method: Any, name: str) -> tuple[Tensor, Format]:
    found = zoo.layers.quant.matrices(model, name)
    return found.float(), method.format(found.shape[-1])


def test_routers_without_records_change_nothing(trained):
    model, x = copy.deepcopy(trained), text("specialnames", 1)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(zoo.expert_widths(model, (2, 4))(x), expected)
    with pytest.raises(ValueError, match="the experts have routers of widths already"):
        zoo.expert_widths(model)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Format(layout="nested", bits=4, base_bits=4), r"base_bits must lie in \[1, 3\] for bits 4"),
        (lambda: Format(base_bits=3), "layout 'int' has no base_bits, got 3"),
        (lambda: setattr(Record((4, 32), NESTED), "width", 5), r"width must lie in \[2, 4\], got 5"),
        (lambda: Record((4, 32), Format()).at(3), "layout 'int' has one width, that of its 4 bits"),
        (lambda: zoo.expert_widths(zoo.create_model("transformer_nano")), "takes a mixture of experts"),
        (
            lambda: zoo.expert_widths(zoo.create_model("moe_nano"), (3, 2)),
            "widths must be bits of at least 1",
        ),
        (lambda: zoo.quantize(zoo.create_model("vit_nano"), "d2moe", calibration=PIXELS), "takes a mixture of experts"),
        (lambda: METHODS["d2moe"](spending=-1.0), "epochs and spending must be at least 0"),  # type: ignore[call-arg]
        (lambda: METHODS["d2moe"](bits=2), "layout 'nested' has 3 to 8 bits, got bits 2"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
