"""What the commands that write text share: options of sampling, text as it comes, and Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from argparse import ArgumentParser, Namespace
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any
from unicodedata import category

from zoo.cli.doors import served
from zoo.cli.errors import UsageError, checked
from zoo.cli.options import model_with_weights, saved, seed

INTERRUPTED = 130  # the exit code of what Ctrl-C ended


def add_sampling(parser: ArgumentParser, max_new_tokens: int) -> None:
    """How text is continued, given on by ``sampling``."""
    parser.add_argument("--max-new-tokens", type=int, default=max_new_tokens, metavar="N")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest token")
    parser.add_argument("--top-k", type=int, help="draw from the k likeliest tokens")
    parser.add_argument("--top-p", type=float, help="draw from the likeliest tokens of this joint probability")
    parser.add_argument("--min-p", type=float, help="draw from tokens of this share of the likeliest one's chance")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: what was said is less likely")
    parser.add_argument(
        "--presence-penalty", type=float, default=0.0, help="above 0: what was generated is less likely"
    )
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends the text; repeatable")
    parser.add_argument("--compile", action="store_true", help="compile the step by torch.compile")
    parser.add_argument("--seed", type=seed, default=0)


def sampling(known: Namespace) -> dict[str, Any]:
    """The options of ``add_sampling`` as arguments of ``zoo.stream``."""
    import torch

    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "stop", "compile")
    return {name: getattr(known, name) for name in names} | {"generator": torch.Generator().manual_seed(known.seed)}


def model_and_tokenizer(name: str) -> tuple[Any, Any]:
    """A model with its weights, and its tokenizer."""
    import zoo
    from zoo.language import LanguageModel
    from zoo.vision_language import Llava

    model = checked(model_with_weights, name, None)
    if isinstance(model, Llava):
        raise UsageError(f"{name} reads texts about images: give it one, `zoo generate {name} --image FILE`")
    if not isinstance(model, LanguageModel):
        raise UsageError(f"text needs a language model, got {type(model).__name__}; {served(model, name)}")
    tokenizer = checked(zoo.load_tokenizer, saved(name))
    checked(tokenizer.check, model)
    return model, tokenizer


def write(pieces: Generator[str, None, None]) -> bool:
    """Write text as it comes, up to the end or Ctrl-C; whether it came to its end.

    A second Ctrl-C ends the program.
    """
    with _interruptible() as stopped, closing(pieces):
        for piece in pieces:
            put(piece)
            if stopped:
                return False
    return True


def texts(steps: Any, shown: Any) -> Generator[str, None, None]:
    """The text of steps as they come, through a decoder of the tokenizer."""
    for step in steps:
        yield shown.add(int(step.tokens))
    yield shown.end()


def put(text: str) -> None:
    """Text on stdout, at once; on a terminal without what would command it."""
    if sys.stdout.isatty():
        from zoo.text.stream import BROKEN

        text = "".join(BROKEN if category(one) == "Cc" and one not in "\n\t" else one for one in text)
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))
    sys.stdout.flush()


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """The signals of Ctrl-C: the first is noted, so that a step of the model is not cut in half."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(number: int, frame: Any) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)
