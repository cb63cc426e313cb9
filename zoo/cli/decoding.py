"""How text is decoded, as the commands ask for it: what is remembered, who drafts, what is left out, what steers."""

from __future__ import annotations

import ast
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from zoo.cli.errors import UsageError, checked
from zoo.cli.text import model_and_tokenizer

PROBE = "The quick brown fox said: 3.14 größer!\n"  # tokenizers that agree on it are taken for the same
WORDS = {"true": True, "false": False, "none": None}
MODELS = ("model", "draft", "counts")  # fields that are no options of a command line


def add_decoding(parser: ArgumentParser) -> None:
    """What is given on by ``Decoding``."""
    parser.add_argument(
        "--cache", metavar="NAME",
        help="what attention remembers (`zoo list --caches`); its options: --cache.recent 256 --cache.budget 64MiB",
    )  # fmt: skip
    parser.add_argument("--prefill-chunk", type=int, metavar="N", help="read the prompt N tokens at a time")
    parser.add_argument(
        "--draft", metavar="NAME",
        help="says the next tokens for the model to read at once: a smaller model, rapid:MODEL, which reads of a long "
        "prompt what belongs to its end, or mtp, longspec, early_exit, del, micro_steps; its options: --draft.exit 2",
    )  # fmt: skip
    parser.add_argument("--draft-length", type=int, metavar="N", help="tokens of a draft (4)")
    parser.add_argument(
        "--draft-widths", type=int, nargs="+", metavar="N", help="draft a tree, with so many tokens in each level"
    )
    parser.add_argument(
        "--compress", metavar="MODEL",
        help="read of a long prompt what this smaller model attends to (SpecPC); its options: --compress.budget 512",
    )  # fmt: skip
    parser.add_argument(
        "--memory", choices=("tim",),
        help="forget lists of subtasks in JSON once they are closed; options: --memory.keep 1 --memory.key subtasks",
    )  # fmt: skip
    parser.add_argument(
        "--steer", metavar="FILE", type=Path,
        help='move what is said the way of examples, a line of JSON each: ["what a text was", "what it became"]',
    )  # fmt: skip
    parser.add_argument("--steer-strength", type=float, metavar="X", help="how far (0.1)")
    parser.set_defaults(overridable=True)


class Decoding:
    """The options of ``add_decoding``, for a model.

    Args:
        known: the arguments.
        model, tokenizer: what is asked to continue a text.

    Attributes:
        options: arguments of ``zoo.stream``.

    Raises:
        UsageError: for what is no option, goes without another, or does not fit the model.
    """

    def __init__(self, known: Namespace, model: Any, tokenizer: Any):
        self.known, self.model, self.tokenizer = known, model, tokenizer
        self.given = grouped(known)
        self.options = {
            "cache": cache(known, self.given["cache"]), "prefill_chunk": known.prefill_chunk, "draft": self._draft(),
            "compress": self._compress(), "memory": self._memory(),
        }  # fmt: skip

    def steered(self) -> AbstractContextManager[Any]:
        """Within it the model says what the examples of ``--steer`` want."""
        known = self.known
        if known.steer is None:
            if known.steer_strength is not None:
                raise UsageError("got --steer-strength without --steer FILE")
            return nullcontext()
        from zoo.steering import in_context_vectors, steer

        ids = [[self.tokenizer.encode(text) for text in pair] for pair in pairs_of(known.steer)]
        vectors = checked(in_context_vectors, self.model, ids)
        return steer(self.model, vectors, 0.1 if known.steer_strength is None else known.steer_strength)

    def counts(self) -> Iterator[str]:
        """What came of it, to be told at the end."""
        if self.options["draft"] is not None:
            yield str(self.options["draft"].counts)
        if self.options["memory"] is not None:
            memory = self.options["memory"].counts
            yield f"{memory.pruned} tokens left the working memory, which held {memory.most} at most"

    def _draft(self) -> Any:
        from zoo.decoding import Draft, Rapid, TreeDraft, add_draft_layer, as_draft

        known, options = self.known, dict(self.given["draft"])
        for name, value in (("length", known.draft_length), ("widths", known.draft_widths)):
            if value is not None:
                options[name] = ",".join(map(str, value)) + "," if name == "widths" else str(value)
        if known.draft is None:
            if options:
                raise UsageError(f"got --draft.{next(iter(options))} without --draft NAME")
            return None
        if {"length", "widths"} <= options.keys():
            raise UsageError("--draft-length is of a chain, --draft-widths of a tree: leave out one of them")
        kind, _, rest = known.draft.partition(":")
        if kind == "rapid":
            made: Any = checked(Rapid, self._other(rest))
        elif known.draft in Draft.named:
            if known.draft == "longspec" and getattr(self.model, "draft_layer", None) is None:
                checked(add_draft_layer, self.model, pretrained=True)
            made = as_draft(known.draft)
        else:
            made = as_draft(self._other(known.draft))
        if "widths" in options and not isinstance(made, TreeDraft):
            raise UsageError(f"{known.draft} drafts no trees: leave out --draft-widths")
        if isinstance(made, TreeDraft) and "length" in options:
            options = {"widths": "()", **options}
        return with_options(made, "draft", options)

    def _compress(self) -> Any:
        from zoo.decoding import SpecPC

        name, options = self.known.compress, self.given["compress"]
        if name is None:
            return _nothing("compress", "MODEL", options)
        return with_options(checked(SpecPC, self._other(name)), "compress", options)

    def _memory(self) -> Any:
        from zoo.decoding import TIM

        options = self.given["memory"]
        if self.known.memory is None:
            return _nothing("memory", "tim", options)
        return with_options(TIM(), "memory", options)

    def _other(self, name: str) -> Any:
        """Another model of the same tokens."""
        model, tokenizer = model_and_tokenizer(name)
        if tokenizer.encode(PROBE) != self.tokenizer.encode(PROBE):
            raise UsageError(f"{name} and {self.known.model} read a text as other tokens: a draft knows the model's")
        return model


def grouped(known: Namespace) -> dict[str, dict[str, str]]:
    """The arguments ``--cache.NAME VALUE`` and their like, by what they are options of.

    Raises:
        UsageError: for others.
    """
    groups: dict[str, dict[str, str]] = {name: {} for name in ("cache", "draft", "compress", "memory")}
    rest = [part for given in known.overrides for part in given.split("=", 1)]
    for name, value in zip(rest[::2], rest[1::2], strict=False):
        group, dot, option = name.removeprefix("--").partition(".")
        if not name.startswith("--") or not dot or group not in groups:
            raise UsageError(f"unrecognized arguments: {' '.join(known.overrides)}")
        groups[group][option] = value
    if len(rest) % 2:
        raise UsageError(f"unrecognized arguments: {' '.join(known.overrides)}")
    return groups


def cache(known: Namespace, given: dict[str, str]) -> Any:
    """The cache policy that was asked for, or None.

    Raises:
        UsageError: for an option without --cache, or one that the policy does not have.
    """
    from zoo.layers.cache.names import option, policy_of

    options = {name: checked(option, name, value) for name, value in given.items()}
    if known.cache is None:
        if options:
            raise UsageError(f"got --cache.{next(iter(options))} without --cache NAME; `zoo list --caches` shows them")
        return None
    return checked(policy_of, known.cache, **options)


def with_options(made: Any, group: str, given: dict[str, str]) -> Any:
    """A dataclass with options as they are written on a command line.

    Raises:
        UsageError: for one that it does not have, of another type, or out of range.
    """
    from zoo.registry import nearest

    known = {field.name: field for field in fields(made) if field.init and field.name not in MODELS}
    options = {}
    for name, text in given.items():
        if name not in known:
            raise UsageError(f"there is no --{group}.{name}{nearest(name, known)}; its options: {', '.join(known)}")
        before, value = getattr(made, name), read(text)
        fits = isinstance(value, type(before)) or (isinstance(before, float) and isinstance(value, int))
        if not (before is None or fits or (value is None and "None" in str(known[name].type))):
            raise UsageError(f"wanted for --{group}.{name} is one like {before!r}, got {text!r}")
        options[name] = value
    return checked(replace, made, **options) if options else made


def read(text: str) -> Any:
    """A number, several with commas between, true, false, none, or the text itself."""
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def pairs_of(file: Path) -> list[list[str]]:
    """Pairs of texts, a line of JSON each.

    Raises:
        UsageError: for a file that cannot be read, or a line of something else.
    """
    found = []
    for number, line in enumerate(checked(file.read_text, encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            pair = json.loads(line)
        except json.JSONDecodeError:
            pair = None
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) and text for text in pair):
            raise UsageError(f'{file}, line {number}: a pair of texts is wanted, ["before", "after"], got {line!r}')
        found.append(pair)
    return found


def _nothing(group: str, value: str, options: dict[str, str]) -> None:
    if options:
        raise UsageError(f"got --{group}.{next(iter(options))} without --{group} {value}")
