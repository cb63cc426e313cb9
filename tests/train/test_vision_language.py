"""Pictures with texts about them, and that a text counts as right where the model itself says it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import zoo
from zoo.train.data import DigitsDataModule, PicturesDataModule
from zoo.train.data.pictures import CELLS, MEAN, NOISE, STD, THINGS, Scene
from zoo.train.tasks import VisionLanguage
from zoo.train.tasks.vision_language import answered
from zoo.vision_language import IMAGE, answer


@pytest.fixture(scope="module")
def data() -> Any:
    made = PicturesDataModule(train_samples=64, test_samples=40)
    made.setup()
    return made


def replied(scene: Scene, question: str) -> str:
    """The answer, from what is in a picture."""
    things, cells = [THINGS[t] for t in scene.things], [CELLS[c] for c in scene.cells]
    assert len(set(things)) == len(set(cells)) == len(things) and cells == sorted(cells, key=CELLS.index)
    if question == "caption: ":
        return ", ".join(f"{t} at {c}" for t, c in zip(things, cells, strict=True))
    if question.startswith("what is at "):
        return things[cells.index(question[len("what is at ") : -2])]
    if question.startswith("where is the "):
        return cells[things.index(question[len("where is the ") : -2])]
    digits = sum(thing.isdigit() for thing in things)
    return {"how many digits? ": str(digits), "how many shapes? ": str(len(things) - digits)}[question]


def test_texts_are_of_their_pictures(data):
    """Questions of each kind in turn, and answers that what is in a picture gives."""
    source = data.sources["test"]
    images, text = source.fetch(torch.arange(40), 0)
    again, _ = source.fetch(torch.tensor([7, 3]), 5)
    assert torch.equal(again, images[[7, 3]]) and images.shape == (40, 1, 24, 24)
    for row, scene in enumerate(source.scenes(torch.arange(40))):
        tokens, labels = text["tokens"][row].tolist(), text["labels"][row].tolist()
        begin = next(i for i, label in enumerate(labels) if label != -100)
        said = [label for label in labels if label != -100]
        assert tokens[:38] == [0, *[255] * 37] and tokens[begin : begin + len(said)] == said and said[-1] == 0
        question, reply = bytes(tokens[38:begin]).decode(), bytes(said[:-1]).decode()
        assert reply == replied(scene, question), question
        empty = [cell for cell in range(9) if cell not in scene.cells]
        board = images[row, 0].unflatten(0, (3, 8)).unflatten(2, (3, 8)).amax((1, 3)).flatten()
        most = (torch.tensor(NOISE) - MEAN) / STD
        assert board[empty].max() <= most < board[scene.cells].min()


def test_digits_to_test_on_are_not_trained_on(data):
    held_out = DigitsDataModule(augment=False).build()["test"]
    for label, images in enumerate(data.sources["test"].digits):
        assert torch.equal(images, held_out.images[held_out.labels == label][:, 0])  # pyright: ignore
    first, second = (data.sources["train"].fetch(torch.arange(4), epoch)[0] for epoch in (0, 1))
    assert not torch.equal(first, second)


def test_right_is_what_the_model_says(data):
    torch.manual_seed(0)
    model: Any = zoo.create_model("llava_nano")
    images, text = data.sources["test"].fetch(torch.arange(8), 0)
    tokenizer, optimizer = zoo.load_tokenizer("llava_nano"), torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(25):
        optimizer.zero_grad()
        model(images, text["tokens"], labels=text["labels"]).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        losses, right = answered(model(images, text["tokens"]), text["labels"])
        torch.testing.assert_close(losses.mean(), model(images, text["tokens"], labels=text["labels"]))
    for row in range(8):
        ids, labels = text["tokens"][row].tolist(), text["labels"][row]
        begin = int((labels != -100).int().argmax())
        wanted = bytes(labels[labels > 0].tolist()).decode()
        prompt = IMAGE + bytes(ids[38:begin]).decode()
        (said,) = answer(model, images[row : row + 1], prompt, tokenizer, len(wanted) + 1)
        assert (said == wanted) == bool(right[row])
    assert int(right.sum()) > 0, "none was learnt, so that nothing was compared"


def test_what_cannot_be_made():
    for options, error in (
        ({"features": 0}, "features must be >= 1"), ({"captions": 1.5}, r"captions in \[0, 1\]"),
        ({"image_token": 65}, "a byte that is in no text"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=error):
            PicturesDataModule(**options)
    with pytest.raises(ValueError, match="unknown model"):
        VisionLanguage("llava_nan")
    assert Scene([3, 10], [0, 4]).caption() == "3 at a1, disc at b2"
