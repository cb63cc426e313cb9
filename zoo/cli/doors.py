"""Which command serves which kind of model: what a command says of a model that is none of its own."""

from __future__ import annotations

from typing import Any

DRAWS = "`zoo generate {name} --output FILE.png` draws images"
READS = "`zoo predict {name} FILE` reads"
PYTHON = "no command reads its inputs; call it in Python, or score it on the data of a recipe, `zoo eval RECIPE`"
SERVED = {  # task -> what serves it
    "language": "`zoo generate {name} --prompt TEXT` continues a text",
    "image-generation": DRAWS,
    "image-diffusion": DRAWS,
    "video-diffusion": "`zoo generate {name} --output FILE.gif` draws clips",
    "image-classification": f"{READS} images",
    "image-tokenization": f"{READS} images",
    "image-text-retrieval": "`zoo predict {name} FILE --text TEXT --text TEXT` ranks texts about an image",
    "vision-language": f"{READS} images, `zoo generate {{name}} --image FILE` continues a text about one",
    "video-autoencoding": f"{READS} clips",
    "video-segmentation": f"{READS} clips",
    "segmentation": f"{READS} volumes",
    "anomaly-detection": f"{READS} series",
    "speech-enhancement": f"{READS} sounds",
    "point-classification": f"{READS} clouds of points",
    "birds-eye-occupancy": f"{READS} images of cameras",
    "world-model": f"{READS} frames and actions, `zoo generate {{name}} --output FILE.png` plays",
}


def served(model: Any, name: str) -> str:
    """The task of a model, and the command that serves it.

    Args:
        model: made by ``create_model``.
        name: as it was typed.
    """
    from zoo.registry import lookup

    task = lookup(model.config_name).task
    return f"{name} is a model of {task}: {SERVED.get(task, PYTHON).format(name=name)}"
