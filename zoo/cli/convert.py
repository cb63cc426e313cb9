"""`zoo convert`."""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from pathlib import Path

from zoo.cli.errors import checked
from zoo.cli.output import say

HELP = "write a checkpoint in another layout"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="folder with a config.json, or with --name weights alone")
    parser.add_argument("target", type=Path, help="folder to write, whose earlier model goes; with --to gguf a file")
    parser.add_argument(
        "--to", choices=("zoo", "transformers", "timm", "gguf"), default="zoo", help="layout (default: zoo)"
    )
    parser.add_argument("--name", help="model whose weights the source holds, where no config.json says so")
    parser.add_argument("--max-shard-size", metavar="SIZE", help="largest file of weights, such as 5GB (default: one)")
    parser.add_argument(
        "--form", metavar="FORM", help="of matrices in a GGUF file: f32, f16, bf16, q8_0, q5_1, ... q4_0"
    )
    parser.add_argument(
        "--ema", action=BooleanOptionalAction, help="take the averaged copy in a PyTorch file, or the trained weights"
    )


def run(known: Namespace) -> int:
    import zoo

    names = ("name", "ema", "max_shard_size", "form")
    written = checked(
        zoo.convert, known.source, known.target, known.to, **{name: getattr(known, name) for name in names}
    )
    say(f"{written}: " + ("for llama.cpp" if known.to == "gguf" else f"weights and config.json for {known.to}"))
    return 0
