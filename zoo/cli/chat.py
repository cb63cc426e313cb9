"""`zoo chat`."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import suppress

from zoo.cli.errors import checked
from zoo.cli.options import add_import, add_model
from zoo.cli.text import add_sampling, model_and_tokenizer, put, sampling, write

HELP = "talk with a language model: a turn a line, from the keyboard or a pipe"


def add_arguments(parser: ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before the first turn")
    parser.add_argument("--plain", action="store_true", help="no chat template: each line is text to be continued")
    add_sampling(parser, max_new_tokens=512)
    add_import(parser)


def run(known: Namespace) -> int:
    import zoo

    model, tokenizer = model_and_tokenizer(known.model)
    chat = checked(zoo.Chat, model, tokenizer, system=known.system, plain=known.plain)
    options = sampling(known)
    for text in _turns():
        write(checked(chat.ask, text, known.max_new_tokens, **options))
        put("\n")
    return 0


def _turns() -> Iterator[str]:
    """The lines of stdin that are not empty, until its end (Ctrl-D); Ctrl-C takes back what was typed."""
    asking = sys.stdin.isatty()
    if asking:
        with suppress(ImportError):  # Windows has none
            import readline  # noqa: F401 - gives input() a line that can be edited
    while True:
        try:
            text = input("> " if asking else "")
        except EOFError:
            if asking:
                put("\n")
            return
        except KeyboardInterrupt:
            put("\n")
            continue
        if text.strip():
            yield text
