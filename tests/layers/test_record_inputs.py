"""What is done to the inputs of a record: nothing to the product before rounding, and what its rules say after it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.layers.quant import Format, Record, install
from zoo.layers.quant.inputs import Inputs, affine_grid, cosine_matrix, hadamard_matrix, turned

FORM = Format(bits=8, group_size=None, scale_dtype="float32")


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("columns", [1, 5, 8, 96])
def test_turning_is_orthogonal(columns):
    matrix = turned(torch.eye(columns, dtype=torch.float64))
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(columns, dtype=torch.float64), atol=1e-13, rtol=0)
    x = numbers(3, columns)
    torch.testing.assert_close(turned(turned(x), back=True), x, atol=1e-13, rtol=0)
    torch.testing.assert_close(turned(x), x @ matrix, atol=1e-13, rtol=0)
    assert hadamard_matrix(8).abs().unique().numel() == 1
    assert cosine_matrix(1).item() == pytest.approx(1.0)


@pytest.mark.parametrize("options", [{"balanced": True}, {"rotated": True}, {"balanced": True, "rotated": True}])
def test_the_product_is_as_it_was(options):
    """Of float64, to 1e-12."""
    inputs, x, matrix = Inputs(**options), numbers(4, 24), numbers(7, 24, seed=1)
    c = numbers(24, seed=2).exp() if inputs.balanced else None
    found = inputs.moved(x, c) @ inputs.moved_columns(matrix, c).mT
    assert (found - x @ matrix.mT).abs().max() < 1e-12 * (x @ matrix.mT).abs().max()
    assert (inputs.columns_back(inputs.moved_columns(matrix, c), c) - matrix).abs().max() < 1e-12


def test_a_grid_of_a_tensor_by_hand():
    """16 levels of 0.5 from -2.5 on, of which 0 is one; halves are rounded to even."""
    scale, zero = affine_grid(torch.tensor(-2.5), torch.tensor(5.0), 4)
    assert (scale.item(), zero.item()) == (0.5, 5.0)
    inputs = Inputs(parts=(4,))
    stored = {"input_scale": scale[None], "input_zero": zero[None].to(torch.uint8)}
    found = inputs.rounded(torch.tensor([[-9.0, -0.3, 0.0, 6.0]]), 4, stored)
    assert found.tolist() == [[-2.5, -0.5, 0.0, 5.0]]


def test_a_part_has_a_grid_of_its_own():
    """With grids that are the same it is one; otherwise the small part is rounded finely."""
    x = torch.cat([numbers(50, 6), 8 * numbers(50, 2, seed=1)], 1).float()
    grids = [affine_grid(part.amin(), part.amax(), 4) for part in (x, x[:, :6], x[:, 6:])]
    whole, *halves = ({"scale": s[None], "zero": z[None].to(torch.uint8)} for s, z in grids)

    def rounded(parts: tuple[int, ...], *held: dict[str, Tensor]) -> Tensor:
        stored = {f"input_{key}": torch.cat([one[key] for one in held]) for key in ("scale", "zero")}
        return Inputs(parts=parts).rounded(x, 4, stored)

    assert torch.equal(rounded((8,), whole), rounded((6, 2), whole, whole))
    off = [(found - x).square().mean() for found in (rounded((6, 2), *halves), rounded((8,), whole))]
    assert off[0] < 0.8 * off[1]


def test_a_token_does_not_depend_on_the_others():
    inputs, x = Inputs(zeros=True), numbers(3, 4, 8).float()
    found = inputs.rounded(x, 4, {})
    assert torch.equal(found[1:2], inputs.rounded(x[1:2], 4, {}))
    step = (x.amax(-1, keepdim=True).clamp(min=0) - x.amin(-1, keepdim=True).clamp(max=0)) / 15
    assert ((found - x).abs() <= step * 1.001).all() and not torch.equal(found, x)
    kept = Inputs(zeros=True, first=2).rounded(x, 4, {})
    assert torch.equal(kept[:, :2], x[:, :2]) and torch.equal(kept[:, 2:], found[:, 2:])


def record(matrix: Tensor, inputs: Inputs, bits: int | None = None, **stored: Tensor) -> Record:
    made = Record.nearest(matrix, FORM)
    form = Format(bits=8, group_size=None, scale_dtype="float32", activation_bits=bits, inputs=inputs)
    return Record.holding(matrix.shape, form, {**dict(made.named_parameters()), **stored})


def test_gradients_pass_and_dequantised_numbers_are_those_of_the_product():
    matrix, x = numbers(5, 12).float(), numbers(3, 4, 12, seed=1).float().requires_grad_()
    inputs, c = Inputs(zeros=True, balanced=True, rotated=True), numbers(12, seed=2).float().exp()
    made = Record.nearest(inputs.moved_columns(matrix, c), FORM)
    form = Format(bits=8, group_size=None, scale_dtype="float32", activation_bits=8, inputs=inputs)
    held = Record.holding(matrix.shape, form, {**dict(made.named_parameters()), "balance": c[None]})
    found = held.matmul(x)
    found.sum().backward()
    torch.testing.assert_close(x.grad, held.dequantise().sum(0).expand_as(x), atol=1e-4, rtol=1e-4)  # type: ignore[arg-type]
    assert (held.dequantise() - matrix).norm() < 0.02 * matrix.norm()
    assert (found - x @ matrix.mT).norm() < 0.03 * found.norm()


def test_a_convolution_rounds_its_channels():
    conv = nn.Conv2d(6, 4, 3, padding=1)
    grid = {"input_scale": torch.tensor([0.5, 0.25]), "input_zero": torch.tensor([8, 8], dtype=torch.uint8)}
    model = nn.Sequential(conv)
    install(model, {"0.weight": record(conv.weight.detach().flatten(1), Inputs(parts=(4, 2)), 4, **grid)})
    x = numbers(2, 6, 5, 5).float()
    by_hand = torch.cat([(x[:, :4] / 0.5).round().clamp(-8, 7) * 0.5, (x[:, 4:] / 0.25).round().clamp(-8, 7) * 0.25], 1)
    kernel = model[0].weight.dequantise().view(4, 6, 3, 3)  # type: ignore[union-attr, operator]
    wanted = torch.nn.functional.conv2d(by_hand, kernel, conv.bias, padding=1)
    torch.testing.assert_close(model(x), wanted)


class Timed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        return self.layer(x)


def timed() -> tuple[Any, list[Tensor]]:
    """A layer of three matrices, one a range of times."""
    model: Any = Timed()
    matrices = [numbers(3, 4, seed=seed).float() for seed in range(3)]
    each = [dict(Record.nearest(matrix, FORM).named_parameters()) for matrix in matrices]
    form = Format(bits=8, group_size=None, scale_dtype="float32", inputs=Inputs(times=(0.3, 0.7)))
    held = {name: torch.stack([one[name] for one in each]) for name in each[0]}
    install(model, {"layer.weight": Record.holding((3, 4), form, held)})
    return model, matrices


def test_each_image_is_computed_with_the_numbers_of_its_time():
    model, matrices = timed()
    x, t = numbers(4, 2, 4).float(), torch.tensor([0.9, 0.1, 0.5, 0.2])
    found = model(x, t)
    for row, matrix in zip(range(4), (matrices[2], matrices[0], matrices[1], matrices[0]), strict=True):
        wanted = x[row] @ matrix.mT + model.layer.bias
        assert (found[row] - wanted).norm() < 0.02 * wanted.norm()
        torch.testing.assert_close(model(x[row : row + 1], t[row : row + 1])[0], found[row])
    torch.testing.assert_close(model(x[:1], t=t[:1])[0], found[0])
    torch.testing.assert_close(model(x[1:2])[0], found[1])  # without times they are 0
    other = copy.deepcopy(model)
    torch.testing.assert_close(other(x, t), found)
    assert other.layer.weight.clock is not model.layer.weight.clock


def test_outside_of_a_call_there_is_no_time():
    model, _ = timed()
    with pytest.raises(RuntimeError, match="a row an image: got 2 rows, 3"):
        model(torch.zeros(2, 4), torch.zeros(3))
    assert model.layer.weight.clock.times is None
    with pytest.raises(RuntimeError, match="within a call of its model, a row an image: got 2 rows, no call"):
        model.layer(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="ranges of times are of diffusion models, Sequential is called without times"):
        install(nn.Sequential(nn.Linear(4, 3)), {"0.weight": Format(inputs=Inputs(times=(0.5,)))})
    with pytest.raises(ValueError, match="install it in one"):
        Record((3, 4), Format(inputs=Inputs(times=(0.5,)))).matmul(torch.zeros(1, 4))


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Inputs(times=(0.5, 0.2)), "times must rise between 0 and 1"),
    (lambda: Inputs(times=(0.0,)), "times must rise between 0 and 1"),
    (lambda: Inputs(parts=(0, 4)), "parts must be positive and first at least 0"),
    (lambda: Format(inputs=Inputs(zeros=True)), "inputs are rounded to activation_bits, which are None"),
    (lambda: Format(layout="e2m1", inputs=Inputs(balanced=True)), "layout 'e2m1' has no inputs"),
    (lambda: Record((3, 8), Format(activation_bits=8, inputs=Inputs(parts=(5,)))), "parts must sum to the channels"),
])  # fmt: skip
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
