"""Texts about images: what `zoo generate --image` and `zoo predict` do with a vision-language model."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from zoo.cli.decoding import Decoding
from zoo.cli.errors import UsageError, checked
from zoo.cli.options import model_with_weights, saved
from zoo.cli.output import say, show
from zoo.cli.text import INTERRUPTED, put, sampling, texts, write


def add_sight(parser: ArgumentParser) -> None:
    """--image FILE, as often as one likes."""
    parser.add_argument(
        "--image", type=Path, action="append", default=[], metavar="FILE",
        help="an image that the prompt is about, where it says <image> or before it; repeatable",
    )  # fmt: skip


def continued(known: Namespace) -> int:
    """The text that follows images and a prompt, as it comes."""
    import zoo
    from zoo.vision_language import Llava, encode_prompt, prepare_images, stream
    from zoo.vision_language.answers import named

    model = checked(model_with_weights, known.model, None)
    if not isinstance(model, Llava):
        raise UsageError(
            f"--image is of a vision-language model, got {type(model).__name__}: `zoo list --task vision-language`"
        )
    if known.offload is not None:
        raise UsageError("--offload does not go with --image: leave out one of them")
    tokenizer = checked(zoo.load_tokenizer, saved(known.model))
    (text,) = checked(named, [known.prompt or model.config.caption_prompt], len(known.image))
    ids, images = checked(encode_prompt, model, tokenizer, text), checked(prepare_images, model, known.image)
    decoding = Decoding(known, model.language, tokenizer)
    options = sampling(known) | {name: value for name, value in decoding.options.items() if value is not None}
    with decoding.steered():
        steps = checked(stream, model, images, [ids], known.max_new_tokens, tokenizer=tokenizer, **options)
        put(text)
        whole = write(texts(steps, tokenizer.stream(ids[-1:], known.stop)))
    put("\n")
    for line in decoding.counts():
        say(line, stderr=True)
    return 0 if whole else INTERRUPTED


def described(model: Any, known: Namespace) -> int:
    """What is said of each image."""
    from rich.table import Table

    import zoo
    from zoo.vision_language import answer, prepare_images

    if known.output is not None:
        raise UsageError("--output is of images, series and sounds; what is said of an image is shown")
    tokenizer = checked(zoo.load_tokenizer, saved(known.model))
    text, table = known.prompt or model.config.caption_prompt, Table("image", "text")
    for path in known.files:
        image = checked(prepare_images, model, [path], known.exif_orientation)
        table.add_row(str(path), checked(answer, model, image, text, tokenizer)[0].strip())
    show(table)
    return 0
