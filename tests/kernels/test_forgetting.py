"""A decay of zero, which a log decay of -inf is, forgets the state: as if another sequence began at that step."""

from __future__ import annotations

import pytest
import torch

from cases import Case, all_cases, outputs_and_gradients
from zoo.kernels import available_implementations

GATED = [case for case in all_cases() if "log_decay" in case.over_time]
RATED = [case for case in all_cases() if case.operation in ("ssd", "selective_scan") and case.name == case.operation]


def runs(cases: list[Case]) -> list:
    names = [(case, impl) for case in cases for impl in available_implementations(case.operation)]
    return [pytest.param(case, impl, id=f"{case.name}-{impl}") for case, impl in names]


def assert_forgets(case: Case, impl: str, forgetful: dict, starts: torch.Tensor) -> None:
    """``forgetful`` inputs against the same ones in sequences that begin at ``starts`` (T,)."""
    plain = {name: t.nan_to_num(neginf=-1.0) for name, t in forgetful.items()}
    packed = plain | {"seq_idx": starts.cumsum(0).expand(len(forgetful["initial_state"]), -1)}
    expected = outputs_and_gradients(case.call, packed, "reference")
    if starts[0]:
        expected["gradient of initial_state"].zero_()
    for name, found in outputs_and_gradients(case.call, forgetful, impl).items():
        torch.testing.assert_close(found, expected[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("case", "impl"), runs(GATED))
def test_a_log_decay_of_minus_infinity(case, impl):
    starts = torch.zeros(20, dtype=torch.bool).index_fill(0, torch.tensor([3, 4, 16]), True)
    inputs = {name: t.double() for name, t in case.inputs(1, 20, torch.float64).items()}
    inputs["log_decay"][:, starts] = -torch.inf
    assert_forgets(case, impl, inputs, starts)


@pytest.mark.parametrize(("case", "impl"), runs(RATED))
def test_a_rate_of_minus_infinity(case, impl):
    starts = torch.ones(20, dtype=torch.bool)
    inputs = {name: t.double() for name, t in case.inputs(1, 20, torch.float64).items()}
    inputs["initial_state"].zero_()
    inputs["A"].fill_(-torch.inf)
    assert_forgets(case, impl, inputs, starts)


@pytest.mark.parametrize(("case", "impl"), runs(RATED))
def test_huge_steps(case, impl):
    """One in every channel, of an input of 0, so that nothing but the decay is huge."""
    starts = torch.arange(20) == 7
    inputs = {name: t.double() for name, t in case.inputs(1, 20, torch.float64).items()}
    inputs["x"][:, starts] = 0
    inputs["A"].fill_(-1.0)
    slow = inputs | {"dt": inputs["dt"] * 0.01}
    huge = torch.tensor([1e5, 1e8, 1e15, 1e30, 1e6, 1e7])[: inputs["dt"].shape[-1]].double()
    inputs["dt"] = torch.where(starts[:, None], huge, slow["dt"])
    expected = outputs_and_gradients(case.call, slow | {"seq_idx": starts.long().cumsum(0).expand(1, -1)}, "reference")
    found = outputs_and_gradients(case.call, inputs, impl)
    for name in (
        "output 0",
        "output 1",
        "gradient of A",
        "gradient of B",
        "gradient of C",
        "gradient of initial_state",
    ):
        torch.testing.assert_close(found[name], expected[name])
    torch.testing.assert_close(found["gradient of dt"][:, ~starts], expected["gradient of dt"][:, ~starts])


@pytest.mark.parametrize("case", [*GATED, *RATED], ids=lambda case: case.name)
def test_in_a_single_step(case):
    inputs = {name: t.double() for name, t in case.inputs(2, 1, torch.float64).items()}
    inputs["A" if case in RATED else "log_decay"].fill_(-torch.inf)
    found = outputs_and_gradients(case.call, inputs, "auto")
    expected = outputs_and_gradients(case.call, inputs | {"initial_state": 0 * inputs["initial_state"]}, "auto")
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name] if "initial" not in name else torch.zeros_like(value))
