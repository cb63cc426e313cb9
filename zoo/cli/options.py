"""Arguments that several commands share, each written once."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any


def add_model(parser: ArgumentParser) -> None:
    """MODEL: a folder, or a name with weights."""
    parser.add_argument("model", help="a folder written by zoo.save_model, or a model's name")


def add_checkpoint(parser: ArgumentParser) -> None:
    """--checkpoint FILE."""
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights of a named model")


def model_with_weights(model: str, checkpoint: Path | None) -> Any:
    """A folder's model, or a named one with the weights of a file or the published ones."""
    import zoo

    if Path(model).is_dir():
        return zoo.create_model(f"local-dir:{model}")
    return zoo.create_model(model, pretrained=checkpoint is None, checkpoint_path=checkpoint)
