"""The leaky memory beyond the contract: the definition in numbers, what a silent drive leaves, packed sequences."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from cases.leaky_memory import inputs
from zoo.kernels import available_implementations, leaky_memory

IMPLS = available_implementations("leaky_memory")
PACKED = torch.tensor([[3] * 11 + [1] * 19, [0] * 29 + [5]])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_is_the_published_recurrence(impl, activation):
    """In plain numbers: the network sees what the memory keeps, not what it was."""
    made = {name: t.double() for name, t in inputs(1, 6, torch.float64).items()}
    x, W_in, W_out, bias, decay, gain, m = (made[name].tolist() for name in made)
    m, expected = m[0], []
    for t in range(6):
        kept = [decay[d] * m[d] for d in range(5)]
        logits = [x[0][t][h] + sum(kept[d] * W_in[d][h] for d in range(5)) for h in range(9)]
        a = [max(u, 0.0) if activation == "relu" else u / (1 + math.exp(-u)) for u in logits]
        z = [bias[d] + sum(a[h] * W_out[h][d] for h in range(9)) for d in range(5)]
        m = [kept[d] + gain[d] * 1.7159 * math.tanh(2 / 3 * z[d]) for d in range(5)]
        expected.append(m)
    found = leaky_memory(**made, activation=activation, impl=impl)
    torch.testing.assert_close(found.output[0], torch.tensor(expected).double())


@pytest.mark.parametrize("impl", IMPLS)
def test_a_silent_drive_leaves_the_decay_and_any_drive_is_bounded(impl):
    made = {name: t.double() for name, t in inputs(2, 30, torch.float64).items()}
    silent = leaky_memory(**made | {"W_out": 0 * made["W_out"], "bias": 0 * made["bias"]}, impl=impl)
    powers = made["decay"] ** torch.arange(1, 31).double()[:, None]
    torch.testing.assert_close(silent.output, powers * made["initial_state"][:, None])
    loud = leaky_memory(**made | {"W_out": 1e3 * made["W_out"]}, impl=impl).output
    before = torch.cat([made["initial_state"][:, None], loud[:, :-1]], dim=1)
    assert ((loud - made["decay"] * before).abs() <= 1.7159 * made["gain"] + 1e-12).all()


@pytest.mark.parametrize("impl", [impl for impl in IMPLS if impl != "reference"])
@pytest.mark.parametrize(("dim", "hidden"), [(1, 1), (37, 50), (16, 64)])
def test_accuracy_over_widths_and_packed(impl, dim, hidden, assert_accurate):
    """Of whole and partial tiles, and of more sequences than one task has."""
    made = {
        "x": torch.randn(2, 30, hidden), "W_in": 0.2 * torch.randn(dim, hidden) / dim**0.5,
        "W_out": torch.randn(hidden, dim) / hidden**0.5, "bias": torch.randn(dim),
        "decay": 0.7 * torch.rand(dim), "gain": 0.5 * torch.rand(dim),
    }  # fmt: skip
    assert_accurate(partial(leaky_memory, activation="silu", seq_idx=PACKED), made, impl)
    assert_accurate(partial(leaky_memory, activation="silu"), made | {"x": torch.randn(6, 5, hidden)}, impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_packed_sequences_equal_separate_ones(impl):
    made = {name: t.double() for name, t in inputs(1, 30, torch.float64).items()}
    packed = leaky_memory(**made, seq_idx=PACKED[:1], impl=impl)
    first = leaky_memory(**made | {"x": made["x"][:, :11]}, impl=impl)
    fresh = {name: t for name, t in made.items() if name != "initial_state"}
    second = leaky_memory(**fresh | {"x": made["x"][:, 11:]}, impl=impl)
    torch.testing.assert_close(packed.output, torch.cat([first.output, second.output], 1))
    torch.testing.assert_close(packed.final_state, second.final_state)


@pytest.mark.parametrize("impl", IMPLS)
def test_gradcheck(impl):
    """The two widths and the units' own weights, over two sequences."""
    x, W_in, W_out, state = (torch.randn(*shape).double() for shape in ((1, 4, 3), (2, 3), (3, 2), (1, 2)))
    leaves = [t.requires_grad_() for t in (x, W_in, W_out, *torch.rand(3, 2).double().unbind(), state)]
    seq_idx = torch.tensor([[0, 0, 1, 1]])

    def function(*leaves):
        return tuple(
            leaky_memory(*leaves[:-1], activation="silu", initial_state=leaves[-1], seq_idx=seq_idx, impl=impl)
        )

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("name", ["x", "W_in", "W_out", "bias", "decay", "gain", "initial_state"])
def test_wrong_shape_names_the_argument(name):
    made = inputs(1, 3, torch.float32)
    with pytest.raises(ValueError, match=f"leaky_memory: {name} must have shape"):
        leaky_memory(**made | {name: made[name][..., None]})
    with pytest.raises(ValueError, match=r"activation must be one of \('relu', 'silu'\), got 'gelu'"):
        leaky_memory(**made, activation="gelu")
