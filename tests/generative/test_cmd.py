"""CMD: what a content frame and a motion are, the authors' names and sizes, motions given what moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zoo
from zoo.generative import CMD, CMDConfig, MotionDiT
from zoo.train.agreement import agree
from zoo.train.data import MovingFiguresDataModule
from zoo.train.tasks import ImageDiffusion, ImageTokenization, MotionDiffusion

SHAPE = {"frames": 5, "img_size": (8, 12), "in_chans": 2, "patch_size": 2, "dim": 16, "depth": 2, "num_heads": 2,
         "motion_dim": 3, "mean": (0.5, 0.4), "std": (0.5, 0.3)}  # fmt: skip


def opened(**options: Any) -> CMD:
    torch.manual_seed(0)
    model = CMD(CMDConfig(**{**SHAPE, **options})).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def test_the_frame_lies_between_the_least_and_the_largest_pixel():
    model, clips = opened(positions=True), torch.randn(2, 2, 5, 8, 12).double()
    motion, content = model.encode(clips)
    assert motion.shape == (2, 3, 5, 10) and motion.abs().max() < 1 and content.shape == (2, 2, 8, 12)
    assert (clips.amin(2) <= content).all() and (content <= clips.amax(2)).all()
    assert (content - clips.mean(2)).abs().max() > 1e-3  # weights are not all alike
    still = clips[:, :, :1].expand(-1, -1, 5, -1, -1)
    torch.testing.assert_close(model.encode(still)[1], clips[:, :, 0])
    made = model(clips)
    pixels = made * torch.tensor([0.5, 0.3]).view(-1, 1, 1, 1) + torch.tensor([0.5, 0.4]).view(-1, 1, 1, 1)
    assert made.shape == clips.shape and pixels.min() > 0 and pixels.max() < 1


def test_without_positions_frames_are_a_set():
    order, clips = torch.tensor([3, 0, 4, 1, 2]), torch.randn(1, 2, 5, 8, 12).double()
    model = opened()
    (motion, content), (other, same) = model.encode(clips), model.encode(clips[:, :, order])
    torch.testing.assert_close(same, content)
    torch.testing.assert_close(other, motion[:, :, order])
    torch.testing.assert_close(model(clips[:, :, order]), model(clips)[:, :, order])
    model = opened(positions=True)
    assert (model.encode(clips[:, :, order])[1] - model.encode(clips)[1]).abs().max() > 1e-6


def test_an_autoencoder_written_out():
    """Patches by slices, layers a place and a frame at a time."""
    model, clips = opened(depth=1), torch.randn(1, 2, 5, 8, 12).double()

    def layers(part: Any, x: torch.Tensor) -> torch.Tensor:
        """x (frames, rows, columns, dim)."""
        (time, space, mlp), y = part.layers[0], x.clone()
        for r in range(4):
            for c in range(6):
                y[:, r, c] += time.fn(F.layer_norm(x[:, r, c], (16,), time.norm.weight, time.norm.bias)[None])[0]
        for f in range(5):
            norm = F.layer_norm(y[f], (16,), space.norm.weight, space.norm.bias).flatten(0, 1)
            y[f] = y[f] + space.fn(norm[None])[0].view(4, 6, 16)
        a, b = mlp.fn.net[0](F.layer_norm(y, (16,), mlp.norm.weight, mlp.norm.bias)).split(64, -1)
        return y + mlp.fn.net[3](a * F.gelu(b))

    def patches(frame: torch.Tensor) -> torch.Tensor:
        """(C, H, W) -> (rows, columns, numbers)."""
        rows = [[frame[:, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].permute(1, 2, 0).flatten() for c in range(6)]
                for r in range(4)]  # fmt: skip
        return torch.stack([torch.stack(row) for row in rows])

    frames = [model.encoder.to_patch_embedding(patches(clips[0, :, f])) for f in range(5)]
    h = layers(model.encoder, torch.stack(frames))
    weights = model.to_logit[1](h.permute(0, 3, 1, 2)).softmax(0)
    content = (weights * clips[0].transpose(0, 1)).sum(0)
    across = model.pre_xt(h.mean(1).permute(2, 0, 1))
    down = model.pre_yt(h.mean(2).permute(2, 0, 1))
    motion = torch.cat([across, down], -1).tanh()
    found, frame = model.encode(clips)
    torch.testing.assert_close(found[0], motion)
    torch.testing.assert_close(frame[0], content)
    z = model.to_patch_embedding_xy(patches(content))[None].expand(5, -1, -1, -1)
    z = (
        z
        + model.post_xt(motion[..., :6]).permute(1, 2, 0)[:, None]
        + model.post_yt(motion[..., 6:]).permute(1, 2, 0)[:, :, None]
    )
    pixels = model.to_output[1](layers(model.decoder, z).permute(0, 3, 1, 2)).sigmoid().transpose(0, 1)
    mean, std = (torch.tensor(part).view(-1, 1, 1, 1) for part in ((0.5, 0.4), (0.5, 0.3)))
    torch.testing.assert_close(model(clips)[0], (pixels - mean) / std, atol=1e-7, rtol=1e-6)


def test_names_and_sizes_of_the_authors():
    model: Any = zoo.create_model("cmd_64", device="meta")
    assert sum(p.numel() for p in model.parameters()) == 47_359_510
    assert model.config.latent_size == 8 * 16 * 64 + 3 * 64 * 64
    tensors = model.state_dict()
    for name, shape in {
        "encoder.to_patch_embedding.weight": (384, 12), "encoder.layers.7.0.fn.qkv.bias": (1152,),
        "encoder.layers.0.1.norm.weight": (384,), "decoder.layers.3.2.fn.net.0.weight": (3072, 384),
        "decoder.layers.3.2.fn.net.3.weight": (384, 1536), "to_output.1.weight": (384, 3, 2, 2),
        "to_logit.1.bias": (3,),
        "pre_xt.weight": (8, 384, 1, 1), "post_yt.weight": (384, 8, 1, 1), "to_patch_embedding_xy.bias": (384,),
    }.items():  # fmt: skip
        assert tuple(tensors[name].shape) == shape, name


def motions(**options: Any) -> MotionDiT:
    torch.manual_seed(0)
    model: Any = zoo.create_model("cmd_motion_shapes", dim=32, depth=2, **options).eval()
    return model


def test_a_new_model_of_motions_says_nothing():
    model, content = motions(), torch.randn(2, 1, 16, 16)
    x = torch.randn(2, 4, 8, 8)
    assert model(x, torch.rand(2), content=content).abs().max() == 0
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    made = model(x, torch.full((2,), 0.3), content=content)
    assert made.shape == x.shape and (model(x, torch.full((2,), 0.3), content=content + 1) - made).abs().max() > 1e-4


def test_clips_of_drawn_motions_show_the_frame():
    model, autoencoder = motions(), zoo.create_model("cmd_nano").train()
    assert isinstance(autoencoder, CMD)
    content = torch.randn(3, 1, 16, 16)
    made = model.animate(autoencoder, content, steps=2, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(part)[:, None, None] for part in (model.config.mean, model.config.std))
    wanted = autoencoder.decode((noise * std + mean).clamp(-1, 1), content)  # of a model that says nothing
    assert autoencoder.training and torch.equal(made, wanted)
    torch.testing.assert_close(model.motion(model.normalised(0.9 * noise.tanh())), 0.9 * noise.tanh())


def test_the_task_learns_motions_of_a_frozen_autoencoder(tmp_path):
    zoo.save_model(zoo.create_model("cmd_nano"), tmp_path)
    task = MotionDiffusion(motions(), autoencoder=f"local-dir:{tmp_path}")
    task.configure_model()
    task.log_dict = lambda *_, **__: None  # pyright: ignore[reportAttributeAccessIssue]
    clips = torch.randn(4, 1, 8, 16, 16)
    loss = task.training_step((clips, torch.zeros(4)), 0)
    loss.backward()
    assert torch.isfinite(loss) and any(p.grad is not None and p.grad.any() for p in task.trained.parameters())
    assert not any(name.startswith("made") for name in task.state_dict())
    first = task.measured((clips, torch.zeros(4)), 0)
    assert first.shape == (4,) and torch.equal(first, task.measured((clips, torch.zeros(4)), 0))


def test_the_model_of_motions_need_not_fit_the_clips():
    """The autoencoder reads them."""
    task = MotionDiffusion("cmd_motion_shapes", autoencoder="cmd_nano")
    agree(task, MovingFiguresDataModule())
    assert task.sketch().config.input_shape == (4, 8, 8)
    other = ImageDiffusion("video_dit_nano", {"in_chans": 2})
    with pytest.raises(ValueError, match="the model has in_chans 2, the data have in_chans 1"):
        agree(other, MovingFiguresDataModule())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: opened(num_heads=3), "num_heads and 4 must divide dim, got 3 and 16"),
        (lambda: opened(img_size=9), "img_size must be a multiple of patch_size 2, got 9"),
        (lambda: opened()(torch.zeros(1, 2, 4, 8, 12)), r"floating point of shape \(batch, 2, 5, 8, 12\)"),
        (lambda: opened().decode(torch.zeros(1, 3, 5, 9), torch.zeros(1, 2, 8, 12)), r"\(3, 5, 10\) and \(2, 8, 12\)"),
        (lambda: motions()(torch.zeros(1, 4, 8, 8)), r"content frames .*of shape \(1, 1, 16, 16\), got None"),
        (lambda: motions(content_shape=(1, 15, 16)), "multiples of content_patch 4"),
        (lambda: MotionDiffusion("dit_nano", autoencoder="cmd_nano"), "read by a MotionDiT, got CMD and DiT"),
        (lambda: MotionDiffusion("cmd_motion_s_2", autoencoder="cmd_nano"), r"cmd_nano makes \(4, 8, 8\)"),
    ],
)  # fmt: skip
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_clips_are_scored_as_images_are():
    task = ImageTokenization("cmd_nano")
    task.configure_model()
    seen: dict[str, Any] = {}
    task.log = lambda name, value, **_: seen.update({name: value})  # pyright: ignore[reportAttributeAccessIssue]
    clips = torch.randn(2, 1, 8, 16, 16)
    task.validation_step((clips, None), 0)
    made = task.trained(clips)
    wanted = -10 * ((made - clips) * 0.251).square().flatten(1).mean(1).log10()
    assert seen["val/psnr"].compute().item() == pytest.approx(wanted.mean().item(), rel=1e-6)
