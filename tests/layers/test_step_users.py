"""Models that step by programs, used by several at once, and copied meanwhile."""

from __future__ import annotations

import copy
import io
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import zoo
from zoo.kernels import native
from zoo.kernels.step_program import SOURCE
from zoo.layers.step import programmed
from zoo.sparsify import Calibration, nbytes_read

pytestmark = pytest.mark.skipif(
    native.obstacle(SOURCE, torch.device("cpu")) is not None, reason="there is no C compiler"
)
PROMPT = torch.tensor([[1, 2, 3]])


def bytewise(model):
    """As ``torch.save`` writes it and reads it again."""
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def test_threads_that_generate_with_one_model_do_not_disturb_each_other():
    model = zoo.create_model("transformer_nano").eval()
    expected = zoo.generate(model, PROMPT, 15, temperature=0)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: zoo.generate(model, PROMPT, 15, temperature=0), range(40)))
    finally:
        sys.setswitchinterval(before)
    assert all(torch.equal(one, expected) for one in found) and "stepper" not in vars(model)


def test_a_stepper_stays_while_anybody_uses_it_and_compares_while_anybody_asks_for_it():
    model = zoo.create_model("transformer_nano").eval().bfloat16()
    first, second = programmed(model, alone=True), programmed(model)
    first.__enter__()
    second.__enter__()
    assert not all(model.stepper.users)
    first.__exit__(None, None, None)
    assert model.stepper is not None and "forward" in vars(model.head)
    second.__exit__(None, None, None)
    assert model.stepper is None and "forward" not in vars(model.head)


@pytest.mark.parametrize("copied", [copy.deepcopy, bytewise])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_in_the_middle_of_a_stream_has_no_programs_and_its_own_weights(copied, dtype):
    model = zoo.create_model("transformer_nano").eval().to(dtype)
    said = zoo.stream(model, PROMPT, 5, temperature=0)
    next(said)
    next(said)
    other = copied(model)
    list(said)
    expected = zoo.generate(model, PROMPT, 5, temperature=0)
    assert torch.equal(zoo.generate(other, PROMPT, 5, temperature=0), expected)
    with torch.no_grad():
        model.head.weight.zero_()
    assert torch.equal(zoo.generate(other, PROMPT, 5, temperature=0), expected)
    assert "stepper" not in vars(other) and "forward" not in vars(other.head)


def test_a_share_of_inputs_is_not_shown_after_steps_that_do_not_count_it():
    model = zoo.create_model("transformer_nano").eval()
    zoo.sparsify(model, "r_sparse", calibration=Calibration([PROMPT]))
    model(PROMPT)
    assert nbytes_read(model) > 0
    zoo.generate(model, PROMPT, 3)
    with pytest.raises(ValueError, match="call model"):
        nbytes_read(model)
