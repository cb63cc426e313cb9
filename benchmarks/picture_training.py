"""What has to be learnt of the ways to read fewer tokens of an image: weights that ``zoo bench vision_language`` has.

    python -m zoo.benchmarks.picture_training                 # all of them, and writes benchmarks/weights/pictures_*
    python -m zoo.benchmarks.picture_training reweaving

Each begins with the bundled llava_nano and learns its captions and answers, of new pictures in every step. A file holds
what was learnt, no more; the encoder learns nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from zoo.benchmarks import lessons
from zoo.benchmarks.picture_loss import woven_loss
from zoo.train.data import PicturesDataModule
from zoo.vision_language import add_predictors, annealed, sparsified_loss

MODEL, BATCH = "llava_nano", 32
Loss = Callable[[Any, Tensor, Tensor, Tensor, float], Tensor]
"""Of a model, pictures, texts and their labels, and the share of the training that is done."""


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What a model learns for a way."""

    loss: Loss
    steps: int
    rates: Mapping[str, float]
    """Learning rates of parameters, by how their names begin; what no line is of does not learn."""
    install: Callable[[Any], Any] = lambda model: model
    """Puts what is new in a model's place."""

    def rate(self, name: str) -> float:
        """Of a parameter: that of the first line."""
        return next((rate for begin, rate in self.rates.items() if name.startswith(begin)), 0.0)


def chosen(model: Any, images: Tensor, tokens: Tensor, labels: Tensor, progress: float) -> Tensor:
    """Dynamic-LLaVA's; answers are shorter than those of which the authors leave out a part."""
    return sparsified_loss(model, images, tokens, labels, temperature=annealed(progress), weight=20.0)


def predicting(model: Any) -> Any:
    """A fifth of the image's tokens from the second of three layers on; the authors': from the third of 32."""
    options = {"width": 32, "num_heads": 4, "mlp_dim": 64, "depth": 1}
    return add_predictors(model, layer=1, image_keep=0.2, text_keep=1.0, **options)


def weaving(model: Any) -> Any:
    """What all layers made of a picture, after the first; weights of 0 would teach nothing of what is kept."""
    zoo.add_reweaving(model.language, captured=tuple(range(len(model.language.blocks))), woven=0, keep=16)
    nn.init.constant_(model.language.reweaving.gate, 0.5)
    return model


LESSONS: dict[str, Lesson] = {
    "dynamic_llava": Lesson(chosen, 400, {"language.context_predictors.": 1e-2}, predicting),
    "reweaving": Lesson(woven_loss, 1500, {"language.reweaving.": 6e-3}, weaving),
}


def plain() -> Any:
    """The bundled model."""
    return zoo.create_model(MODEL, pretrained=True).eval()


def pictures(**options: Any) -> PicturesDataModule:
    """That the model was trained on, and others to test on."""
    config: Any = zoo.create_model(MODEL, device="meta")
    data = PicturesDataModule(features=config.num_features, image_token=config.config.image_token, **options)
    data.setup()
    return data


def fresh(lesson: Lesson) -> tuple[Any, dict[str, nn.Parameter]]:
    """The model before a lesson, and what it learns."""
    torch.manual_seed(0)
    model = lesson.install(plain())
    learnt = {name: parameter for name, parameter in model.named_parameters() if lesson.rate(name)}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model, learnt


def teach(lesson: Lesson, steps: int | None = None) -> tuple[Any, dict[str, nn.Parameter]]:
    """The model after it, in so many steps, and what it has learnt."""
    steps = lesson.steps if steps is None else steps
    model, learnt = fresh(lesson)
    groups = [{"params": [p.requires_grad_()], "lr": lesson.rate(name)} for name, p in learnt.items()]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    slope = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (1 + step) / 50) * (1 - step / steps))
    source = pictures().sources["train"]
    for step in range(steps):
        images, text = source.fetch(torch.arange(BATCH * step, BATCH * (step + 1)), 0)
        optimizer.zero_grad()
        lesson.loss(model, images, text["tokens"], text["labels"], step / steps).backward()
        nn.utils.clip_grad_norm_(learnt.values(), 1.0)
        optimizer.step()
        slope.step()
    return model.requires_grad_(False), learnt


@cache
def taught(name: str) -> Any:
    """The model after a lesson, with the weights that come with the package."""
    model, learnt = fresh(LESSONS[name])
    lessons.fill(model, learnt, lessons.FOLDER / f"pictures_{name}.safetensors")
    return model


def main(arguments: Sequence[str] | None = None) -> None:
    lessons.command(
        "picture", "vision_language", LESSONS, lambda name, steps, _: (teach(LESSONS[name], steps)[1], ""), arguments
    )


if __name__ == "__main__":
    main()
