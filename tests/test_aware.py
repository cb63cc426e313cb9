"""Training for a few bits: what is rounded or noisy, what learns, how it ends, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import zoo
from zoo.aware import noise_bits
from zoo.cli import main
from zoo.layers.quant import compressible
from zoo.layers.quant.noise import WeightNoise
from zoo.quantize import Calibration


def inputs(model: Any) -> Tensor:
    if hasattr(model.config, "vocab_size"):
        return torch.arange(38).reshape(2, 19)
    return torch.randn(2, model.config.in_chans, *model.config.image_shape, generator=torch.Generator().manual_seed(0))


def noise(shape: tuple[int, ...], **options: Any) -> WeightNoise:
    return WeightNoise(
        torch.zeros(shape), **{"start": 6.0, "target": 4.0, "block": 32, "seed": 0, "flatten": False} | options
    )


@pytest.mark.parametrize("name", ["transformer_nano", "mamba2_nano", "moe_nano", "vovnet_nano"])
@pytest.mark.parametrize("options", [{"bits": 3}, {"layout": "e2m1", "bits": None}], ids=str)
@torch.no_grad()
def test_it_learns_as_what_quantize_makes_of_it(name, options):
    """Outputs of the model that is trained are those of the records that are made in the end."""
    options = {key: value for key, value in options.items() if value is not None}
    model: Any = zoo.create_model(name, pretrained=True).eval()
    plain = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    x = inputs(model)
    expected = model(x)
    found = zoo.round_weights(model, **options)(x)
    assert (found - expected).norm() > 0.01 * expected.norm()
    assert zoo.settle(model) is model and not zoo.changes.changes_of(model)
    assert all(torch.equal(plain[key], tensor) for key, tensor in model.state_dict().items())
    assert torch.equal(model(x), expected)
    torch.testing.assert_close(zoo.quantize(model, **options)(x), found, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("change", [{"kind": "rounded_weights", "bits": 2}, {"kind": "noisy_weights", "target": 2}])
def test_every_parameter_learns_and_a_folder_keeps_the_change(change, tmp_path):
    model: Any = zoo.create_model("moe_nano", pretrained=True, changes=[change]).train()
    x = inputs(model)
    model(x, labels=x).backward()
    learning = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()]
    assert len(learning) > 0.9 * len(list(model.parameters()))
    assert model.head is not model.embedding
    zoo.save_model(model, tmp_path)
    again: Any = zoo.create_model(f"local-dir:{tmp_path}")
    assert torch.equal(again.eval()(x), model.eval()(x))
    assert zoo.changes.changes_of(again) == zoo.changes.changes_of(model) != ()


def test_noise_is_of_the_size_of_rounding():
    """Its distribution by counts, its size by the maximum of each block, those at the edges cut off."""
    layer, w = noise((70, 40)), torch.randn(70, 40, generator=torch.Generator().manual_seed(1))
    assert layer.share.shape == (3, 2) and torch.equal(layer.bits, torch.full((3, 2), 6.0))
    found = layer.noise(w)
    drawn = layer.drawn(w.shape, w.device)
    for i, j in ((0, 0), (1, 1), (2, 0), (2, 1)):
        part = slice(32 * i, 32 * i + 32), slice(32 * j, 32 * j + 32)
        torch.testing.assert_close(found[part], drawn[part] * 2.0**-5 * w[part].abs().max())
    many = noise((1000, 1000)).drawn(torch.Size((1000, 1000)), w.device)
    for value, chance in ((0, 0.6827), (1, 0.1573), (-1, 0.1573), (2, 0.00135), (-2, 0.00135)):
        share = (many == value).double().mean().item()
        assert abs(share - chance) < 5 * (chance * (1 - chance) / 1e6) ** 0.5
    assert abs(many.var().item() - 0.3254) < 0.005
    assert (found.abs() <= 3 * 2.0**-5 * w.abs().max()).all()


@pytest.mark.parametrize("shape", [(3, 40, 33), (5, 2, 3, 3)])
def test_noise_of_experts_and_convolutions(shape):
    layer = noise(shape, flatten=len(shape) == 4, block=16)
    w = torch.randn(shape)
    y = layer(w)
    assert y.shape == w.shape and not torch.equal(y, w)
    assert layer.share.shape == ((3, 3, 3) if len(shape) == 3 else (1, 2))
    layer(w.requires_grad_()).sum().backward()
    assert torch.equal(w.grad, torch.ones(shape)) and layer.share.grad.any()


def test_the_gradient_of_the_bits_is_that_of_the_formula():
    """The noise halves with each bit: its derivative is -ln 2 of it, times what a share has of the bits."""
    layer, dy = noise((33, 5), start=6.0, target=4.0), torch.randn(33, 5)
    added = layer.noise(torch.randn(33, 5))
    added.backward(dy)
    expected = -2 * math.log(2) * torch.stack([(added * dy)[:32].sum(), (added * dy)[32:].sum()])
    torch.testing.assert_close(layer.share.grad.flatten(), expected.detach())


def test_draws_change_with_steps_and_not_with_anything_else():
    """Evaluation has none, what is recomputed sees the same, and a state goes on where it was saved."""
    layers = [noise((8, 8), seed=seed) for seed in (0, 0, 1)]
    w = torch.randn(8, 8)
    first = layers[0](w)
    torch.manual_seed(5)
    assert torch.equal(layers[0](w), first) and torch.equal(layers[1](w), first)
    assert not torch.equal(layers[2](w), first)
    layers[0].after_step()
    assert not torch.equal(layers[0](w), first)
    layers[1].load_state_dict(layers[0].state_dict())
    assert torch.equal(layers[1](w), layers[0](w))
    assert torch.equal(layers[0].eval()(w), w)


def test_checkpointing_computes_with_the_same_noise():
    model: Any = zoo.noisy_weights(zoo.create_model("transformer_nano", pretrained=True).train(), 3, 2)
    x, found = inputs(model), []
    for again in (False, True):
        model.zero_grad()
        loss = checkpoint(model, x, labels=x, use_reentrant=False) if again else model(x, labels=x)
        loss.backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_step_moves_the_noise_and_decay_takes_the_bits_down():
    model: Any = zoo.noisy_weights(zoo.create_model("transformer_nano").train(), 6, 3)
    x, bits = inputs(model), noise_bits(model)
    tables = {"embedding.weight", "head.weight"} if model.config.tie_embeddings else {"embedding.weight"}
    assert set(bits) == set(compressible(zoo.create_model("transformer_nano"))) - tables
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=1.0)
    before = model(x, labels=x)
    before.backward()
    optimizer.step()
    zoo.after_step(model)
    assert model(x, labels=x) != before
    moved = noise_bits(model)
    assert sum((moved[name] < bits[name]).float().mean().item() for name in bits) > 0.4 * len(bits)
    assert all((found >= 3).all() for found in moved.values())


def test_noise_makes_a_model_bear_rounding(tmp_path):
    """A matrix whose products must come out right learns to be near what two bits can hold."""
    torch.manual_seed(0)
    x, target = torch.randn(256, 16), torch.randn(256, 8)
    lost = {}
    for noisy in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))
        if noisy:
            zoo.noisy_weights(model, 3, 3, block=16)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            (model(x) - target).square().mean().backward()
            optimizer.step()
            zoo.after_step(model)
        with torch.no_grad():
            plain = (zoo.settle(model.eval())(x) - target).square().mean()
            lost[noisy] = ((zoo.quantize(model, bits=2, group_size=16)(x) - target).square().mean() - plain).item()
    assert lost[True] < 0.8 * lost[False]


def test_the_command_settles(tmp_path):
    model = zoo.round_weights(zoo.create_model("transformer_nano"), 3)
    zoo.save_model(model, tmp_path / "trained")
    assert main(["quantize", str(tmp_path / "trained"), str(tmp_path / "small"), "--bits", "3"]) == 0
    small: Any = zoo.create_model(f"local-dir:{tmp_path / 'small'}").eval()
    x = inputs(small)
    torch.testing.assert_close(small(x), model.eval()(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: zoo.round_weights(model, 9), r"bits must be an integer in \[1, 8\], got 9"),
        (lambda model: zoo.round_weights(model, group_size=7), "group_size must divide the inputs of a layer"),
        (lambda model: zoo.noisy_weights(model, 3, 4), "bits go from start down to target, of at least 1"),
        (lambda model: zoo.noisy_weights(model, 4, 0.5), "got start 4, target 0.5 and block 32"),
        (lambda model: zoo.noisy_weights(zoo.round_weights(model)), "trained by rounded_weights already"),
        (lambda model: zoo.quantize(zoo.noisy_weights(model)), r"zoo\.settle\(model\) ends that"),
        (lambda model: zoo.round_weights(zoo.quantize(model)), r"rounded_weights comes before zoo\.factorize"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(zoo.create_model("transformer_nano"))


def test_calibration_alone_is_no_way_out():
    model = zoo.noisy_weights(zoo.create_model("transformer_nano"))
    with pytest.raises(ValueError, match="being trained for a few bits"):
        zoo.quantize(model, "topkld", calibration=Calibration([inputs(model)]))
