"""`zoo generate`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Generator
from typing import Any

from zoo.cli.decoding import Decoding, add_decoding, grouped
from zoo.cli.errors import UsageError, checked
from zoo.cli.options import add_import, add_model
from zoo.cli.output import say
from zoo.cli.text import INTERRUPTED, add_sampling, model_and_tokenizer, put, sampling, write

HELP = "continue a text with a language model"


def add_arguments(parser: ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--prompt", default="", help="text to continue")
    add_sampling(parser, max_new_tokens=200)
    add_decoding(parser)
    add_import(parser)


def run(known: Namespace) -> int:
    import zoo

    grouped(known)  # what is no option is said before a model is read
    model, tokenizer = model_and_tokenizer(known.model)
    ids = checked(tokenizer.encode, known.prompt)
    if not ids and tokenizer.bos_id is None:
        raise UsageError(f"{known.model} knows no token that begins a text: give it a --prompt")
    ids = ids or [tokenizer.bos_id]
    decoding = Decoding(known, model, tokenizer)
    options = sampling(known) | decoding.options
    with decoding.steered():
        steps = checked(zoo.stream, model, [ids], known.max_new_tokens, tokenizer=tokenizer, **options)
        put(known.prompt)
        whole = write(_texts(steps, tokenizer.stream(ids, known.stop)))
    put("\n")
    for line in decoding.counts():
        say(line, stderr=True)
    return 0 if whole else INTERRUPTED


def _texts(steps: Any, shown: Any) -> Generator[str, None, None]:
    for step in steps:
        yield shown.add(int(step.tokens))
    yield shown.end()
