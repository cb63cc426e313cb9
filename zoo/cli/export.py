"""`zoo export`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from zoo.cli.errors import checked
from zoo.cli.options import add_checkpoint, add_import, add_model, model_with_weights
from zoo.cli.output import say

HELP = "write a model as an ONNX file"


def add_arguments(parser: ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("path", type=Path, metavar="FILE", help="ONNX file to write")
    add_checkpoint(parser)
    parser.add_argument("--fuse", action="store_true", help="fold batch norms first")
    parser.add_argument("--step", action="store_true", help="of a language model one step, with its state in and out")
    parser.add_argument("--batch", type=int, metavar="N", help="fixed batch size (default: any)")
    add_import(parser)


def run(known: Namespace) -> int:
    import zoo

    model = checked(model_with_weights, known.model, known.checkpoint)
    if known.fuse and hasattr(model, "fuse"):  # what is no vision model is refused below
        model = model.fuse()
    path = checked(zoo.export_onnx, model, known.path, step=known.step, fixed_batch=known.batch)
    data = path.with_name(f"{path.name}.data")
    say(f"written: {path}" + (f", and its weights, which are too large for one file: {data}" if data.exists() else ""))
    return 0
