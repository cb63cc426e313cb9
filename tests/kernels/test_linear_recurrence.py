"""The diagonal linear recurrence beyond the contract: packed sequences, tiles, extreme decays, a closed form."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from cases.linear_recurrence import inputs
from zoo.kernels import available_implementations, linear_recurrence

IMPLS = [impl for impl in available_implementations("linear_recurrence") if impl != "reference"]
PACKED = torch.tensor([[3] * 11 + [1] * 19, [0] * 29 + [5]])


def test_a_constant_decay_is_a_geometric_series():
    x, decay = torch.ones(1, 30, 3, dtype=torch.float64), torch.tensor([0.5, 0.9, 0.0]).double()
    found, final = linear_recurrence(x, decay.log().expand_as(x))
    expected = (1 - decay ** torch.arange(1, 31).double()[:, None]) / (1 - decay)
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(final[0], expected[-1])


@pytest.mark.parametrize("impl", IMPLS)
def test_packed_accuracy(impl, assert_accurate):
    assert_accurate(partial(linear_recurrence, seq_idx=PACKED), inputs(2, 30, torch.float32), impl)


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
def test_packed_sequences_equal_separate_ones(impl):
    made = {name: t[:1].double() for name, t in inputs(1, 30, torch.float64).items()}
    state = made.pop("initial_state")
    packed, final = linear_recurrence(**made, initial_state=state, seq_idx=PACKED[:1], impl=impl)
    first, _ = linear_recurrence(**{k: v[:, :11] for k, v in made.items()}, initial_state=state, impl=impl)
    second, last = linear_recurrence(**{k: v[:, 11:] for k, v in made.items()}, impl=impl)
    torch.testing.assert_close(packed, torch.cat([first, second], 1))
    torch.testing.assert_close(final, last)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dim", [1, 64, 67])
def test_accuracy_over_widths(impl, dim, assert_accurate):
    """One channel, whole blocks of channels, and a block with one left over."""
    made = {"x": torch.randn(2, 9, dim), "log_decay": -torch.rand(2, 9, dim), "initial_state": torch.randn(2, dim)}
    assert_accurate(linear_recurrence, made, impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_small_decays_after_a_huge_one(impl, assert_accurate):
    made = inputs(1, 14, torch.float32)
    made["log_decay"] = made["log_decay"] * 0.01
    made["log_decay"][:, 5] = -1e4
    assert_accurate(linear_recurrence, made, impl)


def test_triton_block_sizes_do_not_matter(monkeypatch):
    triton = pytest.importorskip("zoo.kernels.linear_recurrence.triton")
    if "triton" not in IMPLS:
        pytest.skip("Triton cannot run here")
    made = {name: t.requires_grad_() for name, t in inputs(2, 21, torch.float32).items()}
    wanted = list(made.values())

    def everything(impl: str) -> list[torch.Tensor]:
        found = linear_recurrence(**made, seq_idx=PACKED[:, -21:], impl=impl)
        return [*found, *torch.autograd.grad(sum(o.square().sum() for o in found), wanted)]

    expected = everything("reference")
    for steps, channels in ((4, 1), (16, 2), (32, 8)):
        monkeypatch.setattr(triton, "DEFAULT", {"steps": steps, "channels": channels, "warps": 1})
        for a, b in zip(everything("triton"), expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("change", ["log_decay", "initial_state"])
def test_wrong_shape_names_the_argument(change):
    made = inputs(2, 5, torch.float32)
    made[change] = made[change][..., None]
    with pytest.raises(ValueError, match=f"linear_recurrence: {change} must have shape"):
        linear_recurrence(**made)
