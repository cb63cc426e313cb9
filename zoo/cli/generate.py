"""`zoo generate`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from zoo.cli.errors import UsageError, checked
from zoo.cli.options import add_import, add_model, model_with_weights, seed
from zoo.cli.output import say

HELP = "continue a text with a byte-level language model"
BYTES = 256  # vocabulary of a byte-level model
DOCUMENT_START = 0  # the byte that precedes every document in training (zoo.train.data.text)


def add_arguments(parser: ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--prompt", default="", help="text to continue")
    parser.add_argument("--max-new-tokens", type=int, default=200, metavar="N")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest token")
    parser.add_argument("--top-k", type=int, help="draw from the k likeliest tokens")
    parser.add_argument("--top-p", type=float, help="draw from the likeliest tokens of this joint probability")
    parser.add_argument("--seed", type=seed, default=0)
    add_import(parser)


def run(known: Namespace) -> int:
    import torch

    import zoo

    model = checked(model_with_weights, known.model, None)
    vocab_size = getattr(model.config, "vocab_size", None)
    if vocab_size != BYTES:
        raise UsageError(f"generating text needs a byte-level language model (vocab_size {BYTES}), got {vocab_size}")
    prompt = torch.tensor([[DOCUMENT_START, *checked(_bytes, known.prompt)]])
    tokens = checked(
        zoo.generate,
        model,
        prompt,
        known.max_new_tokens,
        temperature=known.temperature,
        top_k=known.top_k,
        top_p=known.top_p,
        generator=torch.Generator().manual_seed(known.seed),
        eos_token=DOCUMENT_START,
    )
    text = bytes(tokens[0, 1:].tolist()).split(bytes([DOCUMENT_START]))[0]
    say(text.decode("utf-8", errors="replace"))
    return 0


def _bytes(prompt: str) -> bytes:
    try:
        return prompt.encode()
    except UnicodeEncodeError as error:  # the shell passed other bytes on
        raise ValueError(f"the prompt is not UTF-8 at character {error.start}") from error
