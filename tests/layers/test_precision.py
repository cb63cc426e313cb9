"""Sensitive parameters and buffers keep float32 through every cast."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.layers.precision import KeepsFloat32


class Wide(KeepsFloat32):
    float32_parameters = ("gain",)
    float32_buffers = ("mean",)

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.full((3,), 1 / 3))
        self.register_buffer("mean", torch.full((3,), 1 / 7))
        self.linear = nn.Linear(3, 3)


def lightning_half(module: nn.Module) -> nn.Module:
    from lightning.pytorch.plugins import HalfPrecision

    return HalfPrecision("bf16-true").convert_module(module)


DOORS = {
    "bfloat16": lambda module: module.bfloat16(),
    "half": lambda module: module.half(),
    "to": lambda module: module.to(torch.bfloat16),
    "to_device": lambda module: module.to(device="cpu", dtype=torch.float16),
    "type": lambda module: module.type(torch.bfloat16),
    "parent": lambda module: nn.Sequential(module).bfloat16()[0],
    "lightning": lightning_half,
    "copied": lambda module: pickle.loads(pickle.dumps(copy.deepcopy(module).bfloat16())).half(),
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_no_cast_rounds_them(door):
    module = Wide()
    module.gain.grad = torch.full((3,), 1 / 3)
    cast = door(module)
    kept: dict[str, Tensor] = {"gain": cast.gain, "mean": cast.mean}
    assert {name: (t.dtype, t[0].item()) for name, t in kept.items()} == {
        "gain": (torch.float32, torch.tensor(1 / 3).item()), "mean": (torch.float32, torch.tensor(1 / 7).item())
    }  # fmt: skip
    assert cast.gain.grad is None or cast.gain.grad.dtype == torch.float32
    assert cast.linear.weight.dtype in (torch.bfloat16, torch.float16)


def test_wider_devices_and_new_tensors():
    assert {t.dtype for t in Wide().double().state_dict().values()} == {torch.float64}
    assert Wide().double().bfloat16().gain.dtype == torch.float32
    meta = Wide().to("meta", torch.bfloat16)
    assert (meta.gain.device.type, meta.gain.dtype, meta.linear.weight.dtype) == ("meta", torch.float32, torch.bfloat16)
    assert meta.to_empty(device="cpu").mean.dtype == torch.float32
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        module = Wide()
    finally:
        torch.set_default_dtype(default)
    assert (module.gain.dtype, module.mean.dtype, module.linear.weight.dtype) == (
        torch.float32, torch.float32, torch.bfloat16
    )  # fmt: skip
    module.load_state_dict(Wide().bfloat16().state_dict() | {"gain": torch.ones(3).bfloat16()}, assign=True)
    assert module.gain.dtype == torch.float32


@pytest.mark.parametrize("name", ["s4d_nano", "deepseek_nano", "routing_nano", "vim_nano", "shvit_nano"])
def test_models_are_the_same_through_every_door(name):
    dtypes = [
        {key: tensor.dtype for key, tensor in [*model.named_parameters(), *model.named_buffers()]}
        for model in (
            zoo.create_model(name, dtype=torch.bfloat16),
            zoo.create_model(name).bfloat16(),
            zoo.create_model(name).double().to(torch.bfloat16),
        )
    ]
    assert dtypes[0] == dtypes[1] == dtypes[2] and {torch.float32, torch.bfloat16} <= set(dtypes[0].values())


def test_multipliers_are_those_of_the_configuration_in_float64():
    """0.3 in float32 is 4e-9 relative off; the parts of in_proj's output are z, x, B, C, dt."""
    torch.manual_seed(0)
    multipliers = (0.3, 0.7, 1.1, 0.9, 1.3)
    scaled = zoo.layers.Mamba2(8, d_state=4, head_dim=4, multipliers=multipliers).double()
    plain = zoo.layers.Mamba2(8, d_state=4, head_dim=4).double()
    plain.load_state_dict(scaled.state_dict())
    widths, rows = (16, 16, 4, 4, 4), plain.in_proj.weight.data
    for part, multiplier in zip(rows.split(widths), multipliers, strict=True):
        part *= multiplier
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(scaled(x), plain(x), rtol=1e-12, atol=1e-14)
