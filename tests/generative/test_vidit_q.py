"""ViDiT-Q: factors of each range of times, a grid a token, and what they cost in bytes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from tests.cases.diffusion import change, reloaded, seen, small
from zoo.layers.quant import records, stored_bytes
from zoo.quantize import Calibration
from zoo.quantize.vidit_q import factors, in_ranges, typical_inputs


@pytest.fixture(scope="module")
def trained() -> Any:
    return zoo.create_model("dit_nano", pretrained=True).eval()


def test_factors_are_those_of_smoothquant():
    """With all of it in the inputs, in the weights, and halves."""
    matrix, typical = torch.tensor([[1.0, -4.0], [2.0, 1.0]]), torch.tensor([9.0, 1.0])
    for alpha, wanted in ((1.0, (9.0, 1.0)), (0.0, (1 / 2, 1 / 4)), (0.5, (3 / 2**0.5, 1 / 2))):
        c = factors(matrix, typical, alpha)
        torch.testing.assert_close(c / c[1], torch.tensor(wanted) / wanted[1])
        assert c.log().mean().abs() < 1e-6


def test_typical_inputs_are_of_their_range(trained):
    """The average over calls of the mean over images of the largest of all tokens."""
    name, calibration = "blocks.2.mlp.0.weight", seen(trained)
    found = typical_inputs(trained, [name], calibration, (0.6,))[name]
    per_call: list[Tensor] = []
    handle = (
        trained.blocks[2]
        .mlp[0]
        .register_forward_pre_hook(lambda m, args: per_call.append(args[0].abs().amax(1).mean(0)))
    )
    calibration.run(trained)
    handle.remove()
    late, early = (
        0.95 * parts[0] + 0.05 * parts[1] for parts in (per_call[2:], per_call[:2])
    )  # times 1, .75 | .5, .25
    torch.testing.assert_close(found, torch.stack([late, early]))
    with pytest.raises(ValueError, match="no times in range 0"):
        typical_inputs(trained, [name], calibration, (0.1,))
    mixed = Calibration([(torch.arange(4.0).view(4, 1, 1, 1), torch.tensor([0.1, 0.9, 0.2, 0.8]), torch.arange(4))])
    first, second = in_ranges(mixed, (0.5,))
    assert first is not None and second is not None
    assert first.batches[0][2].tolist() == [0, 2] and second.batches[0][0].flatten().tolist() == [1.0, 3.0]


def test_balancing_is_never_worse_and_pays_in_bytes(trained):
    calibration = seen(trained)
    call: dict[str, Any] = {"method": "vidit_q", "bits": 4, "activation_bits": 4, "calibration": calibration}
    plain, one, two = (
        zoo.quantize(copy.deepcopy(trained), **call, **options)
        for options in ({"steps": 0}, {"steps": 2, "times": ()}, {"steps": 2})
    )
    before = change(trained, plain, calibration)
    assert change(trained, one, calibration) <= before and change(trained, two, calibration) <= before
    (form,) = {record.format.inputs for name, record in records(two).items() if "mlp" in name}
    assert form.balanced and form.times == (0.5,) and not records(plain)["blocks.0.mlp.0.weight"].format.inputs.balanced
    linears = [p.numel() for name, p in trained.named_parameters() if p.dim() == 2 and name != "classes.weight"]
    assert stored_bytes(two) - stored_bytes(one) > 0.5 * sum(linears)  # another copy of codes of 4 bits
    with torch.no_grad():
        batch = calibration.batches[0]
        part = two(*(tensor[2:3] for tensor in batch))
        torch.testing.assert_close(two(*batch)[2:3], part, atol=1e-5, rtol=1e-5)  # whatever else is in the batch


@pytest.mark.parametrize(
    ("name", "options"),
    [("dit_nano", {"method": "vidit_q", "steps": 1, "rotate": True}), ("unet_nano", {"method": "vidit_q", "steps": 0})],
)
def test_saved_and_reloaded_bit_equal(name, options, tmp_path):
    model = small(name)
    found = zoo.quantize(copy.deepcopy(model), bits=4, activation_bits=8, calibration=seen(model), **options)
    reloaded(found, tmp_path)
    assert 0 < change(model, found, seen(model, 1)) < 0.3


@pytest.mark.parametrize(("method", "options", "message"), [
    ("vidit_q", {"times": (0.5, 0.5)}, "times must rise between 0 and 1"),
    ("vidit_q", {"steps": -1}, "steps must be at least 0"),
])  # fmt: skip
def test_what_is_refused(method, options, message):
    model = small("dit_nano")
    with pytest.raises(ValueError, match=message):
        zoo.quantize(model, method, calibration=seen(model), **options)
    assert not records(model)
