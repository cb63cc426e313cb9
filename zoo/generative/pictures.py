"""What generators make, as pixels: images in [0, 1] and one picture of many."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.generative.cmd import CMD
from zoo.generative.diffusion import DiffusionModel
from zoo.generative.motion import MotionDiT
from zoo.generative.next_scale import NextScale
from zoo.generative.video import VideoDiT
from zoo.generative.wetok import WeTok
from zoo.images import open_image
from zoo.layers.precision import computes_in
from zoo.vision.axial import AxialTransformer

if TYPE_CHECKING:
    from PIL.Image import Image


@singledispatch
def draw(model: nn.Module, count: int, **options: Any) -> Tensor:
    """Sample ``count`` images (count, C, H, W) in [0, 1] from a model.

    Args:
        options: of the model's ``sample``.

    Raises:
        ValueError: for a model that makes no images.
    """
    raise ValueError(f"drawing needs a generator of images, got {type(model).__name__}")


@draw.register
def _(model: AxialTransformer, count: int, **options: Any) -> Tensor:
    return model.sample(count, **options).float() / (model.config.num_levels - 1)


@draw.register
def _(model: NextScale, count: int, **options: Any) -> Tensor:
    """By the bundled weights of its tokenizer."""
    from zoo.factory import create_model

    tokens = model.sample(count, **options).mT
    tokenizer: Any = create_model(model.config.tokenizer, pretrained=True, device=tokens.device).eval()
    return pixels(tokenizer, tokenizer.decode(tokens))


@draw.register
def _(model: DiffusionModel, count: int, **options: Any) -> Tensor:
    return pixels(model, model.sample(count, **options))


@draw.register
def _(model: VideoDiT, count: int, **options: Any) -> Tensor:
    """All frames of the clips, (count * frames, C, H, W)."""
    return pixels(model, model.sample(count, **options).transpose(1, 2).flatten(0, 1))


@draw.register
def _(model: MotionDiT, count: int, *, content: Tensor | None = None, **options: Any) -> Tensor:
    """All frames of the clips, (count * frames, C, H, W), of content frames (N, C, H, W) in [0, 1], in turn; by the
    bundled weights of its autoencoder."""
    from zoo.factory import create_model

    if content is None:
        raise ValueError("a model of motions moves frames: give content, (N, C, H, W) in [0, 1]")
    autoencoder: Any = create_model(model.config.tokenizer, pretrained=True, device=content.device).eval()
    mean, std = (content.new_tensor(t)[:, None, None] for t in (autoencoder.config.mean, autoencoder.config.std))
    frames = ((content - mean) / std)[torch.arange(count, device=content.device) % len(content)]
    clips = model.animate(autoencoder, frames, **options)
    return pixels(autoencoder, clips.transpose(1, 2).flatten(0, 1))


def pixels(model: WeTok | DiffusionModel | CMD, images: Tensor) -> Tensor:
    """Normalised images (..., C, H, W) in [0, 1]."""
    mean, std = (torch.tensor(t, device=images.device)[:, None, None] for t in (model.config.mean, model.config.std))
    return (images * std + mean).clamp(0, 1)


def read(model: WeTok, paths: Sequence[str | Path], *, exif_orientation: bool = False) -> Tensor:
    """Files as normalised images (B, C, H, W) of the model's size, whatever their own.

    Raises:
        ValueError: for a file that is not a whole image, by name.
        FileNotFoundError: for a file that is not there.
    """
    config, found = model.config, []
    height, width = config.image_shape
    for path in paths:
        image = open_image(path, "L" if config.in_chans == 1 else "RGB", exif_orientation=exif_orientation)
        values = np.asarray(image.resize((width, height), 3), dtype=np.float32) / 255  # 3: bicubic
        found.append(torch.from_numpy(values).view(height, width, config.in_chans).movedim(-1, 0))
    mean, std = (torch.tensor(t)[:, None, None] for t in (config.mean, config.std))
    return ((torch.stack(found) - mean) / std).to(computes_in(model))


def decoded(model: WeTok, tokens: Tensor, draws: int = 3, seed: int = 0) -> list[Tensor]:
    """What tokens (B, T, groups) decode to, normalised images (B, C, H, W): several draws of a generative decoder."""
    if not model.config.generative:
        return [model.decode(tokens)]
    shape, generator = (len(tokens), model.config.code_dim, *model.config.latent_shape), torch.Generator()
    generator.manual_seed(seed)
    like = model.decoder.conv_in.weight
    noise = (torch.randn(shape, generator=generator).to(like) for _ in range(draws))
    return [model.decode(tokens, one) for one in noise]


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Signal-to-noise ratio (B,) of images in [0, 1] in dB: -10 log10 of the mean square of the difference."""
    return -10 * (images - others).square().flatten(1).mean(1).log10()


def picture(images: Tensor, columns: int, enlarged: int = 1) -> Image:
    """Images (B, C, H, W) in [0, 1], of one channel or three, in rows of ``columns`` with a line between them.

    Args:
        enlarged: pixels a side of each pixel.

    Raises:
        ValueError: for another number of channels, or no images.
    """
    from PIL import Image

    count, channels = images.shape[:2]
    if channels not in (1, 3) or not count or columns < 1 or enlarged < 1:
        raise ValueError(
            f"a picture is of images with 1 or 3 channels in columns, got {tuple(images.shape)}, {columns}"
        )
    images = (images.detach().cpu().clamp(0, 1) * 255).round().byte()
    images = images.repeat_interleave(enlarged, 2).repeat_interleave(enlarged, 3)
    images = nn.functional.pad(images, (0, 1, 0, 1), value=128)
    missing = -count % columns
    images = torch.cat([images, images.new_full((missing, *images.shape[1:]), 128)])
    rows = [torch.cat(list(row), 2) for row in images.split(columns)]
    whole = torch.cat(rows, 1)[:, :-1, :-1]
    array = whole[0].numpy() if channels == 1 else whole.permute(1, 2, 0).numpy()
    return Image.fromarray(array)
