"""The Axial Transformer: attention along each axis written out, the order of its factors, sampling, cost and errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.kernels.flops import flop_counter
from zoo.layers.attention import AxialAttention, shift_down, shift_right
from zoo.train.data import DigitLevelsDataModule, histogram_bits_per_dim
from zoo.vision import AxialConfig, AxialTransformer


def small(**changes: Any) -> AxialTransformer:
    """Three channels of 3 x 4 pixels, initialised so that every path counts."""
    options: dict[str, Any] = {"img_size": (3, 4), "in_chans": 3, "num_levels": 5, "dim": 16, "num_heads": 2}
    options |= {"exterior_depth": 2, "outer_depth": 2, "inner_depth": 2, "residual_scale": 1.0, "logits_scale": 1.0}
    return AxialTransformer(AxialConfig(**{**options, **changes})).double().eval()


def levels(model: AxialTransformer, batch: int = 2) -> Tensor:
    return torch.randint(0, model.config.num_levels, (batch, model.config.in_chans, *model.config.image_shape))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def attention_by_loops(layer: AxialAttention, x: Tensor) -> Tensor:
    """One position at a time, in a tensor of three axes."""
    q, k, v = layer.qkv(x).chunk(3, dim=-1)
    width, y = x.shape[-1] // layer.num_heads, torch.empty_like(x)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in x.shape[:-1])).tolist():
        line: list[Any] = list(place)
        line[layer.axis] = slice(0, place[layer.axis] + 1) if layer.masked else slice(None)
        for head in range(layer.num_heads):
            part = slice(head * width, (head + 1) * width)
            scores = k[(*line, part)] @ q[(*place, part)] / math.sqrt(width)
            y[(*place, part)] = scores.softmax(0) @ v[(*line, part)]
    return layer.proj(y)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_attention_runs_along_one_axis_of_any_tensor(axis, masked):
    layer = AxialAttention(6, 3, axis, masked).double()
    x = torch.randn(2, 3, 2, 4, 6, dtype=torch.float64)
    close(layer(x), attention_by_loops(layer, x))


def test_masked_attention_continues_from_its_state():
    layer = AxialAttention(6, 3, axis=1, masked=True).double()
    x = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    state = layer.init_state(num_lines=2 * 4, length=5, like=x)
    close(torch.cat([layer(x[:, i : i + 1], state) for i in range(5)], dim=1), layer(x))


def test_shifts_move_by_one_and_fill_with_zeros():
    x = torch.arange(1.0, 7).view(1, 2, 3, 1)
    assert shift_down(x).flatten().tolist() == [0, 0, 0, 1, 2, 3]
    assert shift_right(x).flatten().tolist() == [0, 1, 2, 0, 4, 5]


def test_every_dimension_depends_on_all_earlier_ones_and_on_no_other():
    """In the order channel, row, column: perturb each level in turn."""
    model = small()
    images = levels(model, batch=1)
    with torch.no_grad():
        expected = model(images).flatten(1, 3)[0]  # (C * H * W, num_levels)
        changed = images.flatten().repeat(images.numel(), 1)
        changed += torch.eye(images.numel(), dtype=torch.int64)
        logits = model((changed % 5).view(-1, *images.shape[1:])).flatten(1, 3)
    moved = (logits - expected).abs().amax(-1)  # (perturbed, seen at)
    assert moved.tril().max() < 1e-12  # a level moves neither its own factor nor an earlier one
    later = torch.ones_like(moved).triu(1).bool()
    assert moved[later].min() > 1e-9  # and every later one


def test_the_sampler_sees_the_logits_of_the_parallel_form():
    model, seen = small(), []

    def choose(logits: Tensor) -> Tensor:
        seen.append(logits)
        return torch.multinomial(logits.softmax(-1), 1)[:, 0]

    with torch.no_grad():
        images = model.decode(3, choose)
        close(torch.stack(seen, dim=1), model(images).flatten(1, 3))
    assert images.unique().numel() == 5


def test_a_sample_costs_one_forward_pass():
    """Less the masked half of the products of queries and keys, which the parallel form is counted for."""
    model = small(img_size=8)

    def flops(function: Any, *arguments: Any) -> int:
        with torch.no_grad(), flop_counter(display=False) as counter:
            function(*arguments)
        return counter.get_total_flops()

    forward = flops(model, levels(model, batch=1))
    assert 0.8 * forward < flops(model.sample, 1) <= forward


def test_sampling_leaves_the_mode_and_follows_the_generator():
    model = small(drop_rate=0.5).train()
    draws = [model.sample(2, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2]) and model.training
    likeliest = model.sample(1, temperature=0)
    assert torch.equal(likeliest, model.eval()(likeliest).argmax(-1))


def test_attention_costs_n_to_the_three_halves():
    """Four times the pixels: eight times the products of queries with keys and values; full attention has sixteen."""
    cost = []
    for side in (8, 16, 32):
        x = torch.randn(1, side, side, 16)
        layers = [AxialAttention(16, 2, axis) for axis in (1, 2)]
        with torch.no_grad(), flop_counter(display=False) as counter:
            for layer in layers:
                layer(x)
        projections = 2 * 2 * side**2 * 16 * (3 * 16 + 16)
        cost.append(counter.get_total_flops() - projections)
    assert cost == [2 * 4 * side**3 * 16 for side in (8, 16, 32)] and cost[1] == 8 * cost[0]


@pytest.mark.parametrize("channels", [None, torch.tensor([2, 0])])
def test_loss_is_the_mean_of_the_scored_dimensions(channels):
    model = small()
    images = levels(model)
    labels = images.masked_fill(torch.rand(images.shape) < 0.3, -100)
    nats = -model(images).log_softmax(-1).gather(-1, images[..., None])[..., 0]
    scored = labels != -100
    if channels is not None:
        scored &= torch.arange(3).view(1, 3, 1, 1) == channels.view(2, 1, 1, 1)
    close(model(images, labels=labels, channels=channels), nats[scored].mean())
    close(model.bits_per_dim(images).mean(), nats.mean() / math.log(2))


def test_one_channel_alone_has_the_logits_it_has_among_all():
    model = small()
    images, channels = levels(model), torch.tensor([2, 1])
    close(model(images, channels=channels)[:, 0], model(images)[torch.arange(2), channels])


def test_a_new_model_is_uniform():
    model: Any = zoo.create_model("axial_nano").eval()
    torch.testing.assert_close(model.bits_per_dim(levels(model)), torch.full((2,), math.log2(17)), atol=1e-3, rtol=0)


def test_the_baseline_of_the_digits():
    """What the recipe's figure is compared with: every pixel by itself."""
    data = DigitLevelsDataModule()
    data.setup()
    splits = {name: source.fetch(torch.arange(len(source)), 0)[0] for name, source in data.sources.items()}
    train, test = splits["train"], splits["test"]
    assert train.dtype == torch.int64 and train.shape[1:] == (1, 8, 8) and (train.min(), train.max()) == (0, 16)
    assert histogram_bits_per_dim(train, test, 17) == pytest.approx(2.432, abs=1e-3)
    pairs = torch.tensor([[0, 1], [0, 0], [0, 1]])
    assert histogram_bits_per_dim(pairs, pairs[:1], 2) == pytest.approx(-(math.log2(4 / 5) + math.log2(3 / 5)) / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide dim"),
        ({"outer_depth": 3}, "must be even"),
        ({"exterior_depth": -2}, "must be even"),
        ({"num_levels": 1}, "num_levels must be at least 2, got 1"),
        ({"img_size": (8, 0)}, "img_size must be a positive integer"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model("axial_nano", **options)


def test_wrong_inputs():
    model: Any = zoo.create_model("axial_nano")
    images = levels(model)
    for wrong, message in (
        (images.float(), "must be int64 levels"),
        (images[:, :, :4], r"shape \(batch, 1, 8, 8\), got \(2, 1, 4, 8\)"),
        (images + 17, r"must be in \[0, 17\), got values from 17"),
    ):
        with pytest.raises(ValueError, match=message):
            model(wrong)
    with pytest.raises(ValueError, match="labels must have the shape"):
        model(images, labels=images[:1])
    with pytest.raises(ValueError, match="one for each image"):
        model(images, channels=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="temperature at least 0"):
        model.sample(1, temperature=-1.0)
    layer = AxialAttention(4, 2, axis=3)
    with pytest.raises(ValueError, match="must have an axis 3"):
        layer(torch.randn(1, 2, 2, 4))
    with pytest.raises(ValueError, match="a state goes with masked attention"):
        layer(x := torch.randn(1, 2, 2, 1, 4), layer.init_state(4, 1, x))
    with pytest.raises(ValueError, match="axis must count from 1"):
        AxialAttention(4, 2, axis=0)
