"""Texts about images: what `zoo generate --image` and `zoo predict` do with a vision-language model."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.cli.decoding import Decoding
from zoo.cli.doors import served
from zoo.cli.errors import UsageError, checked
from zoo.cli.options import model_with_weights, saved
from zoo.cli.output import PICTURES, check_suffix, say, show
from zoo.cli.text import INTERRUPTED, put, sampling, texts, write


def add_sight(parser: ArgumentParser) -> None:
    """--image FILE, as often as one likes."""
    parser.add_argument(
        "--image", type=Path, action="append", default=[], metavar="FILE",
        help="an image that the prompt is about, where it says <image> or before it; with --output what a model of "
        "motions is to move; repeatable",
    )  # fmt: skip


def continued(known: Namespace) -> int:
    """The text that follows images and a prompt, as it comes."""
    import zoo
    from zoo.vision_language import Llava, encode_prompt, prepare_images, stream
    from zoo.vision_language.answers import named

    model = checked(model_with_weights, known.model, None)
    if not isinstance(model, Llava):
        kind = type(model).__name__
        raise UsageError(f"--image is of a vision-language model, got {kind}; {served(model, known.model)}")
    if known.offload is not None:
        raise UsageError("--offload does not go with --image: leave out one of them")
    tokenizer = checked(zoo.load_tokenizer, saved(known.model))
    (text,) = checked(named, [known.prompt or model.config.caption_prompt], len(known.image))
    ids, images = checked(encode_prompt, model, tokenizer, text), checked(prepare_images, model, known.image)
    note_frames(known.image)
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
    """What is said of each image, and of each frame of a clip, of up to eight."""
    from rich.table import Table

    import zoo
    from zoo.images import count_frames
    from zoo.vision_language import answer, prepare_images
    from zoo.vision_language.drawing import draw_told

    check_suffix(known.output, PICTURES, "images with what is said of them")
    tokenizer = checked(zoo.load_tokenizer, saved(known.model))
    text, table = known.prompt or model.config.caption_prompt, Table("image", "text")
    told: list[tuple[Path, int, str]] = []
    for path in known.files:
        count = count_frames(path)
        for frame in frames_of(count):
            image = checked(prepare_images, model, [path], known.exif_orientation, [frame])
            said = checked(answer, model, image, text, tokenizer)[0].strip()
            table.add_row(f"{path}, frame {frame} of {count}" if count > 1 else str(path), said)
            told.append((path, frame, said))
    show(table)
    if known.output is not None:
        checked(draw_told, told, known.output, known.exif_orientation)
        say(f"written: {known.output}")
    return 0


def ranked(model: Any, known: Namespace) -> int:
    """How near texts are to each image, the nearest first."""
    import torch
    from rich.table import Table

    from zoo.generative import read
    from zoo.vision_language.drawing import draw_told

    if not known.text:
        raise UsageError(f"{known.model} says which texts are near an image: give some, --text TEXT --text TEXT")
    check_suffix(known.output, PICTURES, "images with texts")
    images = checked(read, model, known.files, exif_orientation=known.exif_orientation)
    note_frames(known.files)
    tokenizer = checked(_tokenizer_of, model, known.model)
    with torch.no_grad():
        near = checked(model.similarity, images, known.text, tokenizer)
    told: list[tuple[Path, int, str]] = []
    for path, row in zip(known.files, near, strict=True):
        table = Table("text", "similarity", title=str(path), title_justify="left")
        order = row.argsort(descending=True).tolist()[: known.top_k]
        for index in order:
            table.add_row(known.text[index], f"{row[index]:.3f}")
        show(table)
        told.append((path, 0, "\n".join(f"{row[index]:.2f} {known.text[index]}" for index in order)))
    if known.output is not None:
        checked(draw_told, told, known.output, known.exif_orientation)
        say(f"written: {known.output}")
    return 0


def _tokenizer_of(model: Any, name: str) -> Any:
    """None where the model reads bytes, which needs no files."""
    import zoo
    from zoo.vision_language.m2_encoder import BYTES

    return None if model.config.text_vocab_size == BYTES else zoo.load_tokenizer(saved(name))


def frames_of(count: int, most: int = 8) -> list[int]:
    """Up to so many of the frames of a file, evenly spaced."""
    shown = min(count, most)
    return [round(index * (count - 1) / max(1, shown - 1)) for index in range(shown)]


def note_frames(paths: Sequence[Path]) -> None:
    """Say of which files only the first frame is read."""
    from zoo.images import count_frames

    for path in paths:
        if (count := count_frames(path)) > 1:
            say(f"{path} has {count} frames: the first is read", stderr=True)
