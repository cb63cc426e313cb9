"""`zoo predict`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from zoo.cli.errors import UsageError, checked
from zoo.cli.options import add_checkpoint, add_image_reading, add_import, add_model, image_reading, model_with_weights
from zoo.cli.output import say, show

HELP = "the likeliest classes of images, or what a tokenizer makes of them"


def add_arguments(parser: ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    add_checkpoint(parser)
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="names of the classes: one a line, or JSON (default: those the model was trained with)",
    )
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="classes an image (default: 5)")
    parser.add_argument(
        "--output", type=Path, metavar="FILE.png", help="of an image tokenizer: images above what their codes decode to"
    )
    add_image_reading(parser)
    add_import(parser)


def run(known: Namespace) -> int:
    from rich.table import Table

    import zoo
    from zoo.generative import WeTok

    model = checked(model_with_weights, known.model, known.checkpoint)
    if isinstance(model, WeTok):
        return _reconstruct(model, known)
    if known.output is not None:
        raise UsageError(f"--output is of an image tokenizer, got {type(model).__name__}")
    found = checked(zoo.predict, model, known.images, top_k=known.top_k, **image_reading(known))
    labels = model.pretrained_cfg["label_names"]
    if known.labels is not None:
        labels = checked(zoo.read_labels, known.labels, model.num_classes)
    for path, classes in zip(known.images, found, strict=True):
        table = Table("class", "label", "probability", title=str(path), title_justify="left")
        for index, probability in classes:
            table.add_row(str(index), labels[index] if labels else "", f"{probability:.4f}")
        show(table)
    return 0


def _reconstruct(model: Any, known: Namespace) -> int:
    import torch
    from rich.table import Table

    from zoo.generative import picture, pixels, psnr, read

    images = checked(read, model.eval(), known.images, exif_orientation=known.exif_orientation)
    tokens = model.encode(images)
    before, after = (pixels(model, part.float()) for part in (images, model.decode(tokens)))
    table = Table("image", "tokens", "bits", "PSNR, dB")
    for path, own, ratio in zip(known.images, tokens, psnr(before, after).tolist(), strict=True):
        table.add_row(str(path), str(len(own)), str(len(own) * model.config.code_dim), f"{ratio:.2f}")
    show(table)
    if known.output is not None:
        both = picture(torch.cat([before, after]), len(before), max(1, 64 // before.shape[-1]))
        checked(both.save, known.output)
        say(f"written: {known.output}")
    return 0
