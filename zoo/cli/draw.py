"""Images and clips of generators: what `zoo generate MODEL --output FILE` draws."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from zoo.cli.errors import UsageError, checked
from zoo.cli.options import model_with_weights
from zoo.cli.output import CLIPS, PICTURES, check_suffix, say


def add_drawing(parser: ArgumentParser) -> None:
    """What is drawn, and where to; temperature and seed are those of texts."""
    images = parser.add_argument_group("images and clips")
    images.add_argument(
        "--output", type=Path, metavar="FILE",
        help="draw images, one picture of all (.png), or clips, as they move (.gif) or their frames in rows (.png)",
    )  # fmt: skip
    images.add_argument("--images", type=int, default=16, metavar="N", help="how many, or steps to imagine (16)")
    images.add_argument("--class", type=int, dest="image_class", metavar="I", help="of this class; all in turn")
    images.add_argument("--guidance", type=float, default=0.0, metavar="W", help="of the class over none (0)")


def drawn(known: Namespace) -> int:
    """Images of a generator in one picture, or clips.

    Raises:
        UsageError: for a model that makes none, options that it does not have, or a file of another kind.
    """
    import torch

    from zoo.cli.imagine import play_on
    from zoo.generative import MotionDiT, VideoDiT, draw, picture, write_gif
    from zoo.worlds import Drama

    if known.images < 1:
        raise UsageError(f"--images must be at least 1, got {known.images}")
    model = checked(model_with_weights, known.model, None)
    moves = isinstance(model, (MotionDiT, VideoDiT))
    if known.image and not isinstance(model, MotionDiT):
        raise UsageError(f"--image with --output is of a model of motions, got {type(model).__name__}: leave it out")
    check_suffix(known.output, CLIPS if moves else PICTURES, "clips" if moves else "images")
    if isinstance(model, Drama):
        if known.image_class is not None or known.guidance:
            raise UsageError(f"{known.model} imagines without classes: leave out --class and --guidance")
        return play_on(model, known)
    options: dict[str, Any] = {
        "temperature": known.temperature, "generator": torch.Generator().manual_seed(known.seed)
    }  # fmt: skip
    if classes := getattr(model.config, "num_classes", 0):
        chosen = torch.arange(known.images) % classes if known.image_class is None else known.image_class
        if not 0 <= (known.image_class or 0) < classes:
            raise UsageError(f"--class must be from 0 to {classes - 1}, got {known.image_class}")
        options |= {"classes": torch.zeros(known.images, dtype=torch.int64) + chosen, "guidance": known.guidance}
    elif known.image_class is not None or known.guidance:
        raise UsageError(f"{known.model} draws images without classes: leave out --class and --guidance")
    if isinstance(model, MotionDiT):
        options["content"] = _contents(model, known)
    made = checked(draw, model, known.images, **options)
    enlarged = max(1, 64 // made.shape[-1])
    frames = len(made) // known.images
    if known.output.suffix.lower() == ".gif":
        checked(write_gif, made.unflatten(0, (known.images, frames)), known.output, enlarged)
    else:
        columns = frames if moves else min(known.images, classes or 8)
        checked(checked(picture, made, columns, enlarged).save, known.output)
    what = f"clips of {frames} frames" if moves else "images"
    say(f"written: {known.output}, {known.images} {what}")
    return 0


def _contents(model: Any, known: Namespace) -> Any:
    """The frames (N, C, H, W) in [0, 1] that are to move: pictures, or what the autoencoder makes of clips."""
    import torch

    import zoo
    from zoo.generative import pixels
    from zoo.generative.clips import prepared
    from zoo.video import read_clip

    if not known.image:
        raise UsageError(f"{known.model} moves frames: give what is to move, --image FILE, a picture or a clip")
    autoencoder: Any = zoo.create_model(model.config.tokenizer, pretrained=True).eval()
    found = []
    for path in known.image:
        frames, _ = checked(read_clip, [path], autoencoder.config.image_shape, least=1)
        clip = checked(prepared, autoencoder, frames)
        with torch.no_grad():
            content = clip[:, :, 0] if len(frames) == 1 else autoencoder.encode(clip)[1]
        found.append(pixels(autoencoder, content))
    return torch.cat(found)
