"""From texts with ``<image>`` in them, and from files, to what a vision-language model reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.layers.precision import computes_in
from zoo.predict import image_reader
from zoo.text.tokenizer import Tokenizer
from zoo.vision_language.reduction import Reduction

IMAGE = "<image>"


def encode_prompt(
    model: Any, tokenizer: Tokenizer, text: str, images: int | None = None, reduction: Reduction | None = None
) -> list[int]:
    """The ids of a text in which every ``<image>`` has a place for each feature of its image.

    Where a reduction takes several images together, each group of them has the places of all in the first one's stead.

    Args:
        model: a ``Llava``.
        tokenizer: of its language model.
        text: that asks about the images.
        images: how many there are; None: as many as the text names.
        reduction: with which the model will read them.

    Raises:
        ValueError: for a text that names another number of images than there are, or ends in one: a text must follow.
    """
    named, together = text.count(IMAGE), 1 if reduction is None else reduction.images
    if images is not None and named != images:
        raise ValueError(
            f"the text must name each image by one {IMAGE}, got {named} of them and {images} image"
            f"{'' if images == 1 else 's'}: {text!r}"
        )
    if named % together:
        raise ValueError(f"{reduction!r} takes {together} images together, and the text names {named}: {text!r}")
    if text.rstrip().endswith(IMAGE):
        raise ValueError(f"a text must follow the last {IMAGE}, such as a line break, got {text!r}")
    count, ids, seen = model.tokens_of_image(reduction), [], 0
    for one in _ids(model, tokenizer, text, named):
        if one != model.config.image_token:
            ids.append(one)
        else:
            ids += [one] * (0 if seen % together else count)
            seen += 1
    return ids


def _ids(model: Any, tokenizer: Tokenizer, text: str, named: int) -> list[int]:
    """With one id for each image, by the tokenizer itself where it knows ``<image>``."""
    token = model.config.image_token
    ids = tokenizer.encode(text)
    if ids.count(token) == named:
        return ids
    first, *rest = text.split(IMAGE)
    ids = tokenizer.encode(first)
    for part in rest:
        ids += [token, *tokenizer.encode(part, add_special_tokens=False)]
    return ids


def prepare_images(
    model: Any, files: Sequence[str | Path], exif_orientation: bool = False, frames: Sequence[int] = (0,)
) -> Tensor:
    """Files as the model's encoder reads them, (I, C, H, W).

    Args:
        model: a ``Llava``.
        files: that PIL can read.
        exif_orientation: turn images as the camera notes that it was held.
        frames: those that are read of each file of several, such as a GIF.

    Raises:
        ValueError: for a file that is no image, by name. FileNotFoundError: for one that is not there.
    """
    read = image_reader(model.vision, exif_orientation)
    return torch.stack([read(path, frame) for path in files for frame in frames]).to(computes_in(model.vision))
