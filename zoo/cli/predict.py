"""`zoo predict`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.cli.doors import served
from zoo.cli.errors import UsageError, checked
from zoo.cli.options import add_checkpoint, add_image_reading, add_import, add_model, image_reading, model_with_weights
from zoo.cli.output import show

HELP = (
    "classes of images or points, a text about images or the nearest of some, a tokenizer's codes, anomalies of a "
    "series, speech in a sound, parts of a volume, an object in a clip or the clip again, what comes next, or what "
    "stands around cameras"
)


def add_arguments(parser: ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="images; a series or points as .csv or .npy; a volume as .npy; a sound as .wav; a clip as a .gif, a "
        "folder of pictures or pictures; frames and actions as .npz",
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
        "--top-k",
        type=int,
        default=5,
        metavar="K",
        help="classes, texts, moments of a series, or cells of a map (default: 5)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="a .png: images above what their codes decode to, or with what is said of them, a series above its "
        "scores, spectrograms, a strip of frames, slices, what is seen from above; or a .wav of a sound, a .gif of a "
        "clip, a .npy of a volume's masks",
    )
    parser.add_argument(
        "--context", type=int, default=8, metavar="N", help="frames that a world model sees before it imagines the rest"
    )
    parser.add_argument(
        "--prompt", default="", metavar="TEXT", help="what a vision-language model is asked (default: for a caption)"
    )
    parser.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="TEXT",
        help="that may be near the images, for a pair of encoders; again for more",
    )
    add_image_reading(parser)
    add_import(parser)


def run(known: Namespace) -> int:
    from zoo.audio import DeFTAN2
    from zoo.cli import answers
    from zoo.cli.imagine import foretell
    from zoo.cli.sight import described, ranked
    from zoo.generative import CMD, WeTok
    from zoo.series import StackVAE
    from zoo.spatial import DFA3D, ScatterFormer
    from zoo.video import EfficientTAM
    from zoo.vision.revunet3d import RevUNet3d
    from zoo.vision_language import Llava, M2Encoder
    from zoo.worlds import Drama

    ways: dict[type, Callable[[Any, Namespace], int]] = {
        WeTok: answers.reconstruct,
        CMD: answers.retell,
        RevUNet3d: answers.mark_out,
        M2Encoder: ranked,
        StackVAE: answers.find_anomalies,
        DeFTAN2: answers.enhance,
        EfficientTAM: answers.follow,
        Drama: foretell,
        Llava: described,
        ScatterFormer: answers.classify_points,
        DFA3D: answers.look_around,
    }
    model = checked(model_with_weights, known.model, known.checkpoint)
    if known.prompt and not isinstance(model, Llava):
        raise UsageError(f"--prompt is of a vision-language model, got {type(model).__name__}")
    way = next((way for kind, way in ways.items() if isinstance(model, kind)), _classify)
    if known.text and way is not ranked:
        raise UsageError(f"--text is of a pair of encoders of images and texts, got {type(model).__name__}")
    if way is not answers.follow and (known.point or known.box):
        raise UsageError(f"--point and --box are of a video model, got {type(model).__name__}")
    _check_reading(known, way, model)
    return way(model.eval(), known)


def _check_reading(known: Namespace, way: Callable[[Any, Namespace], int], model: Any) -> None:
    """Refuse options that this kind of model does not read."""
    from zoo.cli.answers import reconstruct
    from zoo.cli.sight import described, ranked

    for option, given, ways in (
        ("--labels", known.labels is not None, (_classify,)),
        ("--skip-bad-images", known.skip_bad_images, (_classify,)),
        ("--exif-orientation", known.exif_orientation, (_classify, reconstruct, described, ranked)),
    ):
        if given and way not in ways:
            kinds = "models that read single images" if len(ways) > 1 else "classifiers of images"
            raise UsageError(f"{option} is of {kinds}, got {type(model).__name__}: leave it out")


def _classify(model: Any, known: Namespace) -> int:
    from rich.table import Table

    import zoo
    from zoo.cli.sight import note_frames

    if not getattr(model, "num_classes", 0) or not hasattr(model, "pretrained_cfg"):
        raise UsageError(f"zoo predict has nothing for it: {served(model, known.model)}")
    if known.output is not None:
        kinds = "an image tokenizer, of texts about images, series, sounds, clips, volumes, worlds, points or cameras"
        raise UsageError(f"--output is of {kinds}, got {type(model).__name__}")
    found = checked(zoo.predict, model, known.files, top_k=known.top_k, **image_reading(known))
    note_frames(known.files)
    labels = model.pretrained_cfg["label_names"]
    if known.labels is not None:
        labels = checked(zoo.read_labels, known.labels, model.num_classes)
    for path, classes in zip(known.files, found, strict=True):
        table = Table("class", "label", "probability", title=str(path), title_justify="left")
        for index, probability in classes:
            table.add_row(str(index), labels[index] if labels else "", f"{probability:.4f}")
        show(table)
    return 0
