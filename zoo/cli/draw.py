"""Images of generators: what `zoo generate MODEL --output FILE.png` draws."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from zoo.cli.errors import UsageError, checked
from zoo.cli.options import model_with_weights
from zoo.cli.output import say


def add_drawing(parser: ArgumentParser) -> None:
    """What is drawn, and where to; temperature and seed are those of texts."""
    images = parser.add_argument_group("images")
    images.add_argument("--output", type=Path, metavar="FILE.png", help="draw images, one picture of all of them")
    images.add_argument("--images", type=int, default=16, metavar="N", help="how many, or steps to imagine (16)")
    images.add_argument("--class", type=int, dest="image_class", metavar="I", help="of this class; all in turn")
    images.add_argument("--guidance", type=float, default=0.0, metavar="W", help="of the class over none (0)")


def drawn(known: Namespace) -> int:
    """Images of a generator in one picture.

    Raises:
        UsageError: for a model that makes none, or options that it does not have.
    """
    import torch

    from zoo.cli.imagine import play_on
    from zoo.generative import draw, picture
    from zoo.worlds import Drama

    if known.images < 1:
        raise UsageError(f"--images must be at least 1, got {known.images}")
    model = checked(model_with_weights, known.model, None)
    if isinstance(model, Drama):
        if known.image_class is not None or known.guidance:
            raise UsageError(f"{known.model} imagines without classes: leave out --class and --guidance")
        return play_on(model, known)
    options: dict[str, Any] = {
        "temperature": known.temperature, "generator": torch.Generator().manual_seed(known.seed)
    }  # fmt: skip
    if classes := getattr(model.config, "num_classes", 0):
        chosen = torch.arange(known.images) % classes if known.image_class is None else known.image_class
        if not 0 <= (known.image_class or 0) < classes:
            raise UsageError(f"--class must be from 0 to {classes - 1}, got {known.image_class}")
        options |= {"classes": torch.zeros(known.images, dtype=torch.int64) + chosen, "guidance": known.guidance}
    elif known.image_class is not None or known.guidance:
        raise UsageError(f"{known.model} draws images without classes: leave out --class and --guidance")
    made = checked(draw, model, known.images, **options)
    columns = getattr(model.config, "frames", min(known.images, classes or 8))
    checked(picture(made, columns, max(1, 64 // made.shape[-1])).save, known.output)
    say(f"written: {known.output}, {known.images} images")
    return 0
