"""`zoo sparsify`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from zoo.cli.errors import checked
from zoo.cli.options import add_import, model_with_weights, saved
from zoo.cli.output import say

HELP = "keep a share of the weights of a model"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", help="a folder written by zoo.save_model, hf-hub:owner/repo, or a model's name")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("--method", default="magnitude", help="magnitude or wanda (default: magnitude)")
    parser.add_argument("--sparsity", type=float, default=0.5, help="share of the weights that go (default: 0.5)")
    parser.add_argument("--pattern", help="unstructured, row, or n:m such as 2:4 (default: the method's)")
    parser.add_argument("--skip", action="append", default=[], metavar="PATTERN", help="weights that stay; repeatable")
    parser.add_argument("--head", action="store_true", help="prune the head too")
    parser.add_argument("--calibration", type=Path, metavar="FILE", help="a text in UTF-8, not the one to score on")
    add_import(parser)


def run(known: Namespace) -> int:
    import zoo
    from zoo.layers.quant import stored_bytes
    from zoo.quantize import Calibration

    model = checked(model_with_weights, known.source, None)
    before, text = stored_bytes(model), None
    if known.calibration is not None:
        tokenizer = checked(zoo.load_tokenizer, saved(known.source))
        text = checked(Calibration.of_text, tokenizer, checked(known.calibration.read_text, encoding="utf-8"))
    checked(
        zoo.sparsify, model, known.method,
        sparsity=known.sparsity, pattern=known.pattern, calibration=text, skip=tuple(known.skip), head=known.head,
    )  # fmt: skip
    checked(zoo.save_model, model, known.target)
    say(f"{known.target}: {stored_bytes(model):,} of {before:,} bytes, by {known.method}")
    return 0
