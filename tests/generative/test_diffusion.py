"""Diffusion: paths, the sampler where the answer is known, DiT and U-Net written out, published sizes and names."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.generative import DiffusionConfig, DiffusionModel
from zoo.generative.diffusion import PATHS, waves
from zoo.train.tasks.diffusion import ImageDiffusion, velocity_errors


@pytest.mark.parametrize("name", list(PATHS))
def test_a_path_leads_from_the_image_to_the_noise(name):
    path, image, noise = PATHS[name], *torch.randn(2, 3, 1, 2, 2, dtype=torch.float64)
    zero, one = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(path.at(image, noise, zero)[0], image)
    torch.testing.assert_close(path.at(image, noise, one)[0], noise)
    t = torch.rand(3, dtype=torch.float64)
    x, velocity = path.at(image, noise, t)
    after = path.at(image, noise, t + 1e-6)[0]
    torch.testing.assert_close((after - x) / 1e-6, velocity, atol=1e-4, rtol=1e-4)
    for found, wanted in zip(path.ends(x, velocity, t), (image, noise), strict=True):
        torch.testing.assert_close(found, wanted)


class Normal(DiffusionModel):
    """The exact mean velocity of images that are normal numbers of standard deviation s."""

    scale = 0.5

    def __init__(self, path: str):
        super().__init__(DiffusionConfig(path=path, img_size=8))
        self.weight = nn.Parameter(torch.ones(()))

    def velocity(self, x: Tensor, t: Tensor, classes: Tensor) -> Tensor:
        t = t.view(-1, 1, 1, 1)
        (alpha, sigma), (d_alpha, d_sigma) = self.path.coefficients(t), self.path.slopes(t)
        variance = alpha**2 * self.scale**2 + sigma**2
        return (d_alpha * alpha * self.scale**2 + d_sigma * sigma) / variance * x


@pytest.mark.parametrize("path", list(PATHS))
def test_samples_of_the_exact_velocity_have_the_law_of_the_images(path):
    made = Normal(path).sample(50, steps=200, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(made.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(made, 0.5 * noise, atol=0.02, rtol=0.02)  # its equation only scales
    assert Normal(path).sample(2, temperature=0).abs().max() == 0


def test_guidance_moves_away_from_no_class():
    model: Any = opened("dit_nano").eval()
    x, t, classes = torch.randn(3, 1, 8, 8), torch.rand(3), torch.tensor([1, 2, 3])
    given, free = model(x, t, classes), model(x, t)
    torch.testing.assert_close(model.guided(x, t, classes, 2.0), 3 * given - 2 * free)
    assert torch.equal(model.guided(x, t, classes, 0.0), given)


def opened(name: str, **options: Any) -> Any:
    model: Any = zoo.create_model(name, **options)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


def test_classes_are_hidden_in_training_alone():
    model, x, t = (
        opened("dit_nano", class_drop_rate=0.5),
        torch.randn(1, 1, 8, 8).expand(64, -1, -1, -1),
        torch.ones(64),
    )
    classes = torch.full((64,), 3)
    given, free = model.eval()(x[:1], t[:1], classes[:1]), model(x[:1], t[:1])
    seen = model.train()(x, t, classes)
    is_given, is_free = (torch.isclose(seen, y, atol=1e-5).flatten(1).all(1) for y in (given, free))
    assert (is_given ^ is_free).all() and 16 < is_free.sum() < 48


def test_dit_written_out():
    model = opened("dit_nano", depth=1, dim=16, num_heads=2, dtype=torch.float64).eval()
    x, t, classes = torch.randn(2, 1, 8, 8).double(), torch.rand(2).double(), torch.tensor([4, 10])
    weight = model.patch_embed.weight.flatten(1)
    patches = x.unflatten(3, (4, 2)).unflatten(2, (4, 2)).permute(0, 2, 4, 1, 3, 5).reshape(2, 16, 4)
    places = torch.stack([torch.arange(16) // 4, torch.arange(16) % 4])
    table = torch.cat([waves(part.double(), 8) for part in places], 1)
    tokens = patches @ weight.T + model.patch_embed.bias + table
    c = model.time(waves(1000 * t, 256)) + model.classes.weight[classes]
    block = model.blocks[0]
    b1, s1, g1, b2, s2, g2 = (F.silu(c) @ block.modulation.weight.T + block.modulation.bias)[:, None].split(16, -1)

    def norm(y: Tensor) -> Tensor:
        return (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()

    q, k, v = block.attn.qkv((1 + s1) * norm(tokens) + b1).split(16, -1)
    heads = []
    for part in (slice(0, 8), slice(8, 16)):
        law = (q[..., part] @ k[..., part].mT / math.sqrt(8)).softmax(-1)
        heads.append(law @ v[..., part])
    tokens = tokens + g1 * block.attn.proj(torch.cat(heads, -1))
    tokens = tokens + g2 * block.mlp((1 + s2) * norm(tokens) + b2)
    shift, scale = (F.silu(c) @ model.head.modulation.weight.T + model.head.modulation.bias)[:, None].split(16, -1)
    made = model.head.linear((1 + scale) * norm(tokens) + shift).unflatten(1, (4, 4)).unflatten(3, (2, 2))
    torch.testing.assert_close(model(x, t, classes)[:, 0], made.permute(0, 1, 3, 2, 4).reshape(2, 8, 8))


def test_waves_are_cosines_then_sines():
    t = torch.tensor([0.0, 3.0], dtype=torch.float64)
    wanted = [
        [math.cos(3 * 10_000 ** (-i / 3)) for i in range(3)] + [math.sin(3 * 10_000 ** (-i / 3)) for i in range(3)]
    ]
    torch.testing.assert_close(waves(t, 6)[1:], torch.tensor(wanted, dtype=torch.float64))
    assert waves(t, 6)[0].tolist() == [1, 1, 1, 0, 0, 0]


def test_names_and_shapes_of_diffusers():
    """Of SDXL's file, and of KOALA's, which has one layer fewer a stage and in the smallest no middle."""
    tensors = zoo.create_model("sdxl_unet", device="meta").state_dict()
    for name, shape in {
        "conv_in.weight": (320, 4, 3, 3), "time_embedding.linear_1.weight": (1280, 320),
        "add_embedding.linear_1.weight": (1280, 2816), "down_blocks.0.resnets.1.time_emb_proj.weight": (320, 1280),
        "down_blocks.0.downsamplers.0.conv.weight": (320, 320, 3, 3),
        "down_blocks.1.resnets.0.conv_shortcut.weight": (640, 320, 1, 1),
        "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_k.weight": (1280, 2048),
        "down_blocks.2.attentions.1.transformer_blocks.9.attn1.to_out.0.bias": (1280,),
        "down_blocks.2.attentions.0.transformer_blocks.0.ff.net.0.proj.weight": (10240, 1280),
        "down_blocks.2.attentions.0.transformer_blocks.0.ff.net.2.weight": (1280, 5120),
        "mid_block.attentions.0.proj_in.weight": (1280, 1280), "mid_block.resnets.1.norm2.bias": (1280,),
        "up_blocks.0.resnets.2.conv1.weight": (1280, 1920, 3, 3), "up_blocks.0.upsamplers.0.conv.bias": (1280,),
        "up_blocks.2.resnets.0.conv1.weight": (320, 960, 3, 3), "conv_norm_out.weight": (320,),
    }.items():  # fmt: skip
        assert tuple(tensors[name].shape) == shape, name
    small = zoo.create_model("koala_700m", device="meta").state_dict()
    assert not any(name.startswith("mid_block") or ".resnets.2." in name for name in small)
    assert set(small) < set(tensors)


def test_unet_written_out():
    """Which maps are joined where: of the way down, the last made first."""
    model = opened("unet_nano", dims=(8, 16), norm_groups=4, head_dim=8, context_dim=6, dtype=torch.float64).eval()
    x, t, classes = torch.randn(2, 1, 8, 8).double(), torch.rand(2).double(), torch.tensor([4, 10])
    time = model.time_embedding(waves(1000 * t, 8))
    context = model.classes(classes).view(2, 4, 6)
    (high, low), (low_up, high_up) = model.down_blocks, model.up_blocks
    a = model.conv_in(x)
    b = high.resnets[0](a, time)
    c = high.downsamplers[0].conv(b)
    d = low.attentions[0](low.resnets[0](c, time), context)
    y = model.mid_block(d, time, context)
    for index, skip in enumerate((d, c)):
        y = low_up.attentions[index](low_up.resnets[index](torch.cat([y, skip], 1), time), context)
    y = low_up.upsamplers[0].conv(y.repeat_interleave(2, 2).repeat_interleave(2, 3))
    for index, skip in enumerate((b, a)):
        y = high_up.resnets[index](torch.cat([y, skip], 1), time)
    torch.testing.assert_close(model(x, t, classes), model.conv_out(F.silu(model.conv_norm_out(y))))


def test_a_model_of_texts_is_given_their_context():
    model: Any = zoo.create_model(
        "koala_700m", img_size=8, dims=(8, 16, 16), depths=(0, 1, 1), norm_groups=4, head_dim=8, context_dim=6,
        pooled_dim=5,
    ).eval()  # fmt: skip
    x, t, context = torch.randn(2, 4, 8, 8), torch.rand(2), torch.randn(2, 3, 6)
    pooled, sizes = torch.randn(2, 5), torch.full((2, 6), 512)
    made = model.denoise(x, t, context, pooled, sizes)
    assert made.shape == x.shape and not torch.equal(made, model.denoise(x, t, context, pooled + 1, sizes))
    with pytest.raises(ValueError, match="a model of texts needs their context"):
        model(x)


def test_evaluation_is_the_same_for_every_order():
    model, images, classes = opened("dit_nano").eval(), torch.randn(4, 1, 8, 8), torch.arange(4)
    first = velocity_errors(model, images, classes)
    assert torch.equal(first, velocity_errors(model, images, classes)) and first.shape == (4,)
    task = ImageDiffusion("dit_nano", logit_normal=True)
    task.configure_model()
    task.log_dict = lambda *_, **__: None  # pyright: ignore[reportAttributeAccessIssue]
    task.training_step((images, classes), 0).backward()
    assert any(p.grad is not None and p.grad.any() for p in task.trained.parameters())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dit_nano", {"path": "crooked"}, "path must be one of straight, circle, got 'crooked'"),
        ("dit_nano", {"img_size": 9}, "img_size must be a multiple of patch_size 2"),
        ("dit_nano", {"num_heads": 5}, "num_heads and 4 must divide dim"),
        ("unet_nano", {"dims": (32, 50)}, "dims must be multiples of norm_groups 8 and head_dim 16"),
        ("unet_nano", {"depths": (1,)}, "depths must hold 2 integers from 0"),
        ("unet_nano", {"mid_depth": 0}, "mid_depth must be positive or None"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model(name, **options)


def test_errors_of_inputs():
    model: Any = zoo.create_model("dit_nano")
    with pytest.raises(ValueError, match=r"floating point of shape \(batch, 1, 8, 8\)"):
        model(torch.zeros(1, 1, 8, 9))
    with pytest.raises(ValueError, match=r"t must have shape \(1,\), one for each of the images"):
        model(torch.zeros(1, 1, 8, 8), torch.zeros(2))
    with pytest.raises(ValueError, match="batch_size and steps must be at least 1"):
        model.sample(1, steps=0)
