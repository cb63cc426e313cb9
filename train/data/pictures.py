"""Generated pictures of digits and shapes, with captions of them and questions about them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.train.data.base import DataModule
from zoo.train.data.digits import MAX_ROTATION, MAX_SHIFT, DigitsDataModule, shift_and_rotate
from zoo.train.data.loader import Source
from zoo.train.data.rng import derive_seed, distinct, integers, uniforms

GRID, CELL = 3, 8  # cells along a side, pixels along a cell's
SIDE = GRID * CELL
SHAPES = ("disc", "ring", "square", "cross")
THINGS = (*map(str, range(10)), *SHAPES)
CELLS = tuple(f"{column}{row}" for row in range(1, GRID + 1) for column in "abc")  # in raster order
MOST, NOISE = 3, 0.15  # things in a picture; width of the uniform noise
MEAN, STD = 0.13, 0.19  # of the pixels to train on, scaled to [0, 1]
QUESTIONS = ("caption", "what", "where", "how many")
DOCUMENT = 0  # the byte before a text and behind an answer


class Scene(NamedTuple):
    """What is in a picture: numbers of `THINGS` and of `CELLS`, in raster order."""

    things: list[int]
    cells: list[int]

    def caption(self) -> str:
        """All that there is, such as "7 at b1, disc at c2"."""
        named = zip(self.things, self.cells, strict=True)
        return ", ".join(f"{THINGS[thing]} at {CELLS[cell]}" for thing, cell in named)

    def ask(self, question: int, chosen: float) -> tuple[str, str]:
        """A question, one of `QUESTIONS`, and its answer; `chosen` in [0, 1) says about which thing."""
        index = int(chosen * len(self.things))
        thing, cell = THINGS[self.things[index]], CELLS[self.cells[index]]
        digits = sum(one < 10 for one in self.things)
        kind, count = ("digits", digits) if chosen * 16 % 1 < 0.5 else ("shapes", len(self.things) - digits)
        asked = (
            ("caption: ", self.caption()),
            (f"what is at {cell}? ", thing),
            (f"where is the {thing}? ", cell),
            (f"how many {kind}? ", str(count)),
        )
        return asked[question]


class PicturesDataModule(DataModule):
    """Pictures `(B, 1, 24, 24)` float32, and {"tokens", "labels"}, `(B, T)` int64, of a text about each. Pixels are
    those of [0, 1] less `MEAN`, over `STD`.

    A picture has nine cells, a1 to c3, of which one to three hold a handwritten digit or a shape, no two the same, over
    noise. The text is byte 0, `features` times the byte `image_token`, a question ("caption: ", "what is at b2? ",
    "where is the disc? ", "how many digits? "), its answer and byte 0; shorter ones are filled with it. The labels are
    those of the answer and of the byte that ends it, -100 elsewhere. Digits are split as by `DigitsDataModule`, those
    to train on shifted and turned.

    Args:
        features: that the model makes of an image.
        image_token: the byte that stands for one.
        captions: share of the texts to train on that are captions; questions of the other kinds share the rest. To
            validate and test on, all four are as many.
        batch_size, eval_batch_size, num_workers, seed: see `DataModule`.
        train_samples, val_samples, test_samples: pictures per epoch and split. Those to train on are drawn anew each
            epoch; the others are the same for every seed.

    Raises:
        ValueError: no features, an image_token that is no byte beyond texts, a share out of range, or no samples.
    """

    def __init__(
        self,
        *,
        features: int = 37,
        image_token: int = 255,
        captions: float = 0.5,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        train_samples: int = 8192,
        val_samples: int = 400,
        test_samples: int = 1000,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        if features < 1 or not 0 <= captions <= 1 or min(train_samples, val_samples, test_samples) < 1:
            raise ValueError(
                f"features must be >= 1, captions in [0, 1] and each split hold a picture, got features={features}, "
                f"captions={captions}, train_samples={train_samples}, val_samples={val_samples}, "
                f"test_samples={test_samples}"
            )
        if not 248 <= image_token < 256:
            raise ValueError(f"image_token must be a byte that is in no text, 248 to 255, got {image_token}")
        self.features, self.image_token, self.captions = features, image_token, captions
        self.samples = {"train": train_samples, "val": val_samples, "test": test_samples}

    @property
    def preparation(self) -> dict[str, Any]:
        return {"mean": (MEAN,), "std": (STD,), "crop_pct": 1.0}

    def build(self) -> dict[str, Source]:
        digits: dict[str, Any] = dict(DigitsDataModule(augment=False).build())
        seeds = {"train": derive_seed(0, self.seed), "val": derive_seed(1), "test": derive_seed(2)}
        return {split: Pictures(self, digits[split], split, seed) for split, seed in seeds.items()}


class CaptionedPicturesDataModule(PicturesDataModule):
    """Pictures `(B, 1, 24, 24)` float32, and their captions `(B, T)` int64: byte 0, the letters, and byte 255 behind
    shorter ones. Arguments and splits are those of `PicturesDataModule`, without texts' own.
    """

    def __init__(
        self,
        *,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        train_samples: int = 8192,
        val_samples: int = 400,
        test_samples: int = 1000,
    ) -> None:
        super().__init__(
            batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed,
            train_samples=train_samples, val_samples=val_samples, test_samples=test_samples,
        )  # fmt: skip

    def build(self) -> dict[str, Source]:
        return {split: Captions(pictures) for split, pictures in super().build().items()}  # type: ignore[arg-type]


class Captions:
    """The pictures of a source with their captions."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def fetch(self, indices: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        source = self.pictures
        indices = indices + epoch * source.samples if source.train else indices
        texts = [[DOCUMENT, *scene.caption().encode()] for scene in source.scenes(indices)]
        length = max(map(len, texts))
        return source.images(indices), torch.tensor([text + [255] * (length - len(text)) for text in texts])


class Pictures:
    """Pictures and texts: functions of (seed, number) alone."""

    def __init__(self, of: PicturesDataModule, digits: Any, split: str, seed: int) -> None:
        self.of, self.seed, self.train = of, seed, split == "train"
        self.samples = of.samples[split]
        self.digits = [digits.images[digits.labels == label][:, 0] for label in range(10)]  # (n, 8, 8) each

    def __len__(self) -> int:
        return self.samples

    def fetch(self, indices: Tensor, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        indices = indices + epoch * self.samples if self.train else indices
        numbers = uniforms(indices, 2, self.seed, 3).tolist()
        rows = [
            self._text(*scene.ask(self._question(index, kind), chosen))
            for scene, index, (kind, chosen) in zip(self.scenes(indices), indices.tolist(), numbers, strict=True)
        ]
        length = max(len(tokens) for tokens, _ in rows)
        filled = [(t + [DOCUMENT] * (length - len(t)), s + [-100] * (length - len(s))) for t, s in rows]
        tokens, labels = (torch.tensor(part) for part in zip(*filled, strict=True))
        return self.images(indices), {"tokens": tokens, "labels": labels}

    def scenes(self, indices: Tensor) -> list[Scene]:
        """What is in the pictures of these numbers, which count on from epoch to epoch."""
        found = []
        for count, cells, things in zip(*self._drawn(indices), strict=True):
            order = cells[:count].argsort()
            found.append(Scene(things[order].tolist(), cells[order].tolist()))
        return found

    def _drawn(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """How many things there are (B,), in which cells and which (B, MOST), those that there are first."""
        counts = 1 + integers(indices, 1, MOST, self.seed, 0)[:, 0]
        cells, things = (distinct(indices, MOST, n, self.seed, key) for key, n in ((1, GRID**2), (2, len(THINGS))))
        return counts, cells, things

    def _question(self, index: int, drawn: float) -> int:
        if not self.train:
            return index % len(QUESTIONS)
        share = self.of.captions
        return 0 if drawn < share else 1 + int((drawn - share) / (1 - share) * (len(QUESTIONS) - 1))

    def _text(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        """Tokens, and labels."""
        prompt = [DOCUMENT, *[self.of.image_token] * self.of.features, *question.encode()]
        said = [*answer.encode(), DOCUMENT]
        return prompt + said, [-100] * len(prompt) + said

    def images(self, indices: Tensor) -> Tensor:
        """(B, 1, SIDE, SIDE), normalised."""
        counts, cells, things = self._drawn(indices)
        board = torch.zeros(len(indices), GRID**2, CELL, CELL)
        for index in range(MOST):
            numbers = uniforms(indices, 4, self.seed, 4, index).float()
            drawn = self._things(things[:, index], numbers) * (index < counts)[:, None, None]
            board = board.scatter_add(1, cells[:, index, None, None, None].expand(-1, 1, CELL, CELL), drawn[:, None])
        board = board.unflatten(1, (GRID, GRID)).transpose(2, 3).reshape(-1, 1, SIDE, SIDE)
        noise = uniforms(indices, SIDE**2, self.seed, 5).float().view_as(board)
        return ((board * (1 - NOISE) + NOISE * noise).clamp(0, 1) - MEAN) / STD

    def _things(self, things: Tensor, numbers: Tensor) -> Tensor:
        """(B, CELL, CELL) of numbers of `THINGS` (B,) and uniform ones (B, 4)."""
        shape = _shapes((things - 10).clamp(min=0), numbers)
        images = [self.digits[min(t, 9)] for t in things.tolist()]
        digit = torch.stack([i[int(n * len(i))] for i, n in zip(images, numbers[:, 3].tolist(), strict=True)])
        if self.train:
            moved = 2 * numbers[:, :3] - 1
            digit = shift_and_rotate(digit[:, None], MAX_SHIFT * moved[:, :2], MAX_ROTATION * moved[:, 2])[:, 0]
        return torch.where((things < 10)[:, None, None], digit, shape)


def _shapes(kinds: Tensor, numbers: Tensor) -> Tensor:
    """(B, CELL, CELL) of numbers of `SHAPES` (B,), a little moved and of different size."""
    axis = torch.arange(CELL) + 0.5 - CELL / 2
    x, y = (axis - (numbers[:, i, None] - 0.5) for i in range(2))  # (B, CELL) each
    x, y, size = x[:, None], y[:, :, None], 2.4 + 0.9 * numbers[:, 2, None, None]
    radius = (x.square() + y.square()).sqrt()
    drawn = torch.stack(
        [
            radius <= size,
            (radius - size + 0.5).abs() <= 0.75,
            torch.maximum(x.abs(), y.abs()).sub(size - 0.5).abs() <= 0.5,
            (torch.minimum(x.abs(), y.abs()) <= 0.75) & (torch.maximum(x.abs(), y.abs()) <= size + 0.4),
        ]
    )
    return drawn.float()[kinds, torch.arange(len(kinds))]
