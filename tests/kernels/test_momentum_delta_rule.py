"""The delta rule with momentum: its special cases, continuing, packed sequences and wrong arguments."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from cases.momentum_delta_rule import inputs
from zoo.kernels import available_implementations, delta_rule
from zoo.kernels.momentum_delta_rule import momentum_delta_rule

IMPLS = available_implementations("momentum_delta_rule")
FAST = [impl for impl in IMPLS if impl != "reference"]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def drawn(length: int = 23) -> dict[str, Tensor]:
    return {name: t.double() for name, t in inputs(2, length, torch.float64).items()}


def sized(impl: str, key_dim: int, value_dim: int, length: int = 90, heads: int = 2) -> dict[str, Tensor]:
    """Float32, at most 19 steps of one head for the interpreted kernels."""
    length, heads = (min(length, 19), 1) if impl == "triton" else (length, heads)
    q, k = (torch.nn.functional.normalize(torch.randn(1, length, heads, key_dim), dim=-1) for _ in range(2))
    rate, decay, momentum = torch.rand(3, 1, length, heads)
    gates = {"rate": rate, "log_decay": -0.2 * decay, "log_momentum": (0.9 * momentum + 0.05).log()}
    states = {name: torch.randn(1, heads, key_dim, value_dim) for name in ("initial_state", "initial_momentum")}
    return {"q": q, "k": k, "v": torch.randn(1, length, heads, value_dim), **gates, **states}


@pytest.mark.parametrize("impl", IMPLS)
def test_without_momentum_it_is_the_delta_rule(impl):
    """Whose correction is of the decayed state; the momentum is the newest correction."""
    given = drawn() | {"log_momentum": torch.full((2, 23, 2), -torch.inf).double()}
    given.pop("initial_momentum")
    kept = given["log_decay"].exp()
    expected = delta_rule(
        given["q"], given["k"], kept[..., None] * given["v"], given["rate"] / kept, log_decay=given["log_decay"],
        initial_state=given["initial_state"],
    )  # fmt: skip
    found = momentum_delta_rule(**given, chunk_size=4, impl=impl)
    close(found.output, expected.output)
    close(found.final_state, expected.final_state)


@pytest.mark.parametrize("impl", IMPLS)
def test_two_states_continue_a_sequence(impl):
    given, parts = drawn(), []
    states = {name: given.pop(name) for name in ("initial_state", "initial_momentum")}
    whole = momentum_delta_rule(**given, **states, chunk_size=8, impl=impl)
    for part in (slice(0, 9), slice(9, 10), slice(10, 23)):
        output, *after = momentum_delta_rule(**{n: t[:, part] for n, t in given.items()}, **states, impl=impl)
        states = dict(zip(states, after, strict=True))
        parts.append(output)
    close(torch.cat(parts, 1), whole.output)
    for found, expected in zip(after, whole[1:], strict=True):
        close(found, expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_packed_sequences_are_each_as_if_alone(impl):
    given = drawn()
    states = {name: given.pop(name) for name in ("initial_state", "initial_momentum")}
    seq_idx = torch.tensor([[0] * 7 + [1] * 2 + [2] * 14, [4] * 13 + [5] * 10])
    found = momentum_delta_rule(**given, **states, seq_idx=seq_idx, chunk_size=8, impl=impl)
    for row, cuts in enumerate([(0, 7, 9, 23), (0, 13, 23)]):
        for begin, end in pairwise(cuts):
            one = {name: t[row : row + 1, begin:end] for name, t in given.items()}
            start = {} if begin else {name: t[row : row + 1] for name, t in states.items()}
            alone = momentum_delta_rule(**one, **start, impl="reference")
            close(found.output[row : row + 1, begin:end], alone.output)
        close(found.final_momentum[row], alone.final_momentum[0])


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("shape", [(1, 1), (17, 9), (70, 40)], ids=str)
def test_accuracy_over_sizes(shape, impl, assert_accurate):
    assert_accurate(partial(momentum_delta_rule, chunk_size=16), sized(impl, *shape), impl)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("gate", ["log_decay", "log_momentum"])
def test_accuracy_at_extreme_gates(gate, impl, assert_accurate):
    """None, strong ones, and small ones behind a huge one."""
    given = sized(impl, 16, 5)
    step = torch.arange(given[gate].shape[1])[:, None]
    given[gate] = torch.where(step < 6, 0.0, torch.where(step < 12, -50.0, 0.05 * given[gate]))
    given[gate][:, 15] = -1e4
    assert_accurate(momentum_delta_rule, given, impl)


@pytest.mark.parametrize("impl", FAST)
def test_gradcheck(impl):
    given = {name: t.double().requires_grad_() for name, t in sized(impl, 2, 2, length=11, heads=1).items()}
    seq_idx = (torch.arange(11) >= 6).long()[None]

    def call(*tensors: Tensor):
        return momentum_delta_rule(**dict(zip(given, tensors, strict=True)), seq_idx=seq_idx, chunk_size=4, impl=impl)

    assert torch.autograd.gradcheck(call, tuple(given.values()), fast_mode=impl == "triton")


def test_implementations():
    assert IMPLS == ["native", "chunked", "reference", "triton"]


def test_wrong_arguments_say_the_rule():
    given = drawn(5)
    with pytest.raises(ValueError, match="momentum_delta_rule: rate must have shape"):
        momentum_delta_rule(**given | {"rate": given["rate"][:, :4]})
    with pytest.raises(ValueError, match="momentum_delta_rule: initial_momentum must have shape"):
        momentum_delta_rule(**given | {"initial_momentum": given["initial_state"][:, :, :3]})
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got T 5, chunk_size 0"):
        momentum_delta_rule(**given, chunk_size=0)
