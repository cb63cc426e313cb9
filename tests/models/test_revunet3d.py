"""The reversible 3-D U-Net: gradients beside the stored twin, memory over depth, shapes and errors."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.benchmarks.claims.measured import kept_bytes
from zoo.layers import ReversibleSequence

SMALL = {"dims": (8, 16), "expand_ratio": 2, "num_groups": 2}


def opened(**options: Any) -> Any:
    """A model whose branches do something: they start closed."""
    model: Any = zoo.create_model("revunet3d_nano", **{**SMALL, **options})
    for name, parameter in model.named_parameters():
        if name.endswith("norm3.weight"):
            torch.nn.init.normal_(parameter)
    return model


def stored_twin(model: Any) -> Any:
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, ReversibleSequence):
            module.recompute = False
    return twin


def gradients(model: Any, x: Tensor) -> list[Tensor]:
    torch.manual_seed(5)
    model(x).square().sum().backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("drop_rate", [0.0, 0.3])
def test_gradients_are_those_of_the_stored_twin(drop_rate):
    model = opened(depth=3, drop_rate=drop_rate).double().train()
    twin = stored_twin(model)
    x = torch.randn(2, 1, 8, 4, 6, dtype=torch.float64)
    for a, b in zip(gradients(model, x), gradients(twin, x), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def test_the_configuration_chooses_between_recomputing_and_storing():
    for reversible in (True, False):
        model = opened(reversible=reversible)
        sequences = [module for module in model.modules() if isinstance(module, ReversibleSequence)]
        assert len(sequences) == 4 and all(sequence.recompute == reversible for sequence in sequences)


def test_activation_memory_is_flat_in_depth():
    x = torch.randn(1, 1, 16, 16, 16)
    flat = [kept_bytes(opened(depth=depth), x) for depth in (1, 2, 4, 8)]
    linear = [kept_bytes(opened(depth=depth, reversible=False), x) for depth in (1, 2, 4, 8)]
    assert len(set(flat)) == 1
    assert linear[3] - linear[2] == 4 * (linear[1] - linear[0]) and linear[3] > 20 * flat[3]


def test_activations_of_the_size_of_the_paper():
    """A volume of 128 voxels a side: 1.5 GiB instead of 49, and as much when it is twice as deep."""
    x = torch.empty(1, 4, 128, 128, 128, device="meta")
    kept = [
        kept_bytes(zoo.create_model("revunet3d", device="meta", **options), x)
        for options in ({}, {"depth": 2}, {"reversible": False})
    ]
    assert kept[0] == kept[1] < 1.6 * 2**30 and kept[2] > 30 * kept[0]


def test_every_level_reads_the_whole_of_what_is_below_and_adds_the_encoder():
    """Without branches: sums, pooling, resampling and 1 x 1 x 1 convolutions remain."""
    model: Any = zoo.create_model("revunet3d_nano", **SMALL, depth=1).double()
    x = torch.randn(1, 1, 4, 4, 4, dtype=torch.float64)
    fine = model.stem(x)
    down, up = model.encoder[1][1], model.decoder[0][1]
    coarse = down(torch.nn.functional.max_pool3d(fine, 2))
    lifted = torch.nn.functional.interpolate(up(coarse), scale_factor=2, mode="trilinear", align_corners=False)
    torch.testing.assert_close(model(x), model.head(fine + lifted))


def test_any_size_that_is_a_multiple_of_the_stride():
    model: Any = zoo.create_model("revunet3d_nano").eval()
    assert model(torch.randn(1, 1, 4, 8, 12)).shape == (1, 2, 4, 8, 12)
    wide: Any = zoo.create_model("revunet3d_nano", in_chans=3, num_classes=5, img_size=(4, 8, 8))
    assert wide(torch.randn(2, 3, 4, 4, 4)).shape == (2, 5, 4, 4, 4)


def test_size_of_the_paper():
    """60 to 480 channels on five levels, two branches a block, in the encoder and in the decoder."""
    dims, expand = (60, 120, 240, 360, 480), 6
    branch = [2 * expand * c * c + 27 * expand * c + 4 * expand * c + 2 * c for c in (dim // 2 for dim in dims)]
    joints = [a * b + b + a * b + a for a, b in pairwise(dims)]
    total = 4 * sum(branch) + sum(joints) + 27 * 4 * 60 + 60 * 3 + 3
    assert zoo.model_info("revunet3d").num_parameters == total == 6_300_003
    model: Any = zoo.create_model("revunet3d", device="meta")
    assert model(torch.empty(1, 4, 128, 128, 128, device="meta")).shape == (1, 3, 128, 128, 128)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": (15, 32)}, "dims must be even"),
        ({"num_groups": 3}, "num_groups must divide the halves"),
        ({"img_size": 18}, "multiples of 4 for 3 levels, got 18"),
        ({"img_size": (16, 16)}, "one side or three"),
        ({"depth": 0}, "depth must be a positive integer"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model("revunet3d_nano", **options)


def test_wrong_inputs():
    model: Any = zoo.create_model("revunet3d_nano")
    for wrong, message in (
        (torch.randn(1, 1, 16, 18, 16), r"multiples of 4, as 3 levels halve them 2 times, got \(16, 18, 16\): pad"),
        (torch.randn(1, 2, 16, 16, 16), r"shape \(batch, 1, depth, height, width\)"),
        (torch.randn(1, 16, 16, 16), r"shape \(batch, 1, depth, height, width\)"),
        (torch.zeros(1, 1, 16, 16, 16, dtype=torch.int64), "must be floating point"),
    ):
        with pytest.raises(ValueError, match=message):
            model(wrong)
