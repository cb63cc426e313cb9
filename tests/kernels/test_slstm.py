"""The sLSTM's recurrence beyond the contract: the definition in numbers, large gates, packed sequences."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from cases.slstm import inputs
from zoo.kernels import available_implementations, slstm

IMPLS = available_implementations("slstm")
PACKED = torch.tensor([[3] * 11 + [1] * 19, [0] * 29 + [5]])


@pytest.mark.parametrize("impl", IMPLS)
def test_is_the_published_cell(impl):
    """One head of two channels in numbers, without a stabiliser: h_t = o c / n, the gates of one seeing both."""
    x, R = (t.double() for t in (torch.randn(1, 7, 4, 1, 2), torch.randn(1, 2, 4, 2)))
    h, c, n = [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]
    expected = []
    for t in range(7):
        logits = [[x[0, t, g, 0, e] + sum(h[d] * R[0, d, g, e] for d in range(2)) for e in range(2)] for g in range(4)]
        for e in range(2):
            i, f, z, o = (float(logits[g][e]) for g in range(4))
            sigmoid_f, sigmoid_o = 1 / (1 + math.exp(-f)), 1 / (1 + math.exp(-o))
            c[e] = sigmoid_f * c[e] + math.exp(i) * math.tanh(z)
            n[e] = sigmoid_f * n[e] + math.exp(i)
            h[e] = sigmoid_o * c[e] / n[e]
        expected.append(list(h))
    torch.testing.assert_close(slstm(x, R, impl=impl).output[0, :, 0], torch.tensor(expected).double())


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shift", [-1e3, 1e3])
def test_input_gates_of_any_size(impl, shift):
    """Only ratios count: from the first step on, however small that one's gate is."""
    made = inputs(1, 30, torch.float64)
    plain = slstm(made["x"], 0 * made["R"].double(), impl=impl)
    shifted = made["x"].clone()
    shifted[:, :, 0] += shift
    found = slstm(shifted, 0 * made["R"].double(), impl=impl)
    torch.testing.assert_close(found.output, plain.output)
    torch.testing.assert_close(found.final_state[:, 3], plain.final_state[:, 3] + shift)


@pytest.mark.parametrize("impl", [impl for impl in IMPLS if impl != "reference"])
@pytest.mark.parametrize("dim", [1, 3, 4, 37])
def test_accuracy_over_widths_and_packed(impl, dim, assert_accurate):
    """Of whole and partial blocks of channels."""
    made = {"x": torch.randn(2, 30, 4, 3, dim), "R": 0.3 * torch.randn(3, dim, 4, dim) / dim**0.5}
    assert_accurate(partial(slstm, seq_idx=PACKED), made, impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_packed_sequences_equal_separate_ones(impl):
    made = {name: t[:1].double() if name != "R" else t.double() for name, t in inputs(1, 30, torch.float64).items()}
    packed = slstm(**made, seq_idx=PACKED[:1], impl=impl)
    first = slstm(**made | {"x": made["x"][:, :11]}, impl=impl)
    second = slstm(made["x"][:, 11:], made["R"], impl=impl)
    torch.testing.assert_close(packed.output, torch.cat([first.output, second.output], 1))
    torch.testing.assert_close(packed.final_state, second.final_state)


@pytest.mark.parametrize("impl", IMPLS)
def test_gradcheck(impl):
    leaves = [t.double().requires_grad_() for t in inputs(1, 6, torch.float64).values()]
    seq_idx = torch.tensor([[0, 0, 0, 1, 1, 1]])
    function = lambda x, R, state: tuple(slstm(x, R, initial_state=state, seq_idx=seq_idx, impl=impl))  # noqa: E731
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("name", ["x", "R", "initial_state"])
def test_wrong_shape_names_the_argument(name):
    made = inputs(1, 3, torch.float32)
    with pytest.raises(ValueError, match=f"slstm: {name} must have shape"):
        slstm(**made | {name: made[name][..., None]})
