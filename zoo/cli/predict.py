"""`zoo predict`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from zoo.cli.errors import checked
from zoo.cli.options import add_checkpoint, add_image_reading, add_import, add_model, image_reading, model_with_weights
from zoo.cli.output import show

HELP = "the likeliest classes of images"


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
    add_image_reading(parser)
    add_import(parser)


def run(known: Namespace) -> int:
    from rich.table import Table

    import zoo

    model = checked(model_with_weights, known.model, known.checkpoint)
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
