"""What the methods of compression are by their definitions, a matrix at a time."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.layers.quant import LAYOUTS, Format, Record, matrices, records
from zoo.layers.quant.layouts import DualGrained, grid
from zoo.quantize import METHODS, Calibration
from zoo.quantize.baq import divided, rates
from zoo.quantize.blocks import blocks, calls
from zoo.quantize.db_llm import deviation_aware, first_scales
from zoo.quantize.dgq import smoothing
from zoo.quantize.easyquant import outliers
from zoo.quantize.feedback import feedback_codes
from zoo.quantize.lowbit_fp import integer_levels, minifloat_levels
from zoo.quantize.moments import output_error, second_moments
from zoo.quantize.omniquant import Block, clipped_grid, rounded
from zoo.quantize.rounding import nearest_codes
from zoo.quantize.store import Store

FORM = Format(bits=3, group_size=16, scale_dtype="float32")
TOKENS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def matrix() -> Tensor:
    return torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def moment() -> Tensor:
    """Of inputs some of whose channels go together."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(200, 8, generator=generator) @ torch.randn(8, 32, generator=generator)
    return x.mT @ x / 200 + 0.01 * torch.eye(32)


def error(record: Record, matrix: Tensor) -> Tensor:
    return (record.dequantise() - matrix).square().unflatten(-1, (-1, 16)).sum(-1)


def test_easyquant_without_outliers_and_steps_is_rounding_to_nearest(matrix):
    found = METHODS["easyquant"](deviations=math.inf, steps=0).record(matrix, FORM, None)  # type: ignore[call-arg]
    assert torch.equal(found.dequantise(), Record.nearest(matrix, FORM).dequantise())


def test_easyquant_of_outliers_alone_loses_nothing(matrix):
    found = METHODS["easyquant"](deviations=0.0, steps=0).record(matrix, FORM, None)  # type: ignore[call-arg]
    assert torch.equal(found.dequantise(), matrix)


def test_easyquant_keeps_outliers_and_every_group_is_no_worse(matrix):
    matrix[0, 3, 5] = 20.0
    kept = outliers(matrix, 3.0)
    first, found = (METHODS["easyquant"](steps=steps).record(matrix, FORM, None) for steps in (0, 40))  # type: ignore[call-arg]
    assert kept[0, 3, 5] and torch.equal(found.dequantise()[kept], matrix[kept])
    assert (error(found, matrix) <= error(first, matrix)).all() and error(found, matrix).sum() < 0.95 * error(
        first, matrix
    ).sum()
    share = outliers(torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0)), 3.0).float().mean()
    assert abs(share - 0.0027) < 0.0002


def test_baq_leaves_every_number_the_same_loss():
    losses, sizes = {"a": 4.0, "b": 0.5, "c": 0.03}, {"a": 10, "b": 40, "c": 100}
    found = rates(losses, sizes, 3.0)
    left = [losses[name] * 4 ** -(found[name] - 3) for name in losses]
    assert max(left) - min(left) < 1e-12 * max(left)
    assert abs(sum(sizes[name] * found[name] for name in sizes) - 3 * 150) < 1e-9
    same = rates(dict.fromkeys(losses, 2.0), sizes, 3.0)
    assert set(same.values()) == {3.0}


@pytest.mark.parametrize("budget", [2.0, 3.0, 4.5])
def test_baq_divides_as_well_as_any_division(budget):
    """Of parts of one size, where taking the best next bit is exact."""
    losses, sizes = {"a": 4.0, "b": 0.5, "c": 0.03, "d": 0.5}, dict.fromkeys("abcd", 8)
    found = divided(losses, sizes, 3, budget)
    assert sum(found.values()) <= 4 * budget and all(1 <= bits <= 8 for bits in found.values())

    def loss(bits: Any) -> float:
        return sum(losses[name] * 4.0 ** (3 - b) for name, b in zip(losses, bits, strict=True))

    every = (bits for bits in itertools.product(range(1, 9), repeat=4) if sum(bits) <= 4 * budget)
    assert loss(found.values()) == min(map(loss, every))


def test_feedback_lowers_the_error_of_outputs_and_never_raises_it(matrix, moment):
    scale, zero = grid(matrix, FORM)
    assert torch.equal(feedback_codes(matrix, scale, zero, FORM, None), Record.nearest(matrix, FORM).unpacked())
    found = Record.of(feedback_codes(matrix, scale, zero, FORM, moment), scale, zero, FORM)
    plain, new = (output_error(r.dequantise() - matrix, moment) for r in (Record.nearest(matrix, FORM), found))
    assert (new <= plain).all() and new.sum() < 0.6 * plain.sum()


@pytest.mark.parametrize("layout", ["int", "e2m1", "e4m3"])
def test_neighbours_on_a_grid(matrix, layout):
    """A weight lies between them, and the nearest number is one of the two."""
    form = Format(layout=layout, bits=LAYOUTS[layout].default, group_size=16, scale_dtype="float32")
    if layout == "int":
        plain, below, above = integer_levels(matrix, *grid(matrix, form), form)
    else:
        record = Record.nearest(matrix, form)
        plain, below, above = minifloat_levels(matrix, record.scale, None, form)
        assert torch.equal(plain, record.dequantise())
    inside = above > below  # not at the ends of the range
    between = (below <= matrix + 1e-6) & (matrix - 1e-6 <= above)  # one on the grid is off by a rounding
    assert between[inside].all() and inside.float().mean() > 0.8
    assert ((plain == below) | (plain == above)).all()


@pytest.mark.parametrize("layout", ["int", "e2m1"])
def test_learnt_rounding_never_raises_the_error_of_an_output(matrix, moment, layout):
    form = Format(layout=layout, group_size=16)
    first, found = (
        METHODS["lowbit_fp"](layout=layout, steps=steps).record(matrix, form, moment)  # type: ignore[call-arg]
        for steps in (0, 60)
    )
    assert torch.equal(first.scale, found.scale)
    plain, new = (output_error(record.dequantise() - matrix, moment) for record in (first, found))
    assert (new <= plain * (1 + 1e-6)).all() and new.sum() < 0.8 * plain.sum()


def test_the_split_of_the_bits_is_found_for_each_matrix(matrix, moment):
    """Few binades want a mantissa, many want exponents; the outputs are never worse than with one split for all."""
    wide = matrix.sign() * torch.exp(2.5 * matrix)
    for w, expected in ((matrix, "e2m1"), (wide, "e3m0")):
        found, *each = (
            METHODS["lowbit_fp"](layout=layout, any_split=split, steps=0).record(w, form(layout), moment)  # type: ignore[call-arg]
            for layout, split in (("e2m1", True), ("e2m1", False), ("e3m0", False))
        )
        errors = [output_error(record.dequantise() - w, moment).sum() for record in (found, *each)]
        assert found.format.layout == expected and errors[0] == min(errors[1:]) < max(errors[1:])


def form(layout: str) -> Format:
    return Format(layout=layout, bits=LAYOUTS[layout].default, group_size=16)


@pytest.mark.parametrize("symmetric", [False, True])
def test_whole_ranges_are_rounding_to_nearest_and_gradients_reach_the_shares(matrix, symmetric):
    form = Format(bits=3, group_size=16, symmetric=symmetric)
    found = clipped_grid(matrix, form)
    if not symmetric:
        plain = nearest_codes(matrix, *grid(matrix, form), form)
        assert torch.equal(rounded(matrix, found, form), plain.dequantise())
    low, high = (torch.full((2, 12, 2), 0.9, requires_grad=True) for _ in range(2))
    clipped = clipped_grid(matrix, form, low, high)
    numbers = rounded(matrix, clipped, form)
    record = nearest_codes(matrix, clipped.scale, clipped.zero, form)
    torch.testing.assert_close(numbers.detach(), record.dequantise(), rtol=1e-6, atol=1e-7)
    (numbers - matrix).square().sum().backward()
    assert low.grad is not None and high.grad is not None and low.grad.any() and high.grad.any()


def test_a_block_learns_nothing_worse_than_plain_rounding():
    model = zoo.create_model("transformer_nano", pretrained=True).eval()
    seen = Calibration([TOKENS])
    inside = blocks(model, [name for name, p in model.named_parameters() if p.dim() == 2])
    assert list(inside) == ["blocks.0", "blocks.1", "blocks.2"]
    given = calls(model, "blocks.1", seen)
    for method in (METHODS["omniquant"](bits=2, epochs=3), METHODS["omniquant"](bits=2, epochs=1, clip_lr=1e3)):  # type: ignore[call-arg]
        block = Block(method, model, "blocks.1", inside["blocks.1"], [], {}, given, given)  # type: ignore[arg-type]
        start = block.loss({})
        assert block.loss(block.learn()) <= start
    assert all(p.grad is None for p in model.parameters())


def test_dgq_is_a_product_of_integers():
    """Of eight bits, scaled once a row: bit-equal to integers, and near four bits with float scales."""
    matrix, x = torch.randn(6, 64), torch.randn(5, 64)
    form = METHODS["dgq"](activation_bits=8).format(64)  # type: ignore[call-arg]
    record = METHODS["dgq"](activation_bits=8).record(matrix, form, None)  # type: ignore[call-arg]
    layout = LAYOUTS["dual_grained"]
    assert isinstance(layout, DualGrained)
    whole = layout.integers(dict(record.named_parameters()), form, 64)
    assert whole.abs().max() <= 127 and torch.equal(whole, whole.round())
    scale = x.abs().amax(-1, keepdim=True) / 127
    exact = (x / scale).round().double() @ whole.double().mT * scale * record.coarse.double()[:, 0]  # type: ignore[operator]
    torch.testing.assert_close(record.matmul(x).double(), exact, rtol=1e-5, atol=1e-5)
    plain = Record.nearest(matrix, Format(bits=4, group_size=32, scale_dtype="float32"))
    assert (record.dequantise() - matrix).norm() < 1.05 * (plain.dequantise() - matrix).norm()
    assert record.nbytes == 6 * (64 // 2 + 2 * 2 + 2)


def test_dgq_divides_the_largest_channels_alone():
    largest = torch.tensor([1.0, 9.0, 2.0, 30.0])
    assert torch.equal(smoothing(largest, 0.0), torch.tensor([1.0, 1.0, 1.0, 30 / 9]))
    assert smoothing(largest, 0.3).tolist() == [1.0, 4.5, 1.0, 15.0]


def test_weighted_divergence():
    student, teacher = (torch.randn(3, 4, 7).log_softmax(-1) for _ in range(2))
    assert deviation_aware(teacher, teacher, 1.0) == 0 == deviation_aware(teacher, teacher, 0.0)
    plain = torch.nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(deviation_aware(student, teacher, 0.0), plain.mean())
    unsure = torch.zeros(4, 7).log_softmax(-1)
    teacher[0] = unsure
    weighted = deviation_aware(student, teacher, 30.0)  # only predictions of which both are unsure count
    assert weighted != deviation_aware(student, teacher, 0.0)


def test_dual_binary_levels_at_first(matrix):
    form = METHODS["db_llm"]().format(32)
    assert first_scales(matrix, form).shape == (2, 12, 1, 2)
    found = METHODS["db_llm"]().record(matrix, form, None)
    assert torch.equal(found.dequantise(), Record.nearest(matrix, form).dequantise())


def test_what_learns_by_distillation_is_never_worse_than_its_start():
    """However wild the steps; and without any it is rounding to nearest."""
    model, seen = zoo.create_model("transformer_nano", pretrained=True).eval(), Calibration([TOKENS])
    names = ["blocks.0.mlp.w1.weight", "embedding.weight", "head.weight"]
    for lr, epochs in ((1e-3, 2), (10.0, 1), (1e-3, 0)):
        method: Any = METHODS["topkld"](bits=2, lr=lr, epochs=epochs)  # type: ignore[call-arg]
        found = method.prepare(model, names, seen, Store(None, {}))
        same = torch.equal(found["blocks.0.mlp.w1.weight"], model.get_parameter("blocks.0.mlp.w1.weight"))
        assert same == (lr == 10.0 or epochs == 0)
        assert found["head.weight"] is found["embedding.weight"] or not model.config.tie_embeddings
    record = method.record(matrices(model, names[0]), method.format(128), found[names[0]])
    assert torch.equal(record.dequantise(), Record.nearest(matrices(model, names[0]), method.format(128)).dequantise())


def test_moments_of_linear_layers_and_convolutions():
    for name in ("transformer_nano", "vovnet_nano"):
        model: Any = zoo.create_model(name).eval()
        x = TOKENS if name == "transformer_nano" else torch.randn(2, model.config.in_chans, *model.config.image_shape)
        names = [key for key, p in model.named_parameters() if p.dim() in (2, 4) and "weight" in key]
        found = second_moments(model, names, Calibration([x]))
        for key, moment in found.items():
            layer, seen = model.get_submodule(key.rpartition(".")[0]), []
            handle = layer.register_forward_hook(lambda module, given, output, seen=seen: seen.append(output))
            with torch.no_grad():
                model(x)
            handle.remove()
            (output,) = seen
            output = (
                output
                if layer.bias is None
                else output - (layer.bias[:, None, None] if output.dim() == 4 else layer.bias)
            )
            rows = output.movedim(1, -1) if output.dim() == 4 else output
            energy = rows.flatten(0, -2).square().mean(0)
            torch.testing.assert_close(
                output_error(layer.weight.detach().flatten(1), moment), energy, rtol=1e-3, atol=1e-5
            )


@pytest.mark.parametrize(("columns", "size"), [
    (37, 37), (67, 67), (127, 127), (74, 74), (254, 254), (96, 32), (72, 24), (48, 24), (68, 17), (27, 27), (7, 7),
])  # fmt: skip
def test_a_group_that_nobody_asked_for_is_not_a_few_columns(columns, size):
    """Where no divisor lies from 16 to 32, a row is one group."""
    model = zoo.quantize(nn.Sequential(nn.Linear(columns, 64, bias=False)))
    (record,) = records(model).values()
    assert record.format.group_size == size
