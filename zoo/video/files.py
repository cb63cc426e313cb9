"""Clips from files, and strips of frames with what was found in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageSequence, UnidentifiedImageError
from torch import Tensor

from zoo.video.prompts import BACKGROUND, Prompt

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")  # of the frames in a folder
COLOUR, MARKS = (255, 64, 160), {BACKGROUND: (255, 255, 255)}  # of the object; of points beside it
SHOWN, SIDE = 8, 128  # frames of a strip at most; their least side in pixels


def read_clip(
    paths: Sequence[str | Path], size: int | tuple[int, int], least: int = 2
) -> tuple[Tensor, tuple[int, int]]:
    """(T, 3, height, width) float32 in [0, 1] of frames, and their own (width, height).

    Args:
        paths: a file of several frames, such as a GIF; a folder, whose pictures are frames in the order of their names;
            or pictures, a frame each.
        size: that they are resized to, a side or (height, width), whatever their shape.
        least: frames that a clip has.

    Raises:
        ValueError: for fewer frames, frames of different sizes, or a file that is no picture.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if len(paths) == 1 and Path(paths[0]).is_dir():
        paths = sorted(path for path in Path(paths[0]).iterdir() if path.suffix.lower() in SUFFIXES)
    frames, sizes = [], set()
    for path in paths:
        try:
            with Image.open(path) as file:
                pictures = [frame.convert("RGB") for frame in ImageSequence.Iterator(file)]
        except UnidentifiedImageError as error:
            raise ValueError(f"{path} must be a picture or a GIF: {error}") from error
        frames += [picture.resize((width, height), Image.Resampling.BILINEAR) for picture in pictures]
        sizes |= {picture.size for picture in pictures}
    if len(frames) < least:
        wanted = "two frames" if least == 2 else f"{least} frames"
        raise ValueError(
            f"a clip takes {wanted} or more, got {len(frames)}: give a GIF, a folder of pictures or several pictures"
        )
    if len(sizes) > 1:
        raise ValueError(f"the frames of a clip must have one size, got (width, height) {sorted(sizes)}")
    array = np.stack([np.asarray(frame) for frame in frames])
    return torch.from_numpy(array).movedim(-1, 1).float() / 255, sizes.pop()


def strip_of(pictures: Tensor, masks: Tensor, prompt: Prompt) -> tuple[Image.Image, list[int]]:
    """Frames side by side, the object in colour, with the prompt of the first; and which frames those are.

    Args:
        pictures: (T, 3, S, S) in [0, 1]. masks: (T, S, S) bool. prompt: points and boxes of one clip.
    """
    chosen = torch.linspace(0, len(pictures) - 1, min(SHOWN, len(pictures))).round().long()
    colour = torch.tensor(COLOUR)[:, None, None] / 255
    mixed = torch.where(masks[chosen, None], 0.45 * pictures[chosen] + 0.55 * colour, pictures[chosen])
    scale = -(-SIDE // pictures.shape[-1])
    large = (255 * mixed).round().byte().repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    gap = large.new_full((3, large.shape[2], 2), 255)
    parts = [part for frame in large for part in (frame, gap)][:-1]
    strip = Image.fromarray(torch.cat(parts, 2).permute(1, 2, 0).numpy())
    drawing = ImageDraw.Draw(strip)
    for x0, y0, x1, y1 in [] if prompt.boxes is None else ((prompt.boxes + 0.5) * scale).tolist():
        drawing.rectangle((x0, y0, x1, y1), outline=COLOUR, width=2)
    if prompt.points is not None and prompt.labels is not None:
        for (x, y), label in zip(((prompt.points[0] + 0.5) * scale).tolist(), prompt.labels[0].tolist(), strict=True):
            drawing.ellipse((x - 4, y - 4, x + 4, y + 4), fill=MARKS.get(label, COLOUR), outline=(0, 0, 0))
    return strip, chosen.tolist()


def draw_strip(pictures: Tensor, masks: Tensor, prompt: Prompt, path: str | Path) -> list[int]:
    """``strip_of`` as a file, whose suffix says its kind; which frames it shows."""
    strip, chosen = strip_of(pictures, masks, prompt)
    strip.save(path)
    return chosen
