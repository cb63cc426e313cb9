"""Pictures with the texts about them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from zoo.images import open_image

SIDE, LETTERS, LINE = 192, 30, 14  # pixels of a picture, letters of a line and pixels of its height
COLUMNS, GAP = 4, 8


def draw_told(told: Sequence[tuple[Path, int, str]], path: str | Path, exif_orientation: bool = False) -> None:
    """Write a picture of files and what is said of each, below it.

    Args:
        told: files, the number of a frame, and a text of lines.
        path: whose suffix says its kind.
        exif_orientation: turn images as the camera notes that it was held.

    Raises:
        ValueError: for a file that is no image.
    """
    from PIL import Image, ImageDraw

    texts = [
        [part for line in text.splitlines() for part in textwrap.wrap(line, LETTERS) or [""]] for _, _, text in told
    ]
    height = SIDE + LINE * max(map(len, texts)) + GAP
    columns = min(COLUMNS, len(told))
    whole = Image.new("RGB", (columns * (SIDE + GAP) + GAP, -(-len(told) // columns) * (height + GAP) + GAP), "white")
    drawing = ImageDraw.Draw(whole)
    for place, ((file, frame, _), lines) in enumerate(zip(told, texts, strict=True)):
        row, column = divmod(place, columns)
        left, top = GAP + column * (SIDE + GAP), GAP + row * (height + GAP)
        image = open_image(file, exif_orientation=exif_orientation, frame=frame)
        scale = SIDE / max(image.size)
        sides = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
        whole.paste(image.resize(sides, method), (left, top))
        for number, line in enumerate(lines):
            drawing.text((left, top + SIDE + 2 + number * LINE), line, fill="black")
    whole.save(path)
