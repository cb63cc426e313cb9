"""Clips as files: moving ones, strips of frames, and what a model of clips keeps of one."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.generative.cmd import CMD
from zoo.generative.pictures import picture, pixels

PACE = 120  # milliseconds of a frame
GREY = (0.299, 0.587, 0.114)  # of red, green and blue, as PIL weighs them


def write_gif(clips: Tensor, path: str | Path, enlarged: int = 1) -> None:
    """Clips (B, T, C, H, W) in [0, 1] beside each other, as they move. A frame that equals the one before is written as
    one that stands longer, as GIFs have it.

    Raises:
        ValueError: for clips of no frames, or other channels than 1 or 3.
    """
    first, *rest = (picture(frames, min(8, len(clips)), enlarged) for frames in clips.unbind(1))
    first.save(path, save_all=True, append_images=rest, duration=PACE, loop=0)


def prepared(model: CMD, frames: Tensor) -> Tensor:
    """Frames (T, 3, H, W) in [0, 1] as the model reads them, (1, C, frames, H, W), normalised: those nearest to as many
    evenly spaced moments as it has frames, in grey for one channel.

    Raises:
        ValueError: for a model of other channels than 1 or 3.
    """
    c = model.config
    if c.in_chans not in (1, 3):
        raise ValueError(f"files are read as clips of 1 or 3 channels, and the model has {c.in_chans}")
    chosen = frames[torch.linspace(0, len(frames) - 1, c.frames).round().long()]
    if c.in_chans == 1:
        chosen = (chosen * chosen.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)
    mean, std = (chosen.new_tensor(part)[:, None, None] for part in (c.mean, c.std))
    return ((chosen - mean) / std).transpose(0, 1)[None]


def seen(model: CMD, clips: Tensor) -> Tensor:
    """Normalised clips (B, C, T, H, W) -> (B, T, C, H, W) in [0, 1]."""
    return pixels(model, clips.transpose(1, 2))


def strip(model: CMD, clip: Tensor, motion: Tensor, content: Tensor, made: Tensor) -> Tensor:
    """What a model makes of a clip, as images (3 (T + 1), C, H, W) in [0, 1], rows of T + 1: the frames; the content
    frame, and what it decodes to with the motion; and where the motion's numbers are large.

    Args:
        clip, made: (1, C, T, H, W), normalised.
        motion, content: as ``model.encode`` gives them.
    """
    rows, columns = model.config.patches
    across, down = motion[0].abs().mean(0).split([columns, rows], -1)  # (T, columns), (T, rows)
    places = F.interpolate((down[..., None] + across[:, None])[:, None] / 2, clip.shape[-2:])  # (T, 1, H, W)
    moving = places.expand(-1, clip.shape[1], -1, -1)
    frame = pixels(model, content)
    blank = torch.full_like(frame, 0.5)
    return torch.cat([blank, seen(model, clip)[0], frame, seen(model, made)[0], blank, moving])
