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


def forgetting(case: Case, length: int, steps: torch.Tensor) -> dict[str, torch.Tensor]:
    """Inputs with a log decay of -inf at ``steps`` (T,), and nothing there that reads the state of before: no rank-one
    part, no momentum."""
    inputs = {name: t.double() for name, t in case.inputs(2, length, torch.float64).items()}
    for name in {"log_decay", "log_momentum"} & inputs.keys():
        inputs[name][:, steps] = -torch.inf
    for name in ({"k", "rate"} if "log_momentum" in inputs else {"a", "b"}) & inputs.keys():
        inputs[name][:, steps] = 0
    return inputs


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
    assert_forgets(case, impl, forgetting(case, 20, starts), starts)


@pytest.mark.parametrize("impl", available_implementations("generalized_delta_rule"))
def test_what_the_rank_one_part_reads_outlives_the_decay(impl):
    """Of the generalised delta rule: S_t = b_t (a_t^T S_{t-1}) + k_t v_t^T where the decay is 0."""
    case = next(case for case in GATED if case.operation == "generalized_delta_rule")
    inputs = {name: t.double() for name, t in case.inputs(2, 20, torch.float64).items()}
    inputs["log_decay"][:, [3, 4, 16]] = -torch.inf
    inputs["log_decay"][:, 9, :, ::2] = -torch.inf
    state, outputs = inputs["initial_state"], []
    for t in range(20):
        q, k, v, a, b, decay = (inputs[name][:, t] for name in ("q", "k", "v", "a", "b", "log_decay"))
        read = torch.einsum("bhk,bhkv->bhv", a, state)
        state = decay.exp()[..., None] * state + torch.einsum(
            "nbhk,nbhv->bhkv", torch.stack([b, k]), torch.stack([read, v])
        )
        outputs.append(torch.einsum("bhk,bhkv->bhv", q, state) * q.shape[-1] ** -0.5)
    expected = outputs_and_gradients(case.call, inputs, "reference")
    torch.testing.assert_close(expected["output 0"], torch.stack(outputs, dim=1))
    torch.testing.assert_close(expected["output 1"], state)
    for name, found in outputs_and_gradients(case.call, inputs, impl).items():
        torch.testing.assert_close(found, expected[name], msg=lambda text, name=name: f"{name}: {text}")


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
    if case in RATED:
        inputs = {name: t.double() for name, t in case.inputs(2, 1, torch.float64).items()}
        inputs["A"].fill_(-torch.inf)
    else:
        inputs = forgetting(case, 1, torch.ones(1, dtype=torch.bool))
    found = outputs_and_gradients(case.call, inputs, "auto")
    expected = outputs_and_gradients(case.call, inputs | {"initial_state": 0 * inputs["initial_state"]}, "auto")
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name] if "initial" not in name else torch.zeros_like(value))
