"""`zoo generate`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from zoo.cli.decoding import Decoding, add_decoding, grouped
from zoo.cli.draw import add_drawing, drawn
from zoo.cli.errors import UsageError, checked
from zoo.cli.options import add_import, add_model, saved
from zoo.cli.output import say
from zoo.cli.sight import add_sight, continued
from zoo.cli.text import INTERRUPTED, add_sampling, model_and_tokenizer, put, sampling, texts, write

HELP = "continue a text, after images too, draw images or clips with a generator of them, or imagine with a world model"


def add_arguments(parser: ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--prompt", default="", help="text to continue")
    add_sight(parser)
    add_sampling(parser, max_new_tokens=200)
    add_decoding(parser)
    parser.add_argument(
        "--offload", metavar="MEMORY", help="weights take no more than this, such as 2GB; others are read when used"
    )
    parser.add_argument("--offload-policy", metavar="NAME", help="tpi_llm, se_moe, edge_moe, d2moe or llm_in_a_flash")
    add_drawing(parser)
    add_import(parser)


def run(known: Namespace) -> int:
    import zoo

    if known.output is not None:
        return drawn(known)
    grouped(known)  # what is no option is said before a model is read
    if known.image:
        return continued(known)
    model, tokenizer = model_and_tokenizer(known.model)
    model = _offloaded(known, model)
    ids = checked(tokenizer.encode, known.prompt)
    if not ids and tokenizer.bos_id is None:
        raise UsageError(f"{known.model} knows no token that begins a text: give it a --prompt")
    ids = ids or [tokenizer.bos_id]
    decoding = Decoding(known, model, tokenizer)
    options = sampling(known) | decoding.options
    with decoding.steered():
        steps = checked(zoo.stream, model, [ids], known.max_new_tokens, tokenizer=tokenizer, **options)
        put(known.prompt)
        whole = write(texts(steps, tokenizer.stream(ids, known.stop)))
    put("\n")
    for line in decoding.counts():
        say(line, stderr=True)
    if known.offload is not None:
        say(str(model.offloaded.traffic), stderr=True)
    return 0 if whole else INTERRUPTED


def _offloaded(known: Namespace, model: Any) -> Any:
    """The model within the memory that was asked for, from the files of its folder."""
    import zoo

    if known.offload is None:
        if known.offload_policy is not None:
            raise UsageError("got --offload-policy without --offload MEMORY")
        return model
    kind, _, folder = saved(known.model).partition(":")
    source = folder if kind == "local-dir" else model
    return checked(zoo.offload, source, memory=known.offload, policy=known.offload_policy or "tpi_llm")
