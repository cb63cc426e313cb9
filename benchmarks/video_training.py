"""Generated clips with questions, and what models learn to answer from fewer of their tokens, for ``zoo bench videos``.

    python -m zoo.benchmarks.video_training                 # all of them, and writes benchmarks/weights/videos_*
    python -m zoo.benchmarks.video_training all

The first lesson begins with the bundled llava_nano and the others with what it leaves. A file holds the language model
and the projector; the encoder learns nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import zoo
from zoo.benchmarks import lessons
from zoo.benchmarks.lessons import FOLDER
from zoo.benchmarks.picture_training import MODEL, pictures, plain
from zoo.layers.cache import Dense
from zoo.layers.cache.pruning import governed_parts
from zoo.train.data.pictures import CELL, DOCUMENT, MEAN, NOISE, STD, THINGS
from zoo.train.data.rng import distinct, integers, uniforms
from zoo.train.optim import build_optimizer
from zoo.vision_language import LongVLM

FRAMES, GRID, BATCH = 4, 2, 32
SIDE = GRID * CELL  # pixels of a frame
PATCHES = (SIDE // 4) ** 2
QUESTIONS = ("first? ", "last? ", "way? ")
WAYS = (("right", "left"), ("down", "up"))  # across columns and rows, from the first and from the second
SEGMENTS = 2
MERGED = (16, 8, 4, 2)  # tokens of a segment that LongVLM may leave


class Clips(NamedTuple):
    """Clips and what is said of them."""

    images: Tensor
    """(B, FRAMES, 1, SIDE, SIDE), normalised."""
    asked: list[str]
    answers: list[str]


@cache
def things_of() -> dict[str, Any]:
    """Where digits and shapes are from, by split."""
    return pictures().sources


def clips(indices: Tensor, split: str = "train") -> Clips:
    """Those of these numbers (B,), always the same ones.

    A digit or a shape stands in one of four cells and moves to the next, across or down; then another does. "first? "
    and "last? " ask which they were, "way? " where the one that came first went. Each is a third of all.
    """
    source, seed = things_of()[split], 7 + (split == "test")
    things = distinct(indices, 2, len(THINGS), seed, 0)
    starts, axes = integers(indices, 2, GRID**2, seed, 1), integers(indices, 2, 2, seed, 2)
    noise = uniforms(indices, FRAMES * SIDE**2, seed, 3).float().view(-1, FRAMES, SIDE, SIDE)
    frames = []
    for index in range(2):
        drawn = source._things(things[:, index], uniforms(indices, 4, seed, 4, index).float())[:, None]
        for cell in (starts[:, index], starts[:, index] ^ (1 + axes[:, index])):
            board = torch.zeros(len(indices), GRID**2, CELL, CELL)
            board = board.scatter(1, cell[:, None, None, None].expand(-1, 1, CELL, CELL), drawn)
            frames.append(board.unflatten(1, (GRID, GRID)).transpose(2, 3).reshape(-1, SIDE, SIDE))
    images = torch.stack(frames, 1) * (1 - NOISE) + NOISE * noise
    asked, answers = [], []
    for row, index in enumerate(indices.tolist()):
        axis, start = int(axes[row, 0]), int(starts[row, 0])
        way = WAYS[axis][start >> axis & 1]
        asked.append(QUESTIONS[index % 3])
        answers.append((THINGS[things[row, 0]], THINGS[things[row, 1]], way)[index % 3])
    return Clips(((images.clamp(0, 1) - MEAN) / STD)[:, :, None], asked, answers)


def texts(said: Clips) -> tuple[Tensor, Tensor]:
    """What is asked, answered and ended, (B, T), and the labels of answers, filled up at the end."""
    rows = [
        (list(asked.encode()), [*answer.encode(), DOCUMENT])
        for asked, answer in zip(said.asked, said.answers, strict=True)
    ]
    length = max(len(asked) + len(answer) for asked, answer in rows)
    tokens = [[*asked, *answer] + [DOCUMENT] * (length - len(asked) - len(answer)) for asked, answer in rows]
    labels = [[-100] * len(asked) + answer + [-100] * (length - len(asked) - len(answer)) for asked, answer in rows]
    return torch.tensor(tokens), torch.tensor(labels)


def fresh() -> Any:
    """The bundled model, for frames of four of its nine cells and without the class token's feature."""
    trained = plain()
    options = dict(trained.config.vision_options) | {"img_size": SIDE}
    model = zoo.create_model(MODEL, vision_options=options, class_feature=False).eval()
    weights, side = trained.state_dict(), SIDE // 4
    whole = weights["vision.pos_embed"]
    grid = whole[:, 1:].unflatten(1, (round((whole.shape[1] - 1) ** 0.5), -1))[:, :side, :side]
    weights["vision.pos_embed"] = torch.cat([whole[:, :1], grid.flatten(1, 2)], 1)
    model.load_state_dict(weights)
    return model


def long_vlm(kept: int, segments: int = SEGMENTS, classes: int = 1) -> LongVLM:
    """So many tokens of each segment, and the class tokens of all frames as one; of all patches, nothing else."""
    left, merges = FRAMES // segments * PATCHES, []
    while left > kept:
        merges.append(min(left // 2, left - kept))
        left -= merges[-1]
    return LongVLM(images=FRAMES, segments=segments, merges=tuple(merges), classes=classes, heads=4)


def entered(model: Any, features: int, text: Tensor) -> Tensor:
    """Texts (B, T) behind byte 0 and the places of so many features."""
    begin = text.new_tensor([DOCUMENT, *[model.config.image_token] * features]).expand(len(text), -1)
    return torch.cat([begin, text], 1)


def read_loss(model: Any, images: Tensor, text: Tensor, labels: Tensor, reduction: LongVLM | None) -> Tensor:
    """Of answers, where all frames (B, F, C, H, W) stand before the question."""
    count = model.tokens_of_image(reduction) * (images.shape[1] if reduction is None else 1)
    labels = torch.cat([labels.new_full((len(labels), 1 + count), -100), labels], 1)
    return model(images.flatten(0, 1), entered(model, count, text), labels=labels, reduction=reduction)


def all_loss(model: Any, images: Tensor, text: Tensor, labels: Tensor, step: int) -> Tensor:
    """Of all tokens of all frames, and in every fourth step of the last frame's, so that one alone is known as well."""
    return read_loss(model, images[:, -1:] if step % 4 == 3 else images, text, labels, None)


def merged_loss(model: Any, images: Tensor, text: Tensor, labels: Tensor, step: int) -> Tensor:
    """LongVLM's training, of tokens as they are merged, to each number in turn."""
    return read_loss(model, images, text, labels, long_vlm(MERGED[step % len(MERGED)]))


def carried_loss(model: Any, images: Tensor, text: Tensor, labels: Tensor, step: int) -> Tensor:
    """VideoScan's second stage: features are seen by their own frame and its carrier, all that follows sees carriers.

    That is what dropping their keys and values gives, through which gradients go as through others.
    """
    rows, frames = images.shape[:2]
    features = model.see(images.flatten(0, 1)).unflatten(0, (rows, frames))
    state, begin = model.init_state(rows, cache=Dense()), text.new_full((rows, 1), DOCUMENT)
    model.language(begin, state, logits_to_keep=1)
    for frame in features.unbind(1):
        embedded = torch.cat([frame, frame.mean(1, keepdim=True)], 1)
        places = text.new_full(embedded.shape[:2], model.config.image_token)
        first = next(governed_parts(state)).filled
        model.language(places, state, embedded=embedded, logits_to_keep=1)
        for part in governed_parts(state):
            slots = torch.arange(part.filled)
            part.keep((slots < first) | (slots == part.filled - 1))
    return model.language(text, state, labels=labels)


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What a model learns: its loss, of a model, clips, texts, labels and the number of the step."""

    loss: Callable[[Any, Tensor, Tensor, Tensor, int], Tensor]
    steps: int
    after: str | None = None
    """The lesson before it."""


LESSONS = {
    "all": Lesson(all_loss, 300),
    "video_scan": Lesson(carried_loss, 300, "all"),
    "longvlm": Lesson(merged_loss, 200, "all"),
}


def learnt(model: Any) -> dict[str, nn.Parameter]:
    """All but the encoder."""
    return {name: p for name, p in model.named_parameters() if not name.startswith("vision.")}


def teach(name: str, steps: int | None = None, folder: Path = FOLDER, rate: float = 5e-3) -> tuple[Any, list[float]]:
    """The model after a lesson, in so many steps, and the losses on the way."""
    lesson, losses = LESSONS[name], []
    steps = lesson.steps if steps is None else steps
    torch.manual_seed(0)
    model = (fresh() if lesson.after is None else taught(lesson.after, folder)).requires_grad_(False)
    learning = [parameter.requires_grad_() for parameter in learnt(model).values()]
    optimizer = build_optimizer(model, "nmuon", lr=rate, weight_decay=0.05, fallback_lr_scale=0.4)
    slope = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (1 + step) / 30) * (1 - step / steps))
    for step in range(steps):
        drawn = clips(torch.arange(BATCH * step, BATCH * (step + 1)))
        optimizer.zero_grad()
        loss = lesson.loss(model, drawn.images, *texts(drawn), step)
        loss.backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        slope.step()
        losses.append(loss.item())
    return model.requires_grad_(False), losses


def taught(name: str, folder: Path = FOLDER) -> Any:
    """The model after a lesson, with the weights of a folder."""
    model = fresh()
    lessons.fill(model, learnt(model).keys(), folder / f"videos_{name}.safetensors")
    return model.requires_grad_(False)


def main(arguments: Sequence[str] | None = None) -> None:
    def taught_now(name: str, steps: int | None, folder: Path) -> tuple[dict[str, nn.Parameter], str]:
        model, losses = teach(name, steps, folder)
        last = losses[-40:]
        return learnt(model), f", loss {sum(last) / len(last):.3f}"

    lessons.command("video", "videos", LESSONS, taught_now, arguments)


if __name__ == "__main__":
    main()
