"""What the commands that write text share: options of sampling, text as it comes, and Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from argparse import ArgumentParser, Namespace
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any
from unicodedata import category

from zoo.cli.errors import UsageError, checked
from zoo.cli.options import model_with_weights, saved, seed
from zoo.text.stream import BROKEN

PROBE = "The quick brown fox said: 3.14 größer!\n"  # tokenizers that agree on it are taken for the same
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


def add_cache(parser: ArgumentParser) -> None:
    """A cache policy and its options, given on by ``cache``."""
    help = "what attention remembers (`zoo list --caches`); its options: --cache.recent 256 --cache.budget 64MiB"
    parser.add_argument("--cache", metavar="NAME", help=help)
    parser.add_argument("--prefill-chunk", type=int, metavar="N", help="read the prompt N tokens at a time")
    parser.set_defaults(overridable=True)


def add_draft(parser: ArgumentParser) -> None:
    """What drafts for the model, given on by ``draft``."""
    named = "mtp, longspec, early_exit, del, micro_steps"
    help = f"says the next tokens for the model to read at once: a smaller model, or {named}"
    parser.add_argument("--draft", metavar="NAME", help=help)
    parser.add_argument("--draft-length", type=int, metavar="N", help="tokens of a draft (4)")
    parser.add_argument(
        "--draft-widths", type=int, nargs="+", metavar="N", help="draft a tree, with so many tokens in each level"
    )


def draft(known: Namespace, tokenizer: Any) -> Any:
    """The draft of the options of ``add_draft``; None for none.

    Raises:
        UsageError: for a length without a draft, and a draft of other tokens.
    """
    from zoo.decoding import Draft, TreeDraft, as_draft

    asked = {"length": known.draft_length, "widths": known.draft_widths and tuple(known.draft_widths)}
    options = {name: value for name, value in asked.items() if value is not None}
    if known.draft is None:
        if options:
            raise UsageError(f"--draft-{next(iter(options))} goes with --draft NAME")
        return None
    if len(options) > 1:
        raise UsageError("--draft-length is of a chain, --draft-widths of a tree: leave out one of them")
    made: Any = known.draft
    if made not in Draft.named:
        made, other = model_and_tokenizer(known.draft)
        if other.encode(PROBE) != tokenizer.encode(PROBE):
            raise UsageError(f"{known.draft} and {known.model} read a text as other tokens: a draft knows the model's")
    made = as_draft(made)
    if "widths" in options and not isinstance(made, TreeDraft):
        raise UsageError(f"{known.draft} drafts no trees: leave out --draft-widths")
    if isinstance(made, TreeDraft) and "length" in options:
        options = {"widths": (), **options}
    return checked(replace, made, **options) if options else made


def cache(known: Namespace) -> dict[str, Any]:
    """The options of ``add_cache`` as arguments of ``zoo.stream``.

    Raises:
        UsageError: for another option, one without --cache, or one that the policy does not have.
    """
    from zoo.layers.cache.names import option, policy_of

    options: dict[str, Any] = {}
    rest = [part for given in known.overrides for part in given.split("=", 1)]
    for name, value in zip(rest[::2], rest[1::2], strict=False):
        options[name.removeprefix("--cache.")] = checked(option, name, value)
    if len(rest) % 2 or not all(name.startswith("--cache.") for name in rest[::2]):
        raise UsageError(f"unrecognized arguments: {' '.join(known.overrides)}")
    if options and known.cache is None:
        raise UsageError(f"{rest[0]} goes with --cache NAME; `zoo list --caches` shows them")
    policy = None if known.cache is None else checked(policy_of, known.cache, **options)
    return {"cache": policy, "prefill_chunk": known.prefill_chunk}


def sampling(known: Namespace) -> dict[str, Any]:
    """The options of ``add_sampling`` as arguments of ``zoo.stream``."""
    import torch

    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "stop", "compile")
    return {name: getattr(known, name) for name in names} | {"generator": torch.Generator().manual_seed(known.seed)}


def model_and_tokenizer(name: str) -> tuple[Any, Any]:
    """A model with its weights, and its tokenizer."""
    import zoo
    from zoo.language import LanguageModel

    model = checked(model_with_weights, name, None)
    if not isinstance(model, LanguageModel):
        raise UsageError(f"text needs a language model, got {type(model).__name__}: `zoo list --task language`")
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


def put(text: str) -> None:
    """Text on stdout, at once; on a terminal without what would command it."""
    if sys.stdout.isatty():
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
