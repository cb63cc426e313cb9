"""The hashed lookup: its equation by loops, ties, gradients, counts and errors."""

from __future__ import annotations

from math import exp, prod

import pytest
import torch

from zoo.kernels import available_implementations, hashed_lookup
from zoo.kernels.flops import flop_counter

IMPLS = [impl for impl in available_implementations("hashed_lookup") if impl != "triton"]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("temperature", "scaled"), [(1.0, False), (0.4, True)])
def test_the_equation(impl, temperature, scaled):
    x, tables = torch.randn(4, 6, dtype=torch.float64), torch.randn(2, 8, 5, dtype=torch.float64)
    x[0], x[1, 2] = 0.0, -0.0  # zeros of both signs count as positive
    y = hashed_lookup(x, tables, temperature=temperature, scaled=scaled, impl=impl)
    for token, found in zip(x.tolist(), y, strict=True):
        expected = torch.zeros(5, dtype=torch.float64)
        for k, z in enumerate((token[:3], token[3:])):
            code = 4 * (z[0] >= 0) + 2 * (z[1] >= 0) + (z[2] >= 0)
            weight = prod(1 / (1 + exp(-2 * abs(value) / temperature)) for value in z)
            weight *= sum(map(abs, z)) / temperature if scaled else 1
            expected += weight * tables[k, code]
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("scaled", [False, True])
def test_gradients(impl, scaled):
    """Of wide tables too, whose rows are read in slices; away from zero, where the codes change."""
    x = torch.randn(3, 4, dtype=torch.float64)
    x, tables = (x + 0.1 * x.sign()).requires_grad_(), torch.randn(2, 4, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *t: hashed_lookup(*t, temperature=0.8, scaled=scaled, impl=impl), (x, tables)
    )
    wide = torch.randn(2, 4, 200, dtype=torch.float64).requires_grad_()
    dy = torch.randn(3, 200, dtype=torch.float64)
    found, expected = (
        torch.autograd.grad(hashed_lookup(x, wide, scaled=scaled, impl=one), (x, wide), dy)
        for one in (impl, "reference")
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_large_inputs_are_a_plain_lookup_and_zeros_an_even_one():
    tables = torch.randn(3, 16, 7)
    signs = torch.randint(0, 2, (5, 12)) * 2.0 - 1
    codes = ((signs > 0).view(5, 3, 4) * torch.tensor([8, 4, 2, 1])).sum(-1)
    torch.testing.assert_close(hashed_lookup(1e3 * signs, tables), tables[torch.arange(3), codes].sum(1))
    torch.testing.assert_close(hashed_lookup(torch.zeros(1, 12), tables)[0], tables[:, 15].sum(0) / 16)


def test_no_product_of_x_is_counted():
    """A pair of operations for each channel of x and each number of a row."""
    x, tables = torch.randn(2, 10, 12), torch.randn(3, 16, 7)
    with flop_counter(display=False) as counter, torch.no_grad():
        hashed_lookup(x, tables)
    assert counter.get_flop_counts()["Global"] == {torch.ops.zoo.hashed_lookup: 2 * 20 * 3 * (4 + 7)}


@pytest.mark.parametrize(
    ("x", "tables", "options", "message"),
    [
        ((2, 13), (3, 16, 7), {}, r"x must have K tau channels for tables \(K, 2\^tau, D\), got x \(2, 13\)"),
        ((2, 12), (3, 15, 7), {}, r"tables \(3, 15, 7\)"),
        ((2, 12), (16, 7), {}, r"tables must have shape \(K, 2\^tau, D\)"),
        ((2, 12), (3, 16, 7), {"temperature": 0.0}, "temperature must be above 0, got 0.0"),
    ],
)
def test_wrong_inputs_say_the_rule(x, tables, options, message):
    with pytest.raises(ValueError, match=message):
        hashed_lookup(torch.randn(x), torch.randn(tables), **options)
