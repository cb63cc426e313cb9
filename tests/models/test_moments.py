"""What calibrated methods know of the inputs of convolutions and experts, and that they make something of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.kernels.moe import Routing
from zoo.layers.moe import experts as expert_layers
from zoo.layers.quant import Format, Record, matrices
from zoo.quantize import METHODS, Calibration
from zoo.quantize.feedback import feedback_codes
from zoo.quantize.moments import hidden, mean_squares, output_error, second_moments
from zoo.quantize.rounding import grid

TOKENS = torch.randint(0, 256, (4, 32), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("conv", [
    nn.Conv1d(3, 5, 4, stride=2, padding=1, bias=False), nn.Conv1d(2, 4, 5, padding="same", dilation=3, bias=False),
    nn.Conv2d(3, 4, (3, 2), stride=(1, 2), padding=(2, 0), bias=False), nn.Conv2d(3, 4, 3, padding="valid", bias=False),
    nn.Conv3d(2, 3, (1, 3, 2), padding=(0, 1, 1), stride=(1, 2, 1), dilation=(1, 2, 1), bias=False),
])  # fmt: skip
def test_what_a_convolution_sees(conv):
    """The moment of its patches gives the mean square of each output channel."""
    x = torch.randn(2, conv.in_channels, *[9] * len(conv.kernel_size), generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(conv)
    with torch.no_grad():
        energy = model(x).square().mean((0, *range(2, x.dim())))
    found = second_moments(model, ["0.weight"], Calibration([x]))["0.weight"]
    torch.testing.assert_close(output_error(conv.weight.detach().flatten(1), found), energy, rtol=1e-4, atol=1e-5)
    assert not second_moments(
        nn.Sequential(nn.Conv1d(4, 4, 3, groups=2)), ["0.weight"], Calibration([torch.ones(1, 4, 9)])
    )


@pytest.fixture(scope="module")
def model() -> Any:
    return zoo.create_model("moe_nano", pretrained=True).eval()


@pytest.fixture(scope="module")
def seen(model) -> list[tuple[Tensor, Routing]]:
    """What the experts of the first block are asked."""
    found: list[tuple[Tensor, Routing]] = []
    layer = model.blocks[0].mlp
    layer.visit = lambda tokens, routing, *rest: (
        found.append((tokens, routing)),
        type(layer).visit(layer, tokens, routing, *rest),
    )[1]
    with torch.no_grad():
        model(TOKENS)
    del layer.visit
    return found


@pytest.fixture(scope="module")
def moments(model) -> dict[str, Tensor]:
    names = [f"blocks.0.mlp.{name}" for name in ("w1", "w2", "w3")]
    found = second_moments(model, names, Calibration(TOKENS.split(2)))
    assert "visit" not in vars(model.blocks[0].mlp) and set(found) == set(names)
    return found


@torch.no_grad()
def test_what_each_expert_sees(model, seen, moments):
    """The tokens that chose it, and what its last matrix gets of them; by hand, and as it computes."""
    ((tokens, routing),), layer = seen, model.blocks[0].mlp
    for e in range(layer.num_experts):
        x = tokens[(routing.experts == e).any(-1)]
        h = torch.nn.functional.silu(x @ layer.w1[e]) * (x @ layer.w3[e])
        torch.testing.assert_close(hidden(layer, e, x), h)
        for name, rows in (("w1", x), ("w3", x), ("w2", h)):
            expected = rows.mT @ rows / max(1, len(x))
            torch.testing.assert_close(moments[f"blocks.0.mlp.{name}"][e], expected, rtol=1e-4, atol=1e-5)
        only = Routing(torch.ones(len(x), 1), torch.full((len(x), 1), e), None)
        torch.testing.assert_close(layer.visit(x, only).output, h @ layer.w2[e], rtol=1e-4, atol=1e-5)


def test_an_expert_that_saw_nothing_is_rounded_as_without_calibration(model):
    """One token; a moment of zeros would make every table as good as any other."""
    layer, matrix = model.blocks[0].mlp, matrices(model, "blocks.0.mlp.w1").float()
    found = mean_squares(second_moments(model, ["blocks.0.mlp.w1"], Calibration([TOKENS[:1, :1]])))["blocks.0.mlp.w1"]
    alone = (found == 1).flatten(1).all(1)
    assert alone.sum() == layer.num_experts - layer.top_k
    made: Any = METHODS["sketch"](bits=3)
    form = made.format(matrix.shape[-1])
    with_, without = (made.record(matrix, form, known).dequantise() for known in (found, None))
    assert torch.equal(with_[alone], without[alone]) and not torch.equal(with_[~alone], without[~alone])


def test_hidden_numbers_of_every_kind_of_expert():
    """With biases, two layers, or a function of both halves: what comes out is the last matrix times them."""
    kinds: list[dict[str, Any]] = [
        {"gated": False}, {"bias": True}, {"glu": lambda a, b: a.clamp(max=1) * (b + 1).sigmoid(), "bias": True},
    ]  # fmt: skip
    for options in kinds:
        layer = expert_layers.RoutedExperts(nn.Linear(8, 3), 8, 6, 3, 1, **options)
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
        x = torch.randn(5, 8)
        routing = Routing(torch.ones(5, 1), torch.full((5, 1), 2), None)
        with torch.no_grad():
            expected = layer.visit(x, routing).output - (0 if layer.b2 is None else layer.b2[2])
            torch.testing.assert_close(hidden(layer, 2, x) @ layer.w2[2], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("method", "options"), [
    ("baq", {"bits": 3}), ("lowbit_fp", {"bits": 3, "steps": 20}), ("dgq", {"bits": 3}), ("sketch", {"bits": 3}),
])  # fmt: skip
def test_methods_look_at_what_experts_see(method, options, model, moments):
    """Their outputs change less than by the same codes for all inputs alike, and never more for one that saw none."""
    made: Any = METHODS[method](**options)
    matrix, moment = matrices(model, "blocks.0.mlp.w2").float(), moments["blocks.0.mlp.w2"].clone()
    moment[1] = 0
    form = made.format(matrix.shape[-1])
    known: Any = {"baq": (3, moment), "sketch": moment.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)}.get(method, moment)
    blind: Any = {"baq": (3, None)}.get(method)
    changed, plain = (output_error(made.record(matrix, form, k).dequantise() - matrix, moment) for k in (known, blind))
    assert changed.sum() < 0.98 * plain.sum() and changed.shape == matrix.shape[:-1] and not changed[1].any()


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("columns", [32, 384])  # of several wide matrices, torch 2.15's LU is wrong on two threads
def test_feedback_of_many_matrices_is_that_of_each(columns, two_threads):
    generator = torch.Generator().manual_seed(3)
    matrix, form = torch.randn(3, 6, columns, generator=generator), Format(bits=3, group_size=16, scale_dtype="float32")
    x = torch.randn(3, 100, columns, generator=generator) * torch.rand(3, 1, columns, generator=generator)
    moment = x.mT @ x / 100
    scale, zero = grid(matrix, form)
    assert zero is not None
    whole = feedback_codes(matrix, scale, zero, form, moment)
    each = [feedback_codes(*given[:3], form, given[3]) for given in zip(matrix, scale, zero, moment, strict=True)]
    assert torch.equal(whole, torch.stack(each)) and not torch.equal(whole, Record.nearest(matrix, form).unpacked())
