"""What a decoding step on the CPU computes in C, outside the operators: the same as what it stands in for."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.kernels import causal_conv1d, implementation, rms_norm, row_linear, ssd
from zoo.layers import linear
from zoo.layers.linear import decoding, is_plain


def error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).abs().max() / exact.abs().max()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 7, 100), (2, 33, 32), (3, 5, 3), (4, 700, 128)])
def test_rows_times_a_matrix(rows, outputs, inputs, dtype):
    x, weight, bias = (torch.randn(shape, dtype=dtype) for shape in ((rows, inputs), (outputs, inputs), (outputs,)))
    for given in (bias, None):
        exact = F.linear(x.double(), weight.double(), None if given is None else given.double())
        found = row_linear(x, weight, given, impl="native")
        assert found.dtype == dtype and error(found, exact) <= 2 * torch.finfo(dtype).eps
        with torch.no_grad():
            assert torch.equal(row_linear(x[:, None], weight, given), found[:, None])


@pytest.mark.parametrize(("rows", "dtype"), [(0, torch.float32), (5, torch.float32), (2, torch.float64)], ids=str)
def test_what_the_native_product_cannot_take(rows, dtype):
    x, weight = torch.randn(rows, 8, dtype=dtype), torch.randn(3, 8, dtype=dtype)
    with pytest.raises(ValueError, match="native takes 1 to 4 rows"):
        row_linear(x, weight, impl="native")
    with implementation(row_linear="native"):
        assert torch.equal(row_linear(x, weight), F.linear(x, weight))


def test_rows_are_left_to_torch_where_it_has_to_see_them():
    x, weight = torch.randn(2, 8), torch.randn(3, 8, requires_grad=True)
    assert row_linear(x, weight).requires_grad
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert row_linear(x, weight).dtype == torch.bfloat16
    with torch.no_grad():
        torch.testing.assert_close(torch.func.grad(lambda w: row_linear(x, w).sum())(weight), x.sum(0).expand(3, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("options", [{}, {"dt_softplus": True}, {"dt_softplus": True, "dt_limit": (0.1, 0.7)}])
def test_one_step_of_state_space_duality(options, groups, dtype):
    x, dt = torch.randn(2, 1, 4, 6, dtype=dtype), torch.randn(2, 1, 4, dtype=dtype).abs()
    A, maps = -torch.rand(4).exp(), torch.randn(2, 2, 1, groups, 5, dtype=dtype)
    A[0] = -math.inf
    state = torch.randn(2, 4, 6, 5)
    for further in ({}, {"D": torch.randn(4), "dt_bias": torch.randn(4).abs()}, {"D": torch.randn(4, 6)}):
        given = {"x": x, "dt": dt, "A": A, "B": maps[0], "C": maps[1], **further}
        wide = {name: tensor.double() for name, tensor in given.items()}
        exact = ssd(**wide, **options, initial_state=state.double())
        with torch.no_grad():
            found = ssd(**given, **options, initial_state=state)
        assert found.output.dtype == dtype and error(found.output, exact.output) <= 4 * torch.finfo(dtype).eps
        assert error(found.final_state, exact.final_state) < 1e-6
        if not options and "dt_bias" not in further:  # no time passes, also at an infinite rate
            with torch.no_grad():
                assert torch.equal(ssd(**given | {"dt": 0 * dt}, initial_state=state).final_state, state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_one_step_of_the_convolution(activation, width, dtype):
    x, weight, bias = torch.randn(2, 1, 9, dtype=dtype), torch.randn(9, width), torch.randn(9)
    state = torch.randn(2, width - 1, 9, dtype=dtype)
    for given in (bias, None):
        wide = [t if t is None else t.double() for t in (x, weight, given, state)]
        exact = causal_conv1d(*wide[:3], activation=activation, initial_state=wide[3])
        with torch.no_grad():
            found = causal_conv1d(x, weight, given, activation=activation, initial_state=state)
        assert found.output.dtype == dtype and error(found.output, exact.output) <= 2 * torch.finfo(dtype).eps
        assert torch.equal(found.final_state.double(), exact.final_state) and found.final_state.dtype == dtype


def test_the_choice_of_a_program_is_kept():
    """Named implementations are those of torch: what is computed in C differs in the last bits."""
    x, z, weight = torch.randn(3, 64), torch.randn(3, 64), torch.randn(64)
    with torch.no_grad(), implementation("fused"):
        named = rms_norm(x, weight, z=z)
    with torch.no_grad():
        torch.testing.assert_close(rms_norm(x, weight, z=z), named)
        with implementation(row_linear="reference"):
            assert torch.equal(row_linear(x, weight[None]), F.linear(x, weight[None]))


@pytest.mark.parametrize("name", ["mamba2_nano", "transformer_nano"])
def test_decoding_leaves_the_model_as_it_was(name, monkeypatch):
    monkeypatch.setattr(linear, "LEAST", 0)
    model = zoo.create_model(name).eval()
    tokens, calls = torch.randint(0, 256, (2, 9)), []
    model.blocks[0].mixer.out_proj.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        whole, state = model(tokens), model.init_state(2)
        with decoding(model), decoding(model):
            steps = torch.cat([model(tokens[:, t : t + 1], state) for t in range(9)], 1)
    torch.testing.assert_close(steps, whole, rtol=1e-4, atol=1e-5)
    assert len(calls) == 10 and not any("forward" in vars(module) for module in model.modules())
    assert is_plain(model.head) and type(model.head) is nn.Linear
