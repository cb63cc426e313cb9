"""`zoo predict`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.cli.errors import UsageError, checked
from zoo.cli.options import add_checkpoint, add_image_reading, add_import, add_model, image_reading, model_with_weights
from zoo.cli.output import show

HELP = (
    "classes of images or points, a text about images, a tokenizer's codes, anomalies of a series, speech in a sound, "
    "an object in a clip, what comes next, or what stands around cameras"
)


def add_arguments(parser: ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="images; a series or points as .csv or .npy; a sound as .wav; a clip as a .gif, a folder of pictures or "
        "pictures; frames and actions as .npz",
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--point",
        action="append",
        metavar="X,Y",
        help="pixel of the object in the first frame of a clip; again for more",
    )
    parser.add_argument("--box", metavar="LEFT,TOP,RIGHT,BOTTOM", help="pixels around the object, in that frame")
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="names of the classes: one a line, or JSON (default: those the model was trained with)",
    )
    parser.add_argument(
        "--top-k", type=int, default=5, metavar="K", help="classes, moments of a series, or cells of a map (default: 5)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="a .png: images above what their codes decode to, a series above its scores, spectrograms, a strip of "
        "frames, what is seen from above; or a .wav",
    )
    parser.add_argument(
        "--context", type=int, default=8, metavar="N", help="frames that a world model sees before it imagines the rest"
    )
    parser.add_argument(
        "--prompt", default="", metavar="TEXT", help="what a vision-language model is asked (default: for a caption)"
    )
    add_image_reading(parser)
    add_import(parser)


def run(known: Namespace) -> int:
    from zoo.audio import DeFTAN2
    from zoo.cli.answers import classify_points, enhance, find_anomalies, follow, look_around, reconstruct
    from zoo.cli.imagine import foretell
    from zoo.cli.sight import described
    from zoo.generative import WeTok
    from zoo.series import StackVAE
    from zoo.spatial import DFA3D, ScatterFormer
    from zoo.video import EfficientTAM
    from zoo.vision_language import Llava
    from zoo.worlds import Drama

    ways: dict[type, Callable[[Any, Namespace], int]] = {
        WeTok: reconstruct,
        StackVAE: find_anomalies,
        DeFTAN2: enhance,
        EfficientTAM: follow,
        Drama: foretell,
        Llava: described,
        ScatterFormer: classify_points,
        DFA3D: look_around,
    }
    model = checked(model_with_weights, known.model, known.checkpoint)
    if known.prompt and not isinstance(model, Llava):
        raise UsageError(f"--prompt is of a vision-language model, got {type(model).__name__}")
    way = next((way for kind, way in ways.items() if isinstance(model, kind)), _classify)
    if way is not follow and (known.point or known.box):
        raise UsageError(f"--point and --box are of a video model, got {type(model).__name__}")
    _check_reading(known, way, model)
    return way(model.eval(), known)


def _check_reading(known: Namespace, way: Callable[[Any, Namespace], int], model: Any) -> None:
    """Refuse options that this kind of model does not read."""
    from zoo.cli.answers import reconstruct
    from zoo.cli.sight import described

    for option, given, ways in (
        ("--labels", known.labels is not None, (_classify,)),
        ("--skip-bad-images", known.skip_bad_images, (_classify,)),
        ("--exif-orientation", known.exif_orientation, (_classify, reconstruct, described)),
    ):
        if given and way not in ways:
            kinds = "models that read single images" if len(ways) > 1 else "classifiers of images"
            raise UsageError(f"{option} is of {kinds}, got {type(model).__name__}: leave it out")


def _classify(model: Any, known: Namespace) -> int:
    from rich.table import Table

    import zoo

    if known.output is not None:
        kinds = "an image tokenizer, of series, sounds, clips, worlds, points or cameras"
        raise UsageError(f"--output is of {kinds}, got {type(model).__name__}")
    found = checked(zoo.predict, model, known.files, top_k=known.top_k, **image_reading(known))
    labels = model.pretrained_cfg["label_names"]
    if known.labels is not None:
        labels = checked(zoo.read_labels, known.labels, model.num_classes)
    for path, classes in zip(known.files, found, strict=True):
        table = Table("class", "label", "probability", title=str(path), title_justify="left")
        for index, probability in classes:
            table.add_row(str(index), labels[index] if labels else "", f"{probability:.4f}")
        show(table)
    return 0
