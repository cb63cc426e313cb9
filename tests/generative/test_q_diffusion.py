"""Q-Diffusion: what it is calibrated with, rounding that learns, and grids for both sides of what is joined."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import zoo
from tests.cases.diffusion import change, reloaded, seen, small
from zoo.cli import main
from zoo.layers.quant import Record, matrices, records
from zoo.quantize import METHODS, Calibration
from zoo.quantize.blocks import calls
from zoo.quantize.q_diffusion import Unit, joined, start
from zoo.quantize.static_inputs import input_grid
from zoo.quantize.units import units


@pytest.fixture(scope="module")
def trained() -> Any:
    return zoo.create_model("dit_nano", pretrained=True).eval()


def test_samples_are_what_the_model_is_called_with():
    model = small("dit_nano").train()
    found = Calibration.of_samples(model, count=12, steps=4, at=(0, 3), guidance=1.0)
    assert model.training and not model._forward_pre_hooks
    (first, t, classes), (_, last, _) = found.batches
    assert len(first) == 24 and t.unique().tolist() == [1.0] and last.unique().tolist() == [0.25]
    assert set(classes[:12].tolist()) == set(range(11)) and set(classes[12:].tolist()) == {10}
    noise = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first[:12], noise) and torch.equal(first[:12], first[12:])
    with pytest.raises(ValueError, match=r"at must hold steps from 0 to 3, got \[4\]"):
        Calibration.of_samples(model, steps=4, at=(4,))
    with pytest.raises(ValueError, match="is no diffusion model"):
        Calibration.of_samples(zoo.create_model("transformer_nano"))
    with pytest.raises(ValueError, match="calibrate it with tuples of them"):
        zoo.quantize(model, "q_diffusion", calibration=Calibration([torch.zeros(2, 1, 8, 8)]))


def test_units_are_blocks_in_their_order():
    model = small("unet_nano")
    names = [name for name, p in model.named_parameters() if name.endswith("weight") and p.dim() > 1]
    order = list(units(model, names, seen(model)))
    assert order[:4] == [
        "time_embedding.linear_1",
        "time_embedding.linear_2",
        "conv_in",
        "down_blocks.0.resnets.0",
    ] or ({"conv_in", "classes"} <= set(order))
    place = {name: index for index, name in enumerate(order)}
    wanted = ["conv_in", "down_blocks.0.resnets.0", "down_blocks.0.downsamplers.0", "down_blocks.1.attentions.0",
              "up_blocks.0.resnets.0", "up_blocks.0.attentions.0", "up_blocks.0.resnets.1",
              "up_blocks.0.upsamplers.0", "up_blocks.1.resnets.0", "conv_out"]  # fmt: skip
    assert [place[name] for name in wanted] == sorted(place[name] for name in wanted)
    every = [weight for inside in units(model, names, seen(model)).values() for weight in inside]
    assert sorted(every) == sorted(names)


def unit(model: Any, name: str, **options: Any) -> Unit:
    method: Any = METHODS["q_diffusion"](**options)
    inside = [weight for weight, p in model.named_parameters() if weight.startswith(f"{name}.") and p.dim() > 1]
    parts = method._parts(model, inside)
    held = calls(model, name, seen(model))
    return Unit(method, model, name, {weight: parts[weight.removesuffix(".weight")] for weight in inside}, held, held)


def test_rounding_begins_at_the_weights_and_ends_at_a_neighbour(trained):
    one = unit(trained, "time.2", bits=4, steps=60, lr=0.02)
    for weight, (_, below, above) in one.levels.items():
        matrix = matrices(trained, weight)
        h = (1.2 * one.first(weight).sigmoid() - 0.1).clamp(0, 1)
        inside = (below <= matrix) & (matrix <= above)
        torch.testing.assert_close(one.between(weight, h)[inside], matrix[inside], atol=1e-6, rtol=0)
        assert inside.float().mean() > 0.9
    found = one.learn()
    for weight, codes in found.items():
        form, scale, zero = one.grids[weight]
        learnt = Record.of(codes, scale, zero, form).dequantise()
        _, below, above = one.levels[weight]
        near = torch.minimum((learnt - below).abs(), (learnt - above).abs())
        assert (near <= 1e-3 * scale.float()).all()
    changed = {
        weight: Record.of(codes, *one.grids[weight][1:], one.grids[weight][0]).dequantise()
        for weight, codes in found.items()
    }
    plain = {weight: levels[0] for weight, levels in one.levels.items()}
    assert one.loss(changed) < 0.8 * one.loss(plain)
    wild, nearest = (unit(trained, "time.2", bits=4, steps=steps, lr=1e3).learn() for steps in (1, 0))
    assert all(torch.equal(codes, nearest[weight]) for weight, codes in wild.items())  # it would have been worse


def test_rounding_that_learns_is_nearer_on_other_samples(trained):
    call: dict[str, Any] = {"method": "q_diffusion", "bits": 3, "lr": 0.02, "calibration": seen(trained)}
    skip = ("patch_embed.weight", "classes.weight", "head.linear.weight", "blocks.*")
    plain, found = (zoo.quantize(copy.deepcopy(trained), steps=steps, skip=skip, **call) for steps in (0, 60))
    other = seen(trained, 1)
    assert change(trained, found, other) < 0.5 * change(trained, plain, other)
    nearest = zoo.quantize(copy.deepcopy(trained), bits=3, group_size=1 << 20, skip=skip)
    assert change(trained, plain, other) == pytest.approx(change(trained, nearest, other))


def test_both_sides_of_a_joint_have_scales_of_their_own():
    """Where they are alike that is no change; where one is large, each is as if alone."""
    model = small("unet_nano")
    assert joined(model) == {
        "up_blocks.0.resnets.0.conv_shortcut": (16, 16), "up_blocks.0.resnets.1.conv_shortcut": (16, 8),
        "up_blocks.1.resnets.0.conv_shortcut": (16, 8), "up_blocks.1.resnets.1.conv_shortcut": (8, 8),
    }  # fmt: skip
    method = METHODS["q_diffusion"](bits=4)
    matrix = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    matrix[:, 16:] *= 8
    form, scale, zero = start(method, matrix, (16, 8))
    assert form.group_size == 8 and scale.shape == (5, 3) and torch.equal(scale[:, 0], scale[:, 1])
    for columns, group in ((slice(0, 16), 0), (slice(16, 24), 2)):
        alone = start(method, matrix[:, columns], (columns.stop - columns.start,))
        assert torch.equal(alone[1][:, 0], scale[:, group]) and torch.equal(alone[2][:, 0], zero[:, group])  # type: ignore[index]
    alike = torch.cat([matrix[:, :8]] * 3, 1)
    whole, both = (start(method, alike, parts)[1] for parts in ((24,), (16, 8)))
    assert torch.equal(whole.expand(-1, 3), both)
    quantised = zoo.quantize(model, "q_diffusion", steps=0, activation_bits=8, calibration=seen(model))
    held = records(quantised)["up_blocks.0.resnets.1.conv_shortcut.weight"]
    assert held.format.inputs.parts == (16, 8) and held._parameters["input_scale"].shape == (2,)  # type: ignore[union-attr]


def test_a_share_of_a_range_is_no_worse_than_all_of_it():
    numbers = torch.cat([torch.randn(2000, generator=torch.Generator().manual_seed(0)), torch.tensor([12.0])])

    def error(search: bool) -> float:
        grid = {key: tensor[0] for key, tensor in input_grid([numbers], 4, search).items()}
        zero = grid["input_zero"].float()
        found = ((numbers / grid["input_scale"]).round() + zero).clamp(0, 15) - zero
        return (found * grid["input_scale"] - numbers).abs().pow(2.4).sum().item()

    assert error(True) < 0.8 * error(False)


@pytest.mark.parametrize(
    ("name", "options"),
    [("dit_nano", {"method": "q_diffusion", "steps": 1}), ("unet_nano", {"method": "q_diffusion", "steps": 0})],
)
def test_saved_and_reloaded_bit_equal(name, options, tmp_path):
    model = small(name)
    found = zoo.quantize(copy.deepcopy(model), bits=4, activation_bits=8, calibration=seen(model), **options)
    reloaded(found, tmp_path)
    assert 0 < change(model, found, seen(model, 1)) < 0.3


def test_the_command_draws_its_own_calibration(tmp_path, capsys):
    """For every method that wants one."""
    zoo.save_model(small("dit_nano"), tmp_path / "model")
    call = ["quantize", str(tmp_path / "model"), str(tmp_path / "out"), "--option", "steps=1"]
    assert main([*call, "--method", "q_diffusion", "--option", "activation_bits=8"]) == 0
    assert "by q_diffusion" in capsys.readouterr().out
    assert main(["generate", str(tmp_path / "out"), "--output", str(tmp_path / "made.png"), "--images", "2"]) == 0
    assert main([*call, "--method", "smoothquant_plus"]) == 0
    assert main(["quantize", "transformer_nano", str(tmp_path / "no"), "--method", "q_diffusion"]) == 2
    assert "q_diffusion takes a diffusion model, such as dit_nano, got" in capsys.readouterr().err


@pytest.mark.parametrize(("method", "options", "message"), [
    ("q_diffusion", {"steps": -1}, "steps must be at least 0 and lr above 0"),
    ("q_diffusion", {"group_rows": 2}, "q_diffusion finds codes for each row"),
    ("topkld", {}, "what logits say is learnt, DiT makes none: take q_diffusion"),
])  # fmt: skip
def test_what_is_refused(method, options, message):
    model = small("dit_nano")
    with pytest.raises(ValueError, match=message):
        zoo.quantize(model, method, calibration=seen(model), **options)
    assert not records(model)
