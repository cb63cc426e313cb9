from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from zoo.kernels import available_implementations
from zoo.kernels.rms_norm import rms_norm

FAST = ["native", "fused", "triton"]
ALL = ["reference", *FAST]


def make_inputs(*shape: int, dtype=torch.float32, gated=True, weighted=True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    randn = partial(torch.randn, generator=generator)
    inputs = {"x": randn(shape).to(dtype)}
    if weighted:
        inputs["weight"] = randn(shape[-1]).to(dtype)
    if gated:
        inputs["z"] = (2 * randn(shape)).to(dtype)
    return inputs


@pytest.mark.parametrize("impl", [*ALL, "auto"])
@pytest.mark.parametrize("norm_before_gate", [False, True])
def test_is_the_definition(impl, norm_before_gate):
    x, w, z = make_inputs(2, 3, 6, dtype=torch.float64).values()
    found = rms_norm(x, w, z=z, num_groups=2, norm_before_gate=norm_before_gate, eps=0.1, impl=impl)
    for b in range(2):
        for t in range(3):
            for group in (slice(0, 3), slice(3, 6)):
                gate = z[b, t, group] / (1 + torch.exp(-z[b, t, group]))
                u = x[b, t, group] * (1 if norm_before_gate else gate)
                y = w[group] * u / ((u * u).sum() / 3 + 0.1) ** 0.5 * (gate if norm_before_gate else 1)
                torch.testing.assert_close(found[b, t, group], y)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm_before_gate", [False, True])
def test_accuracy_over_dtypes(impl, dtype, norm_before_gate, assert_accurate):
    call = partial(rms_norm, num_groups=2, norm_before_gate=norm_before_gate)
    assert_accurate(call, make_inputs(2, 5, 14, dtype=dtype), impl)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (70, 5), (2, 3, 4, 7), (33, 130)], ids=str)
@pytest.mark.parametrize(("gated", "weighted"), [(True, True), (False, True), (True, False), (False, False)])
def test_accuracy_over_sizes(impl, shape, gated, weighted, assert_accurate):
    eps = 0.5 if shape[-1] == 1 else 1e-5  # the gradient of x / sqrt(x^2 + 1e-5) is all cancellation
    assert_accurate(partial(rms_norm, eps=eps), make_inputs(*shape, gated=gated, weighted=weighted), impl)


@pytest.mark.parametrize("impl", ["native", "fused"])
@pytest.mark.parametrize("norm_before_gate", [False, True])
def test_accuracy_of_many_wide_rows(impl, norm_before_gate, assert_accurate):
    call = partial(rms_norm, num_groups=2, norm_before_gate=norm_before_gate)
    assert_accurate(call, make_inputs(3, 700, 300), impl)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e3, 1e12])
def test_accuracy_at_extremes(impl, scale, assert_accurate):
    inputs = make_inputs(4, 5, 16, gated=False)
    assert_accurate(rms_norm, inputs | {"x": inputs["x"] * scale}, impl)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("norm_before_gate", [False, True])
def test_accuracy_of_saturated_gates(impl, norm_before_gate, assert_accurate):
    inputs = make_inputs(4, 5, 16)
    inputs["z"] = inputs["z"] * 100
    assert_accurate(partial(rms_norm, norm_before_gate=norm_before_gate), inputs, impl)


@pytest.mark.parametrize("impl", ALL)
@pytest.mark.parametrize("norm_before_gate", [False, True])
def test_gradcheck(impl, norm_before_gate):
    inputs = {name: t.requires_grad_() for name, t in make_inputs(2, 2, 4, dtype=torch.float64).items()}

    def call(x, weight, z):
        return rms_norm(x, weight, z=z, num_groups=2, norm_before_gate=norm_before_gate, impl=impl)

    assert torch.autograd.gradcheck(call, tuple(inputs.values()))


@pytest.mark.parametrize("impl", ALL)
def test_gradients_of_some_inputs_only(impl):
    x, weight, z = make_inputs(2, 3, 4).values()
    whole = [t.clone().requires_grad_() for t in (x, weight, z)]
    gradients = torch.autograd.grad(rms_norm(whole[0], whole[1], z=whole[2], impl=impl).square().sum(), whole)
    for index in range(3):
        some = [t.clone().requires_grad_(i == index) for i, t in enumerate((x, weight, z))]
        rms_norm(some[0], some[1], z=some[2], impl=impl).square().sum().backward()
        torch.testing.assert_close(some[index].grad, gradients[index])
        assert all(t.grad is None for i, t in enumerate(some) if i != index)


@pytest.mark.parametrize("impl", ALL)
@pytest.mark.parametrize("norm_before_gate", [False, True])
def test_the_result_has_the_dtype_of_the_weight_which_multiplies_rounded_values(impl, norm_before_gate):
    """As in transformers: normalise in float32, cast to the weight's dtype, multiply there."""
    x, z = make_inputs(2, 9, 32, weighted=False).values()
    for dtype in (torch.float16, torch.bfloat16):
        if impl == "triton" and dtype == torch.bfloat16:
            continue  # Triton's interpreter cuts float32 off to bfloat16 instead of rounding it
        weight = torch.randn(32).to(dtype)
        gated = x if norm_before_gate else x * F.silu(z)
        expected = (gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + 1e-5)).to(dtype) * weight
        if norm_before_gate:
            expected = (expected * F.silu(z)).to(dtype)
        found = rms_norm(x, weight, z=z, norm_before_gate=norm_before_gate, impl=impl)
        assert found.dtype == dtype
        # float32 values that differ in the last place may fall on the two sides of a rounding boundary
        assert (found != expected).float().mean() < 0.01
    assert rms_norm(x.bfloat16(), torch.ones(32), impl=impl).dtype == torch.float32
    assert rms_norm(x.bfloat16(), impl=impl).dtype == torch.bfloat16


@pytest.mark.parametrize("impl", ALL)
def test_parts_of_a_projection_are_read_where_they_lie(impl):
    projected = torch.randn(2, 40, 50)
    x, z = projected[..., 3:23], projected[..., 30:]
    weight = torch.randn(20)
    expected = rms_norm(x.clone(), weight, z=z.clone(), impl=impl)
    assert torch.equal(rms_norm(x, weight, z=z, impl=impl), expected)


def test_large_and_small_inputs_agree():
    """Below and above the size at which the operator takes over."""
    large = {name: t.requires_grad_() for name, t in make_inputs(90, 1000, dtype=torch.float64).items()}
    y = rms_norm(**large)
    (gradient,) = torch.autograd.grad(y.square().sum(), large["x"])
    parts = [rms_norm(x, large["weight"], z=z) for x, z in zip(large["x"].split(30), large["z"].split(30), strict=True)]
    (separate,) = torch.autograd.grad(sum(part.square().sum() for part in parts), large["x"])
    torch.testing.assert_close(torch.cat(parts), y)
    torch.testing.assert_close(separate, gradient)


def test_the_plain_formula_is_differentiable_twice():
    inputs = {name: t.requires_grad_() for name, t in make_inputs(2, 3, dtype=torch.float64).items()}
    assert torch.autograd.gradgradcheck(lambda x, w, z: rms_norm(x, w, z=z), tuple(inputs.values()))


@pytest.mark.parametrize("impl", [*ALL, "auto"])
def test_no_rows(impl):
    x, weight = torch.zeros(0, 3, 4, requires_grad=True), torch.ones(4, requires_grad=True)
    y = rms_norm(x, weight, impl=impl)
    y.sum().backward()
    assert y.shape == x.shape and x.grad is not None and weight.grad is not None and not weight.grad.any()


def test_native_is_preferred():
    assert available_implementations("rms_norm")[:2] == ["native", "fused"]


def test_threads_do_not_change_the_result():
    inputs = {name: t.requires_grad_() for name, t in make_inputs(300, 64).items()}
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            y = rms_norm(**inputs, impl="native")
            found.append([y, *torch.autograd.grad(y.square().sum(), list(inputs.values()))])
    finally:
        torch.set_num_threads(threads)
    for one, three in zip(*found, strict=True):
        assert torch.equal(one, three)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(5)}, "rms_norm: weight must have shape"),
        ({"z": torch.ones(2, 4)}, "rms_norm: z must have shape"),
        ({"x": torch.ones(2, 3, 4, dtype=torch.int64)}, "rms_norm: x must be a floating-point tensor"),
        ({"x": torch.ones(2, 3, 0), "weight": None, "z": None}, "rms_norm: x must have shape"),
        ({"num_groups": 3}, "num_groups must divide D, got 3 groups for D 4"),
        ({"num_groups": 0}, "num_groups must divide D"),
    ],
    ids=str,
)
def test_wrong_input_names_the_argument(change, message):
    with pytest.raises(ValueError, match=message):
        rms_norm(**(make_inputs(2, 3, 4) | change))
