"""DRoPE: headings are periodic and relative, places relative; both ways to combine them; the scenes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.kernels.rope import rope
from zoo.layers.positions import directional_tables
from zoo.train.data import ScenesDataModule

COMBINATIONS = ["head-by-head", "intra-head"]


def built(**options: Any) -> Any:
    return zoo.create_model("drope_nano", dtype=torch.float64, **options).eval()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def scene(batch: int = 2, agents: int = 7) -> Tensor:
    """Places in a square of side 10, headings in (-pi, pi], a speed."""
    unit = torch.rand(batch, agents, 4, dtype=torch.float64)
    return torch.cat([10 * unit[..., :2], math.pi * (1 - 2 * unit[..., 2:3]), unit[..., 3:]], dim=-1)


def plus(x: Tensor, column: int, by: float | Tensor) -> Tensor:
    x = x.clone()
    x[..., column] += by
    return x


def test_scores_are_the_first_harmonic_of_the_difference():
    """c cos(a - b) + s sin(a - b), of the pairs (i, i + d/2)."""
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    c = (q * k).sum()
    s = (q[..., :4] * k[..., 4:] - q[..., 4:] * k[..., :4]).sum()
    for a, b in ((0.3, -2.0), (3.1, -3.1), (math.pi, 0.0)):
        turned = (
            rope(x, *directional_tables(torch.tensor([t], dtype=x.dtype), 8, x.dtype)) for x, t in ((q, a), (k, b))
        )
        score = math.prod(turned).sum()  # type: ignore[attr-defined]
        close(score, c * math.cos(a - b) + s * math.sin(a - b))


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_headings_are_periodic_and_relative(combination):
    model, x = built(combination=combination), scene()
    expected = model(x)
    turns = 2 * math.pi * torch.randint(-3, 4, (2, 7)).double()
    close(model(plus(x, 2, turns)), expected)
    close(model(plus(x, 2, 1.234)), expected)
    assert (model(plus(x, 2, torch.rand(2, 7))) - expected).abs().max() > 1e-4


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_places_are_relative_along_both_axes(combination):
    model, x = built(combination=combination), scene()
    expected = model(x)
    close(model(plus(plus(x, 0, 3.0), 1, -5.5)), expected)
    for axis in (0, 1):
        assert (model(plus(x, axis, torch.rand(2, 7))) - expected).abs().max() > 1e-4


def test_rotary_headings_are_relative_but_not_periodic():
    model, x = built(heading="rotary"), scene()
    expected = model(x)
    close(model(plus(x, 2, 1.234)), expected)
    assert (model(plus(x, 2, 2 * math.pi * torch.randint(-3, 4, (2, 7)).double())) - expected).abs().max() > 1e-4


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_attention_pair_by_pair(combination):
    """The angles of each head's pairs, agent by agent, in complex numbers."""
    model, x = built(combination=combination), scene(batch=1, agents=4)
    mixer = model.blocks[0].mixer
    stream, tables = model.read(x)
    q, k, v = mixer.qkv(stream)[0].unflatten(-1, (3, 4, 16)).unbind(1)  # (N, H, 16)
    heads = []
    for h in range(4):
        by_heading = range(8) if combination == "head-by-head" and h >= 2 else range(4, 8)
        by_heading = [] if combination == "head-by-head" and h < 2 else by_heading
        places = [i for i in range(8) if i not in by_heading]
        scores = torch.zeros(4, 4, dtype=torch.float64)
        for i in range(8):
            if i in by_heading:
                angle = x[0, :, 2]
            else:
                half = len(places) // 2
                axis, step = divmod(places.index(i), half)
                angle = x[0, :, axis] * 100.0 ** (-step / half)
            turn = torch.polar(torch.ones_like(angle), angle)
            a, b = (turn * torch.complex(z[:, h, i], z[:, h, i + 8]) for z in (q, k))
            scores += (a[:, None] * b[None].conj()).real
        heads.append((scores / 4).softmax(-1) @ v[:, h])
    close(mixer(stream, tables)[0], mixer.proj(torch.cat(heads, -1)))


def test_the_order_of_agents_changes_nothing():
    model, x, order = built(), scene(), torch.randperm(7)
    close(model(x[:, order]), model(x)[:, order])


def test_answers_agent_by_agent():
    data = ScenesDataModule(agents=5, spread=180, test_samples=40)
    data.setup()
    scenes, targets = data.sources["test"].fetch(torch.arange(40), 0)
    assert scenes.shape == (40, 5, 4) and scenes[..., 2].abs().max() <= math.pi
    for agents, answers in zip(scenes.tolist(), targets.tolist(), strict=True):
        for (x, y, heading, _), (right, near) in zip(agents, answers, strict=True):
            assert right == max(agents, key=lambda other: math.sin(other[2] - heading))[3]
            close_by = [v for a, b, _, v in agents if math.hypot(a - x, b - y) < 3]
            assert near == pytest.approx(sum(close_by) / len(close_by), abs=1e-6)


def test_test_scenes_lie_on_both_sides_of_the_cut_and_training_scenes_do_not():
    data = ScenesDataModule()
    data.setup()
    headings = {split: source.fetch(torch.arange(500), 0)[0][..., 2] for split, source in data.sources.items()}
    assert headings["train"].abs().max() < math.pi / 2 and headings["val"].abs().max() < math.pi / 2
    assert headings["test"].abs().min() > math.pi / 2 and headings["test"].abs().max() <= math.pi
    wound = ScenesDataModule(windings=2)
    wound.setup()
    scenes, answers = wound.sources["test"].fetch(torch.arange(500), 0)
    turns = (scenes[..., 2] - headings["test"]) / (2 * math.pi)
    assert torch.allclose(turns, turns.round(), atol=1e-5) and set(turns.round().int().unique().tolist()) == {
        *range(-2, 3)
    }
    torch.testing.assert_close(answers, data.sources["test"].fetch(torch.arange(500), 0)[1])
    again = data.sources["val"].fetch(torch.tensor([7, 3]), 5)[0][..., 2]
    assert torch.equal(again, headings["val"][[7, 3]])
    train = data.sources["train"]
    assert not torch.equal(train.fetch(torch.arange(2), 0)[0], train.fetch(torch.arange(2), 1)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"combination": "both"}, "combination must be one of head-by-head, intra-head, got 'both'"),
        ({"heading": "compass"}, "heading must be one of directional, rotary, got 'compass'"),
        ({"in_features": 3}, "in_features must be 4 or more, got 3"),
        ({"dim": 48}, "head_dim must be divisible by 8, got 12"),
        ({"combination": "head-by-head", "num_heads": 1}, "num_heads must be even"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        built(**options)


def test_wrong_inputs():
    with pytest.raises(ValueError, match=r"inputs must be \(B, T, 4\) floats with T >= 1, got \(2, 3\)"):
        built()(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"spread in \(0, 180\] and windings >= 0, got agents=6, spread=0"):
        ScenesDataModule(spread=0)
