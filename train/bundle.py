"""The weights that come with the package: train nano models by their recipes, pack, score and list them.

    python -m zoo.train.bundle                      # all of them: what `make bundled` runs, about an hour on one core
    python -m zoo.train.bundle vim_nano mamba2_nano
    python -m zoo.train.bundle --runs DIR           # keep the runs; those that DIR already has are not trained again

A file must stay under ``zoo.checkpoints.bundled.LIMIT`` bytes, and its entry in the index holds sha256, size, recipe,
seed, and the metric of the packed weights on held-out data (``score``), which the tests repeat.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import save
from torch import Tensor, nn
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio as si_sdr

import zoo
from zoo.checkpoints import bundled, read_state_dict
from zoo.cli import recipe_names, recipe_path
from zoo.generative import DiffusionModel, MotionDiT, NextScale, frechet, pixels
from zoo.train.data import (
    ArraysDataModule,
    CamerasDataModule,
    CaptionedPicturesDataModule,
    ClipsDataModule,
    CloudsDataModule,
    DataModule,
    DigitLevelsDataModule,
    DigitsDataModule,
    DigitTokensDataModule,
    DocumentationDataModule,
    EllipsoidsDataModule,
    EnvironmentDataModule,
    FiguresDataModule,
    FigureTokensDataModule,
    ListOps,
    MicrophonesDataModule,
    MovingFiguresDataModule,
    PicturesDataModule,
    ScenesDataModule,
    SeriesDataModule,
    SpikeSums,
    SyntheticDataModule,
    figures,
)
from zoo.train.data.digits import STD
from zoo.train.data.environments import ACTION, FIRST
from zoo.train.tasks.anomaly import separation
from zoo.train.tasks.contrastive import nearest
from zoo.train.tasks.diffusion import velocity_errors
from zoo.train.tasks.segmentation import dice
from zoo.train.tasks.tracking import jaccard, prompt_of
from zoo.train.tasks.vision_language import answered

WINDOWS, LENGTH = 32, 256  # of the test documents that score a language model
VOLUMES = 64  # that score a segmentation model
CLIPS = 64  # that score a model of videos
EXPRESSIONS = 1000  # that score a text classifier
SERIES = 1000  # that score a classifier of series
PAIRS = 400  # of pictures and captions
LISTOPS = ListOps(min_length=6, max_length=40, max_args=5, max_depth=3)  # as in its recipe
NAMES = ("_nano", "_nano_generative", "_motion_shapes")  # how names of models end that are small enough
FIGURES = "wetok_shapes_nano"  # the tokenizer of generated figures; the others are of digits
VECTORS: dict[str, DataModule] = {  # family -> what scores it
    "drope": ScenesDataModule(test_samples=1000),
    "positional": ArraysDataModule(algorithm="sort"),
}
# data that need no download: recipes are named after them
LAYOUTS = (
    "arrays", "cameras", "cartpole", "clips", "clouds", "digits", "docs", "ellipsoids", "figures", "listops",
    "microphones", "pictures", "scenes", "series", "spikes",
)  # fmt: skip


def recipes() -> dict[str, str]:
    """Name of a nano model -> the recipe that trains it on data that need no download."""
    split = [(recipe, *recipe.split("_", 1)) for recipe in recipe_names() if "_" in recipe]
    return {name: recipe for recipe, data, name in split if data in LAYOUTS and name.endswith(NAMES)}


@torch.inference_mode()
def score(model: nn.Module) -> dict[str, Any]:
    """The metric of a bundled model on held-out data, what it was measured on, and a digest of that.

    Image classifiers: accuracy on all test digits. Language models: bits per byte on ``WINDOWS`` windows spread over
    the test documents of Python's documentation, which differ between Python versions: so the digest. Image generators:
    bits per dimension of all test digits, or of the tokenizer's codes of them or of generated figures; by diffusion,
    the mean squared error of the velocity. Image tokenizers: PSNR of these, or with a generative decoder the Fréchet
    distance of what it makes. Segmentation: Dice coefficient of
    ``VOLUMES`` generated volumes. Text classifiers: accuracy on ``EXPRESSIONS`` generated expressions of ListOps.
    Models of vectors: mean squared error on the family's generated data, or accuracy on ``SERIES`` sums of spoken
    digits where they classify. Detection of anomalies: area under the receiver operating characteristic on a generated
    series. Enhancement of
    speech: gain in the scale-invariant ratio of signal to distortion, in dB, on generated mixtures. World models: PSNR
    of the frames that are expected next, of play at random. Vision-language models: share of captions and answers about
    generated pictures that are right, letter by letter; encoders of both, how often the own one is the nearest of
    ``PAIRS``. Clouds of points: accuracy on generated clouds. Occupancy of the ground: intersection over union of
    generated scenes. Objects in videos: region similarity J after the first frame of generated clips, of an object
    that a point names.
    """
    task = zoo.model_info(str(model.config_name)).task
    metric, value, data, inputs = SCORES[task](model.eval())
    digest = hashlib.sha256(inputs.contiguous().numpy().tobytes()).hexdigest()[:16]
    return {"metric": metric, "value": round(value, 4), "data": data, "data_digest": digest}


Score = tuple[str, float, str, Tensor]  # name of the metric, its value, what it was measured on, and that


def _accuracy(model: nn.Module) -> Score:
    inputs, labels = _test_samples(DigitsDataModule())
    return "accuracy", (model(inputs).argmax(1) == labels).float().mean().item(), _digits(labels), inputs


def _bits_per_byte(model: nn.Module) -> Score:
    text = DocumentationDataModule(seq_len=LENGTH, batch_size=1)
    text.setup()
    windows = text.test_dataloader().source
    inputs, labels = windows.fetch(torch.linspace(0, len(windows) - 1, WINDOWS).long(), 0)
    value = model(inputs, labels=labels).item() / math.log(2)
    return "bits_per_byte", value, f"{WINDOWS} windows of {LENGTH} bytes of the test documents", inputs


def _bits_per_dim(model: nn.Module) -> Score:
    if not isinstance(model, NextScale):
        images, labels = _test_samples(DigitLevelsDataModule())
        return "bits_per_dim", model(images, labels=images).item() / math.log(2), _digits(labels), images
    tokenizer = model.config.tokenizer
    data = (FigureTokensDataModule if tokenizer == FIGURES else DigitTokensDataModule)(tokenizer)
    tokens, labels = _test_samples(data)
    images, _, what = _images(str(tokenizer))  # codes may differ between processors
    return "bits_per_dim", model(tokens, labels=tokens, classes=labels).item() / math.log(2), what, images


def _velocity_error(model: nn.Module) -> Score:
    assert isinstance(model, DiffusionModel)
    images, labels = _test_samples(DigitsDataModule())
    return "velocity_error", velocity_errors(model, images, labels).mean().item(), _digits(labels), images


def _clips_error(model: nn.Module) -> Score:
    assert isinstance(model, DiffusionModel)
    clips, kinds = _test_samples(MovingFiguresDataModule())
    if isinstance(model, MotionDiT):
        autoencoder: Any = zoo.create_model(model.config.tokenizer, pretrained=True).eval()
        motion, content = autoencoder.encode(clips)
        errors, what = velocity_errors(model, model.normalised(motion), None, content=content), "motions of "
    else:
        errors, what = velocity_errors(model, clips, kinds), ""
    return "velocity_error", errors.mean().item(), f"{what}{len(clips)} generated clips", clips


def _psnr(model: nn.Module) -> Score:
    images, std, what = _images(str(model.config_name))
    known: Any = model
    if known.config.generative:
        shape = (len(images), known.config.code_dim, *known.config.latent_shape)
        made = model(images, torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        return "frechet", frechet(*(pixels(known, part) for part in (images, made))), what, images
    squares = ((model(images) - images) * std).square().flatten(1).mean(1)
    return "psnr", (-10 * squares.log10()).mean().item(), what, images


def _clips_psnr(model: nn.Module) -> Score:
    clips, _ = _test_samples(MovingFiguresDataModule())
    squares = ((model(clips) - clips) * figures.STD).square().flatten(1).mean(1)
    return "psnr", (-10 * squares.log10()).mean().item(), f"{len(clips)} generated clips", clips


def _images(tokenizer: str) -> tuple[Tensor, float, str]:
    """What scores a tokenizer, the deviation that it was normalised by, and what it is."""
    if tokenizer == FIGURES:
        images, labels = _test_samples(FiguresDataModule())
        return images, figures.STD, f"{len(labels)} generated figures"
    images, labels = _test_samples(DigitsDataModule())
    return images, STD, _digits(labels)


def _dice(model: nn.Module) -> Score:
    inputs, masks = _test_samples(EllipsoidsDataModule(test_samples=VOLUMES))
    value = dice((model(inputs) > 0).float(), masks).mean().item()
    return "dice", value, f"{VOLUMES} generated test volumes", inputs


def _text_accuracy(model: nn.Module) -> Score:
    tokens, values = _test_samples(SyntheticDataModule(LISTOPS, test_samples=EXPRESSIONS))
    value = (model(tokens).argmax(1) == values).float().mean().item()
    return "accuracy", value, f"{EXPRESSIONS} generated test expressions", tokens


def _squared_error(model: nn.Module) -> Score:
    inputs, targets = _test_samples(VECTORS[zoo.model_info(str(model.config_name)).family])
    value = (model(inputs) - targets).square().mean().item()
    return "squared_error", value, f"{len(inputs)} generated test samples", inputs


def _series_accuracy(model: nn.Module) -> Score:
    spikes, sums = _test_samples(SyntheticDataModule(SpikeSums(), test_samples=SERIES))
    value = (model(spikes).argmax(1) == sums).float().mean().item()
    return "accuracy", value, f"{SERIES} generated pairs of spoken digits", spikes


def _separation(model: nn.Module) -> Score:
    windows, anomalous = _test_samples(SeriesDataModule())
    value = separation(model, windows, anomalous)
    return "auroc", value, f"{len(windows)} windows of a generated series", windows


def _gain(model: nn.Module) -> Score:
    mixtures, voices = _test_samples(MicrophonesDataModule())
    value = si_sdr(model(mixtures), voices).mean() - si_sdr(mixtures[:, :1], voices).mean()
    return "si_sdr_gain", value.item(), f"{len(mixtures)} generated mixtures", mixtures


def _next_frames(model: nn.Module) -> Score:
    data = EnvironmentDataModule(model.config.environment, repeat=model.config.repeat)  # type: ignore[arg-type, union-attr]
    frames, moves = _test_samples(data)
    firsts = moves[..., FIRST] > 0
    expected = model(frames, moves[..., ACTION].long(), firsts=firsts)
    errors = (expected[:, :-1] - frames[:, 1:]).square().flatten(2).mean(2)
    value = -10 * errors[~firsts[:, 1:]].mean().log10()
    return "psnr", value.item(), f"the frames after those of {len(frames)} sequences of random play", frames


def _answers(model: nn.Module) -> Score:
    known: Any = model
    images, text = _test_samples(PicturesDataModule(features=known.num_features, image_token=known.config.image_token))
    rows = [model(*part) for part in zip(images.split(100), text["tokens"].split(100), strict=True)]
    right = answered(torch.cat(rows), text["labels"])[1].float().mean().item()
    return "accuracy", right, f"texts about {len(images)} generated pictures", images


def _retrieved(model: nn.Module) -> Score:
    images, texts = _test_samples(CaptionedPicturesDataModule(test_samples=PAIRS))
    value = nearest(*(F.normalize(model(part), dim=1) for part in (images, texts))).mean().item()
    return "recall", value, f"{PAIRS} generated pictures and captions", images


def _cloud_accuracy(model: nn.Module) -> Score:
    points, kinds = _test_samples(CloudsDataModule())
    value = (model(points).argmax(1) == kinds).float().mean().item()
    return "accuracy", value, f"{len(points)} generated test clouds", points.nan_to_num()


def _overlap(model: nn.Module) -> Score:
    images, targets = _test_samples(CamerasDataModule())
    found, wanted = model(images) > 0, targets["occupancy"] > 0
    value = (found & wanted).sum() / (found | wanted).sum()
    return "iou", value.item(), f"{len(images)} generated test scenes", images


def _region_similarity(model: nn.Module) -> Score:
    known: Any = model
    clips, targets = _test_samples(ClipsDataModule(test_samples=CLIPS))
    found = known(known.normalised(clips), prompt_of(targets, "point")) > 0
    value = jaccard(found, targets["masks"])[:, 1:].mean().item()
    return "j", value, f"{CLIPS} generated clips of {clips.shape[1]} frames", clips


SCORES: dict[str, Callable[[nn.Module], Score]] = {
    "image-classification": _accuracy,
    "language": _bits_per_byte,
    "text-classification": _text_accuracy,
    "image-generation": _bits_per_dim,
    "image-tokenization": _psnr,
    "video-autoencoding": _clips_psnr,
    "image-diffusion": _velocity_error,
    "video-diffusion": _clips_error,
    "segmentation": _dice,
    "sequence-classification": _series_accuracy,
    "sequence-regression": _squared_error,
    "anomaly-detection": _separation,
    "speech-enhancement": _gain,
    "world-model": _next_frames,
    "vision-language": _answers,
    "image-text-retrieval": _retrieved,
    "point-classification": _cloud_accuracy,
    "birds-eye-occupancy": _overlap,
    "video-segmentation": _region_similarity,
}


def _test_samples(data: DataModule) -> tuple[Tensor, Any]:
    data.setup()
    source = data.test_dataloader().source
    return source.fetch(torch.arange(len(source)), 0)


def _digits(labels: Tensor) -> str:
    return f"all {len(labels)} test digits"


def bundle(name: str, recipe: str, run: Path) -> dict[str, Any]:
    """Train ``recipe`` in the folder ``run``, unless that holds its model, write the packed weights, and return the
    entry of the index.

    Raises:
        ValueError: when the packed weights are too large.
    """
    if not (run / "model" / "config.json").exists():
        from zoo.train.command import TrainingRun

        TrainingRun(recipe_path(recipe), [], run).fit()
    content = save({key: t.contiguous() for key, t in bundled.pack(read_state_dict(run / "model")).items()})
    if len(content) >= bundled.LIMIT:
        raise ValueError(f"the weights of {name} take {len(content):,} bytes, and must stay under {bundled.LIMIT:,}")
    file = bundled.FOLDER / f"{name}.safetensors"
    file.write_bytes(content)
    model = zoo.create_model(f"local-dir:{run / 'model'}")
    zoo.load_weights(model, bundled.unpack(read_state_dict(file)), str(file))
    return {
        "file": file.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        **score(model),
        "recipe": recipe,
        "seed": yaml.safe_load(recipe_path(recipe).read_text(encoding="utf-8"))["seed_everything"],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    known = recipes()
    parser = argparse.ArgumentParser("zoo.train.bundle", description="Train the weights that come with the package.")
    parser.add_argument("names", nargs="*", default=list(known), metavar="NAME", help="default: all nano models")
    parser.add_argument("--runs", type=Path, help="folder of the runs (default: a temporary one)")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(known):
        parser.error(f"no recipe for {', '.join(sorted(unknown))}; there are recipes for {', '.join(known)}")
    index = json.loads(bundled.INDEX.read_text(encoding="utf-8")) if bundled.INDEX.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.names:
            index[name] = bundle(name, known[name], (options.runs or Path(scratch)) / known[name])
            listed = json.dumps(dict(sorted(index.items())), indent=2) + "\n"
            bundled.INDEX.write_text(listed, encoding="utf-8")


if __name__ == "__main__":
    main()
