"""Emulated formats: models as torch has them in its own dtypes, what learns, what is saved, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.kernels.common.minifloat import BlockScaled, Minifloat
from zoo.layers.quant import compressible
from zoo.layers.quant.rounded import Rounded


def inputs(model: Any) -> Tensor:
    if hasattr(model.config, "vocab_size"):
        return torch.arange(38).reshape(2, 19)
    return torch.randn(2, model.config.in_chans, *model.config.image_shape)


def test_float32_changes_nothing_and_bfloat16_is_rounded_everywhere():
    model = zoo.create_model("transformer_nano").eval()
    expected, x = model(inputs(model)), inputs(model)
    assert torch.equal(zoo.emulate(model, 8, 23)(x), expected)
    rounded = zoo.emulate(zoo.create_model("transformer_nano").eval(), 8, 7)
    seen: list[Tensor] = []
    for module in rounded.modules():
        module.register_forward_hook(lambda _, __, y: seen.append(y) if isinstance(y, Tensor) else None)
    found = rounded(x)
    assert all(torch.equal(y, y.bfloat16().float()) for y in seen) and found.dtype == torch.float32
    names = [name for name in compressible(zoo.create_model("transformer_nano")) if "embedding" not in name]
    for name in names:
        place, _, attribute = name.rpartition(".")
        weight = getattr(rounded.get_submodule(place), attribute)
        assert torch.equal(weight, weight.bfloat16().float())


@pytest.mark.parametrize("name", ["transformer_nano", "mamba2_nano", "moe_nano", "vit_nano", "vovnet_nano"])
def test_fewer_bits_of_mantissa_are_further_off(name):
    """The error doubles with each bit that is taken; weights alone, so that nothing but rounding is between."""
    x, found = inputs(zoo.create_model(name)), []
    for mantissa in (23, 10, 6, 3):
        torch.manual_seed(0)
        model = zoo.emulate(zoo.create_model(name).eval(), 5, mantissa, activations=False)
        with torch.no_grad():
            found.append(model(x))
    errors = [(y - found[0]).norm().item() for y in found[1:]]
    assert 0 < 4 * errors[0] < errors[1] and 2 * errors[1] < errors[2]


def test_every_parameter_learns():
    model = zoo.emulate(zoo.create_model("moe_nano"), 4, 3, largest=448.0, saturate=True)
    tokens = inputs(model)
    model(tokens, labels=tokens).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert sum(bool(p.grad.any()) for p in model.parameters()) > 0.9 * len(list(model.parameters()))


def test_the_gradient_passes_straight_through():
    x = torch.linspace(-3, 3, 50, requires_grad=True)
    y = Rounded(Minifloat(2, 1, 6.0), "up")(x)
    (gradient,) = torch.autograd.grad((y * torch.arange(50)).sum(), x)
    assert torch.equal(gradient, torch.arange(50.0)) and (y >= x).all() and not torch.equal(y, x)


def test_it_is_saved(tmp_path):
    model = zoo.emulate(zoo.create_model("mamba2_nano").eval(), 5, 2, rounding="zero")
    again = zoo.create_model(f"local-dir:{zoo.save_model(model, tmp_path)}").eval()
    assert torch.equal(again(inputs(again)), model(inputs(model)))
    assert zoo.changes.changes_of(again) == zoo.changes.changes_of(model) != ()


def test_fixed_point_numbers_everywhere(tmp_path):
    model: Any = zoo.emulate(zoo.create_model("transformer_nano").eval(), fixed=(4, 6), rounding="ties_away")
    seen: list[Tensor] = []
    for module in model.modules():
        module.register_forward_hook(lambda _, __, y: seen.append(y) if isinstance(y, Tensor) else None)
    x = inputs(model)
    found = model(x)
    assert seen and all(torch.equal(y, (64 * y).round() / 64) and y.min() >= -8 and y.max() < 8 for y in seen)
    again: Any = zoo.create_model(f"local-dir:{zoo.save_model(model, tmp_path)}").eval()
    assert torch.equal(again(x), found)


@pytest.mark.parametrize("name", ["transformer_nano", "moe_nano", "vovnet_nano"])
def test_blocks_lie_along_the_inputs_of_an_output(name, tmp_path):
    """Of linear layers, experts and convolutions, each by hand; and the last axis of what modules give."""
    plain: Any = zoo.create_model(name).eval()
    model: Any = zoo.emulate(zoo.create_model(name).eval(), 2, 1, largest=6.0, block=16)
    model.load_state_dict(plain.state_dict(), strict=False)
    kind, held = BlockScaled(Minifloat(2, 1, 6.0), 16), dict(model.named_parameters())
    for key in compressible(plain):
        place, _, attribute = key.rpartition(".")
        if "embedding" in key or f"{place}.parametrizations.{attribute}.original" not in held:
            continue
        w = held[f"{place}.parametrizations.{attribute}.original"].detach()
        axis = -1 if w.dim() == 2 else -2 if w.dim() == 3 else 1
        found = getattr(model.get_submodule(place), attribute)
        assert torch.equal(found, kind.round(w.movedim(axis, -1)).movedim(-1, axis)), key
    seen: list[Tensor] = []
    for place, module in model.named_modules():
        if "parametrizations" not in place:
            module.register_forward_hook(lambda _, __, y: seen.append(y) if isinstance(y, Tensor) else None)
    x = inputs(model)
    with torch.no_grad():
        found = model(x)
        again: Any = zoo.create_model(f"local-dir:{zoo.save_model(model, tmp_path)}").eval()
        assert torch.equal(again(x), found)
    for y in seen:
        rows = y.movedim(1 if y.dim() > 3 and name == "vovnet_nano" else -1, -1)
        blocks = torch.nn.functional.pad(rows, (0, -rows.shape[-1] % 16)).reshape(-1, 16)
        assert all(len(block.abs().unique()) <= 8 for block in blocks[:20])


@pytest.mark.parametrize("name", ["transformer_nano", "falcon_h1_nano", "moe_nano"])
def test_no_block_looks_at_later_tokens(name):
    model: Any = zoo.emulate(zoo.create_model(name).eval(), 2, 1, largest=6.0, block=32)
    x = inputs(model)
    changed = torch.cat([x[:, :-1], x[:, -1:] + 1], 1)
    with torch.no_grad():
        assert torch.equal(model(x)[:, :-1], model(changed)[:, :-1])


def test_wider_exponents_than_the_model_has():
    """In float64 they are emulated, and eleven bits with 52 of mantissa change nothing; in float32 they are refused."""
    model: Any = zoo.create_model("transformer_nano").eval().double()
    x = inputs(model)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(zoo.emulate(model, 11, 52)(x), expected) and expected.dtype == torch.float64
        narrow: Any = zoo.emulate(zoo.create_model("transformer_nano").eval(), 9, 8)
        with pytest.raises(
            ValueError, match=r"9 bits of exponent and 8 of mantissa are rounded to in float64, got torch"
        ):
            narrow(x)
        assert torch.equal(narrow.double()(x), narrow(x))


def test_draws_follow_the_seed():
    model = zoo.emulate(zoo.create_model("transformer_nano").eval(), 5, 2, rounding="stochastic")
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(model(inputs(model)))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("prepare", "options", "message"),
    [
        (None, {"exponent_bits": 12}, "a format has 1 to 11 bits of exponent"),
        (None, {"block": 0}, "block must be a number of neighbours, got 0"),
        (None, {"rounding": "even"}, "rounding must be one of"),
        (None, {"fixed": (4, 4)}, r"give exponent_bits and mantissa_bits, or fixed=\(before, after\) alone"),
        (None, {"mantissa_bits": None}, r"alone, got \[4\] and None"),
        (None, {"weights": False, "activations": False}, "there is nothing to round"),
        (lambda model: zoo.emulate(model, 5, 2), {}, "the model is emulated in a format already"),
        (zoo.quantize, {}, r"emulated comes before zoo\.factorize and zoo\.quantize"),
    ],
)
def test_what_is_refused(prepare, options, message):
    model = zoo.create_model("transformer_nano")
    if prepare is not None:
        prepare(model)
    with pytest.raises(ValueError, match=message):
        zoo.emulate(model, **{"exponent_bits": 4, "mantissa_bits": 3} | options)
