"""An object that is hidden for a while, followed by the bundled EfficientTAM: J with and without memory, and a strip.

    python -m zoo.benchmarks.tracking          # writes benchmarks/results/efficienttam_strip.png; seconds

Above in the strip each frame is read beside what is remembered of those before, below by itself, with the point that
names the object in the first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import zoo
from zoo.benchmarks.common import RESULTS
from zoo.train.data import ClipsDataModule
from zoo.train.tasks.tracking import jaccard, prompt_of
from zoo.video import Prompt
from zoo.video.files import strip_of

CLIPS = 64
NAME = "efficienttam_nano"
GAP = 4  # pixels between the rows of the strip


def clips(count: int = CLIPS) -> tuple[Tensor, dict[str, Tensor]]:
    """Generated clips to test with, see ``ClipsDataModule``."""
    data = ClipsDataModule(test_samples=count)
    data.setup()
    return data.sources["test"].fetch(torch.arange(count), 0)


@torch.no_grad()
def followed(model: Any, pictures: Tensor, prompt: Prompt, remembers: bool = True) -> Tensor:
    """(B, T, S, S) bool: where ``model`` finds what ``prompt`` names in the first frame of clips (B, T, 3, S, S) in
    [0, 1]; each frame by itself, with that prompt, where it does not remember."""
    frames = model.eval().normalised(pictures)
    if remembers:
        return model(frames, prompt) > 0
    return torch.cat([model(frame[:, None], prompt) for frame in frames.unbind(1)], 1) > 0


def again(masks: Tensor) -> Tensor:
    """(B, T) of masks (B, T, S, S): where something is seen after a frame in which nothing was."""
    seen = masks.flatten(2).any(2)
    return seen & (~seen).cummax(1).values


def overlaps(found: Tensor, masks: Tensor) -> dict[str, float]:
    """The mean J of all frames after the first, and of those in which the object is seen again."""
    j = jaccard(found, masks)
    return {"after the first frame": j[:, 1:].mean().item(), "seen again": j[again(masks)].mean().item()}


def draw(model: Any, path: str | Path) -> int:
    """The first clip whose object is hidden and seen in the last frame again, in two rows; which clip that is."""
    pictures, targets = clips()
    index = int(again(targets["masks"])[:, -1].int().argmax())
    rows = slice(index, index + 1)
    prompt = prompt_of({name: part[rows] for name, part in targets.items()}, "point")
    strips = [
        strip_of(pictures[index], followed(model, pictures[rows], prompt, remembers)[0], prompt)[0]
        for remembers in (True, False)
    ]
    width, height = strips[0].size
    both = Image.new("RGB", (width, 2 * height + GAP), (255, 255, 255))
    for row, strip in enumerate(strips):
        both.paste(strip, (0, row * (height + GAP)))
    both.save(path)
    return index


if __name__ == "__main__":
    draw(zoo.create_model(NAME, pretrained=True), RESULTS / "efficienttam_strip.png")
