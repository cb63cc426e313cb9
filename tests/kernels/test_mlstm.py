"""The mLSTM's recurrence beyond the contract: its weights in numbers, large and empty gates, eps, packed sequences."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from cases.mlstm import call, inputs
from zoo.kernels import available_implementations, mlstm

IMPLS = available_implementations("mlstm")
PACKED = torch.tensor([[3] * 11 + [1] * 19, [0] * 29 + [5]])


def made(batch: int = 1, length: int = 30, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Without a state."""
    return {name: t.to(dtype) for name, t in inputs(batch, length, dtype).items() if name != "initial_state"}


@pytest.mark.parametrize("impl", IMPLS)
def test_is_a_normalised_sum_over_the_past(impl):
    """h_i = sum_j w_ij v_j / (max(|sum_j w_ij|, 1) + eps exp(m_i)) with w_ij = q_i k_j exp(a_j + sum of g over (j, i]),
    written out in numbers."""
    given = made(length=13)
    given["log_decay"][:, ::3] += 0.8  # an exponential gate may be larger than 1
    q, k, v, a, g = (t[0, :, 0] for t in given.values())
    expected = torch.zeros(13, 6, dtype=torch.float64)
    for i in range(13):
        logs = torch.stack([a[j] + g[j + 1 : i + 1].sum() for j in range(i + 1)])
        weights = 0.7 * (k[: i + 1] @ q[i]) * logs.exp()
        m = max(logs.max(), g[: i + 1].sum())
        expected[i] = weights @ v[: i + 1] / (weights.sum().abs().clamp(min=1.0) + 0.1 * m.exp())
    output = mlstm(**given, scale=0.7, eps=0.1, chunk_size=4, impl=impl).output
    torch.testing.assert_close(output[0, :, 0], expected)
    output = mlstm(**given, eps=0.1, impl=impl).output
    again = mlstm(**given, scale=5**-0.5, eps=0.1, impl="reference").output
    torch.testing.assert_close(output, again)


@pytest.mark.parametrize("impl", IMPLS)
def test_gates_of_any_size(impl):
    """Only ratios count where the memory outgrows its bound, so gates of exp(+-1000) need no wider numbers."""
    given = made()
    plain = mlstm(**given | {"log_input": given["log_input"] + 60}, eps=0.0, impl=impl).output
    huge = mlstm(**given | {"log_input": given["log_input"] + 1000}, eps=0.0, impl=impl)
    torch.testing.assert_close(huge.output, plain)
    growing = mlstm(**given | {"log_decay": torch.full_like(given["log_decay"], 50.0)}, impl=impl)
    tiny = mlstm(**given | {"log_input": given["log_input"] - 1000}, impl=impl)
    for found in (huge, growing, tiny):
        assert all(part.isfinite().all() for part in found)
    assert not tiny.output.any() and growing.stabilizer.min() > 1400


@pytest.mark.parametrize("impl", IMPLS)
def test_no_input_at_all(impl):
    """Gates of zero leave nothing, and gradients that are numbers."""
    leaves = {name: t.requires_grad_() for name, t in made(length=9, dtype=torch.float32).items()}
    none = {name: torch.full_like(leaves[name], -torch.inf).requires_grad_() for name in ("log_input", "log_decay")}
    found = mlstm(**leaves | none, impl=impl)
    assert not found.output.any() and not found.memory.any()
    for gradient in torch.autograd.grad(found.output.sum(), list((leaves | none).values())):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("impl", [impl for impl in IMPLS if impl != "reference"])
def test_packed_accuracy(impl, assert_accurate):
    assert_accurate(partial(call, seq_idx=PACKED), inputs(2, 30, torch.float32), impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_packed_sequences_equal_separate_ones(impl):
    """Also where a sequence's first input is smaller than what a stabilizer of 0 decays to."""
    given = made()
    given["log_input"] -= 3
    packed = mlstm(**given, seq_idx=PACKED[:1], eps=0.1, impl=impl)
    first = mlstm(**{name: t[:, :11] for name, t in given.items()}, eps=0.1, impl=impl)
    second = mlstm(**{name: t[:, 11:] for name, t in given.items()}, eps=0.1, impl=impl)
    torch.testing.assert_close(packed.output, torch.cat([first.output, second.output], 1))
    for found, expected in zip(packed[1:], second[1:], strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("impl", [impl for impl in IMPLS if impl != "triton"])  # whose interpreter is too slow
def test_gradcheck(impl):
    """With an eps that counts, so that the stabilizers' gradients do."""
    leaves = [t.double().requires_grad_() for t in inputs(1, 4, torch.float64).values()]

    def function(q, k, v, a, g, state):
        C, n, m = state[..., :-1, :-1], state[..., :-1, -1], state[..., -1, -1]
        options = {"memory": C, "normalizer": n, "stabilizer": m, "seq_idx": torch.tensor([[0, 0, 1, 1]])}
        return tuple(mlstm(q, k, v, a, g, **options, eps=0.3, chunk_size=2, impl=impl))

    assert torch.autograd.gradcheck(function, leaves)


def test_a_state_in_part_is_an_error():
    given = made(length=3)
    with pytest.raises(ValueError, match=r"memory, normalizer and stabilizer, all or none; got no \['normalizer'\]"):
        mlstm(**given, memory=torch.zeros(1, 2, 5, 6).double(), stabilizer=torch.zeros(1, 2).double())


@pytest.mark.parametrize("name", ["k", "v", "log_input", "log_decay", "memory", "normalizer", "stabilizer"])
def test_wrong_shape_names_the_argument(name):
    state = {"memory": torch.zeros(1, 2, 5, 6), "normalizer": torch.zeros(1, 2, 5), "stabilizer": torch.zeros(1, 2)}
    given = made(length=3, dtype=torch.float32) | state
    with pytest.raises(ValueError, match=f"mlstm: {name} must have shape"):
        mlstm(**given | {name: given[name][..., None]})
