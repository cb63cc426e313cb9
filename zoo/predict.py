"""Classes of images: files through a model's own preparation to the likeliest labels."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.images import ImageError, open_image
from zoo.layers.precision import computes_in


def predict(
    model: nn.Module,
    images: str | Path | Sequence[str | Path],
    *,
    top_k: int = 5,
    exif_orientation: bool = False,
    skip_bad_images: bool = False,
) -> list[list[tuple[int, float]]]:
    """The likeliest classes of each image, with their probabilities.

    Images are prepared as the model's ``pretrained_cfg`` says, by timm's evaluation transform (resize, centre crop,
    normalise), as grey ones for a model of one channel, one at a time. The model is put into eval mode.

    Args:
        model: a vision model.
        images: files that PIL can read, or one of them; 16-bit grey ones are scaled.
        top_k: classes an image, all there are at most.
        exif_orientation: turn images as the camera notes that it was held.
        skip_bad_images: an image that cannot be read has no classes and a warning, instead of ending in an error.

    Returns:
        For each image a list of (class index, probability), likeliest first.

    Raises:
        ValueError: for a model without a classifier, a top_k below 1, or a file that is not a whole image, by name.
        FileNotFoundError: for a file that is not there.
    """
    classes = getattr(model, "num_classes", 0)
    if not classes or not hasattr(model, "pretrained_cfg"):
        raise ValueError(f"predicting needs an image classifier, got {type(model).__name__} with {classes} classes")
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    read, like = image_reader(model, exif_orientation), computes_in(model.eval())
    found = []
    for path in [images] if isinstance(images, (str, Path)) else images:
        try:
            pixels = read(path)
        except ImageError as error:
            if not skip_bad_images:
                raise
            warnings.warn(f"skipped: {error}", stacklevel=2)
            found.append([])
            continue
        with torch.no_grad():
            probabilities = model(pixels[None].to(like)).float().softmax(-1)[0]
        best = probabilities.topk(min(top_k, classes))
        found.append(list(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
    return found


def image_reader(model: nn.Module, exif_orientation: bool = False) -> Callable[..., Tensor]:
    """From a file, and of several frames the number of one, to the pixels (C, H, W) that a vision model takes, by
    timm's evaluation transform."""
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    pretrained_cfg: Any = model.pretrained_cfg
    transform: Any = create_transform(**resolve_data_config(pretrained_cfg=pretrained_cfg))
    mode = "L" if pretrained_cfg["input_size"][0] == 1 else "RGB"
    return lambda path, frame=0: transform(open_image(path, mode, exif_orientation=exif_orientation, frame=frame))


def read_labels(path: str | Path, num_classes: int) -> list[str]:
    """Names of the classes: a text file with one a line, or JSON, a list or an object from index to name.

    Raises:
        ValueError: when there is not one name for each of ``num_classes`` classes, or the file is no UTF-8.
        FileNotFoundError: no such file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8: {error}") from error
    if text.lstrip().startswith(("[", "{")):
        try:
            content: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        if isinstance(content, dict):
            content = [content.get(str(index)) for index in range(max(len(content), num_classes))]
        labels: list[Any] = [" ".join(map(str, name)) if isinstance(name, list) else name for name in content]
    else:
        labels = text.splitlines()
    if len(labels) != num_classes or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{path} must name {num_classes} classes, one each, got {len(labels)} names")
    return labels
