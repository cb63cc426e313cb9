"""Clips: attention written out, what On-device Sora and Streamlined Inference leave exact and what they save."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.benchmarks.living import peak
from zoo.generative import OnDeviceSora, StepRehash, merged_frames, sliced
from zoo.generative.diffusion import waves
from zoo.generative.on_device_sora import doubled, halved
from zoo.generative.streamlined import rehashed
from zoo.train.data.figures import Figures


def opened(**options: Any) -> Any:
    torch.manual_seed(0)
    settings = {"depth": 2, "dim": 16, "num_heads": 2, "frames": 6, "img_size": 8, "dtype": torch.float64} | options
    model: Any = zoo.create_model("video_dit_nano", **settings).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def inputs(model: Any, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(batch, *model.config.input_shape).double()
    return x, torch.rand(batch).double(), torch.tensor([4, 10])[:batch]


def test_a_model_of_clips_written_out():
    """A frame at a time, then a place at a time."""
    model = opened(depth=1)
    x, t, classes = inputs(model)
    c = model.time(waves(1000 * t, 256)) + model.classes(classes)
    tokens = torch.stack([model.patch_embed(x[:, :, f]).flatten(2).mT for f in range(6)], 1)
    tokens = tokens + model.positions
    tokens = torch.stack([model.spatial[0](tokens[:, f], c) for f in range(6)], 1)
    tokens = torch.stack([model.temporal[0](tokens[:, :, p], c) for p in range(4)], 2)
    made = torch.stack([model.head(tokens[:, f], c) for f in range(6)], 1)  # (B, frames, places, 16)
    found = model(x, t, classes)
    for place in range(4):
        row, column = 4 * (place // 2), 4 * (place % 2)
        patch = found[:, 0, :, row : row + 4, column : column + 4].flatten(2)
        torch.testing.assert_close(patch, made[:, :, place])


def test_means_of_two_frames_and_back():
    x = torch.arange(5.0)[None, :, None]
    assert halved(x, 1).flatten().tolist() == [0.5, 2.5, 4.0]
    assert doubled(halved(x, 1), 5, 1).flatten().tolist() == [0.5, 0.5, 2.5, 2.5, 4.0]
    assert halved(x[:, :4], 1).shape[1] == 2


def test_merging_is_exact_where_two_frames_are_the_same():
    """Within frames as well as over time: a key that is there twice weighs no less than one that is there once."""
    model = opened()
    model.positions[1::2] = model.positions[::2].clone()  # which place in time is theirs too
    x, t, classes = inputs(model)
    x[:, :, 1::2] = x[:, :, ::2].clone()
    plain = model(x, t, classes)
    with merged_frames(model):
        torch.testing.assert_close(model(x, t, classes), plain)
        assert (model(torch.randn_like(x), t, classes) - plain).abs().max() > 1e-3
    assert torch.equal(model(x, t, classes), plain)


def test_merging_halves_what_attention_reads():
    model = opened()
    read: list[int] = []
    for block in [*model.spatial, *model.temporal]:
        block.attn.qkv.register_forward_hook(lambda *args: read.append(args[1][0].shape[:2].numel()))
    given = inputs(model)
    model(*given)
    with merged_frames(model):
        model(*given)
    assert sum(read[4:]) * 2 == sum(read[:4]) == 4 * 2 * 6 * 4


class Straight:
    """A field that leads from anywhere to one image, and to and fro before the time `bend`, less and less."""

    def __init__(self, model: Any, bend: float):
        self.bend, self.calls = bend, 0
        self.image, self.aside = torch.randn(2, *model.config.input_shape, dtype=torch.float64)

    def __call__(self, x: Tensor, t: Tensor, classes: Any) -> Tensor:
        self.calls += 1
        turn = 5 * max(0.0, t[0].item() - self.bend) * (-1) ** self.calls
        return (x - self.image) / t.view(-1, 1, 1, 1, 1) + turn * self.aside


@pytest.mark.parametrize("bend", [1.0, 0.35])
def test_a_leap_of_a_straight_path_is_exact(bend):
    """Where velocities do not turn any more, the way to the image is one step; a path that bends is followed longer."""
    model = opened()
    field = Straight(model, bend)
    model.forward = field
    made = model.sample(2, steps=30, shortcut=OnDeviceSora())
    torch.testing.assert_close(made, field.image.expand_as(made))
    assert field.calls == 18 if bend == 1.0 else 18 < field.calls < 30
    field.calls = 0
    fixed = model.sample(2, steps=30, shortcut=OnDeviceSora(leap=5))
    assert field.calls == 6 and (bend < 1) == ((fixed - field.image).abs().max() > 1e-6).item()
    del model.forward


def test_without_shortcuts_samples_are_bit_for_bit():
    model, options = opened(), {"classes": torch.tensor([1, 2]), "steps": 4, "guidance": 1.0}

    def made(shortcut: Any) -> Tensor:
        return model.sample(2, generator=torch.Generator().manual_seed(0), shortcut=shortcut, **options)

    plain = made(None)
    for shortcut in (OnDeviceSora(watch=None), OnDeviceSora(watch=9), StepRehash(every=1), StepRehash(first=4)):
        assert torch.equal(made(shortcut), plain), shortcut
    for shortcut in (OnDeviceSora(watch=None, merged=1), OnDeviceSora(leap=2), StepRehash()):
        assert not torch.equal(made(shortcut), plain), shortcut
        assert torch.equal(made(shortcut), made(shortcut))  # nothing is left of the call before


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize(("frames", "places"), [(1, 3), (5, 1), (12, 8), (50, 2)])
def test_slices_are_the_whole(frames, places, grouped):
    model = opened()
    given = inputs(model)
    plain = model(*given)
    with sliced(model, frames, places, grouped=grouped):
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(model(*given), plain, rtol=1e-12, atol=1e-12)
    assert torch.equal(model(*given), plain)


def test_a_slice_goes_through_a_block_before_the_next_begins():
    """What an MLP makes inside exists for a slice at a time; grouped, what a norm makes does too."""
    model, rows = opened(depth=1), {"norm": set(), "hidden": set()}
    for name, module in (("norm", model.spatial[0].norm1), ("hidden", model.spatial[0].mlp[0])):
        module.register_forward_hook(lambda m, a, y, n=name: rows[n].add(len(y)))
    for grouped, wanted in ((True, {4}), (False, {12})):
        rows["norm"].clear()
        with sliced(model, frames=3, grouped=grouped):
            model(*inputs(model))
        assert rows["hidden"] == {4} and rows["norm"] == wanted


def test_steps_take_attention_from_the_one_before():
    model, calls = opened(), []
    for block in [*model.spatial, *model.temporal]:
        block.attn.qkv.register_forward_hook(lambda *_: calls.append(1))
    model.sample(1, steps=7, shortcut=StepRehash(every=3, first=2))
    assert len(calls) == 4 * rehashed(StepRehash(every=3, first=2), 7) == 4 * 4  # steps 0, 1, 2 and 5


def test_bytes_that_live_at_once():
    x = torch.zeros(1000)

    def work() -> None:
        y = x + 1  # 4,000 bytes, a view of which goes on
        z = y.view(10, 100) * 2
        del y
        z = z + 1
        z.t().add_(1)

    assert peak(work) == 8000
    model = opened(frames=16, img_size=16)
    model.float()
    x, t, _ = inputs(model, 1)

    def held(count: int, grouped: bool) -> int:
        with sliced(model, count, count, grouped=grouped):
            return peak(lambda: model(x.float(), t.float()))

    assert held(4, True) < held(4, False) < held(1, True)


def test_clips_of_a_figure_move_at_one_speed():
    """A disc's middle, found by its light, moves by equal steps while it meets no edge."""
    made, kinds = Figures(16, 300, 0, frames=4).fetch(torch.arange(300), 0)
    assert made.shape == (300, 1, 4, 16, 16) and set(kinds.tolist()) == set(range(10))
    light = (made[kinds == 0, 0] * 0.251 + 0.106).clamp(min=0)
    middle = (light.sum(2) * torch.arange(16.0)).sum(-1) / light.sum((2, 3))
    steps = middle.diff(dim=1)
    assert (steps.diff(dim=1).abs() < 0.05).float().mean() > 0.8 and steps.abs().max() < 1.0
    still, _ = Figures(16, 300, 0).fetch(torch.arange(300), 0)
    assert torch.equal(still, made[:, :, 0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OnDeviceSora(patience=0), "patience at least 1"),
        (lambda: StepRehash(every=0), "every must be at least 1 and first at least 0, got 0 and 1"),
        (lambda: OnDeviceSora(merged=2).begin(zoo.create_model("dit_nano"), 4), "frames is for models of clips"),
        (lambda: OnDeviceSora().begin(opened(path="circle"), 4), "a leap needs a straight path, got 'circle'"),
        (lambda: StepRehash().begin(zoo.create_model("unet_nano"), 4), "attention of adaptive blocks again, got UNet"),
        (lambda: sliced(opened(), 0).__enter__(), "a number of slices must be at least 1, got 0 and 1"),
        (lambda: opened(frames=0), "frames"),
        (lambda: opened()(torch.zeros(1, 1, 5, 8, 8)), r"clips must be floating point of shape \(batch, 1, 6, 8, 8\)"),
    ],
)  # fmt: skip
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
