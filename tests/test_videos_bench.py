"""`zoo bench videos`: clips say what is asked of them, every way keeps what it was told to, misses are seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from zoo.benchmarks import video_training, videos
from zoo.benchmarks.video_training import FRAMES, LESSONS, PATCHES, clips, fresh, learnt, taught, texts
from zoo.benchmarks.videos import ALONE, EVERY, EXACT, PLAIN, WAYS
from zoo.train.data.pictures import CELL


@pytest.fixture(scope="module")
def subject() -> Any:
    made = videos.Subject(6)
    made.measured(PLAIN)
    return made


def record(way: str, accuracy: float, same: bool | None = None) -> dict[str, Any]:
    return {
        "way": way, "kept": 8, "accuracy": accuracy, "same": same, "prompt_flops": 10**6, "token_flops": 1e5,
        "accuracies": {"way?": accuracy},
    }  # fmt: skip


def test_what_clips_show_is_what_is_said():
    """The light's middle moves by a cell where "way? " says, of the first two frames; test clips are others."""
    drawn = clips(torch.arange(60), "test")
    light = (drawn.images[:, :, 0] - drawn.images.amin()).square()
    axis = torch.arange(2.0 * CELL)
    x, y = (light.sum(d).mul(axis).sum(-1) / light.sum((2, 3)) for d in (2, 3))
    assert drawn.asked[:3] == ["first? ", "last? ", "way? "]
    for row in range(2, 60, 3):
        right, down = (x[row, 1] - x[row, 0]).item(), (y[row, 1] - y[row, 0]).item()
        seen = ("right" if right > 0 else "left") if abs(right) > abs(down) else ("down" if down > 0 else "up")
        assert drawn.answers[row] == seen, row
    assert torch.equal(clips(torch.arange(5), "test").images, drawn.images[:5])
    assert not torch.equal(clips(torch.arange(5)).images, drawn.images[:5])
    tokens, labels = texts(drawn)
    for row, (asked, answer) in enumerate(zip(drawn.asked, drawn.answers, strict=True)):
        assert bytes(tokens[row, : len(asked) + len(answer)].tolist()).decode() == asked + answer
        assert labels[row][labels[row] >= 0].tolist() == [*answer.encode(), 0]


@pytest.mark.parametrize(
    ("way", "kept"),
    [(PLAIN, EVERY), (ALONE, PATCHES), (EXACT, EVERY), ("LongVLM, 2 x 8", 17), ("one merge, untrained, 16", 16),
     ("VideoScan, memory 4", 4), ("VideoScan, memory 2", 2)],
)  # fmt: skip
def test_what_is_kept(subject, way, kept):
    """All tokens: the plain model's bits. Fewer: so many, and tokens after them take fewer FLOPs."""
    found, plain = subject.measured(way), subject.measured(PLAIN)
    assert found["kept"] == kept and found["same"] is (True if way == EXACT else None)
    assert (found["token_flops"] < plain["token_flops"]) is (kept < EVERY)
    assert set(found["accuracies"]) == {"first?", "last?", "way?"}


def test_bits_that_change_are_seen(subject):
    for logits in subject.plain.values():
        logits[0, 0, 0] += 1e-6
    assert subject.measured(EXACT)["same"] is False
    subject.measured(PLAIN)
    assert subject.measured(EXACT)["same"] is True


@pytest.mark.parametrize(
    ("lesson", "way"), [("all", PLAIN), ("video_scan", "VideoScan, memory 4"), ("longvlm", "LongVLM, 2 x 16")]
)
def test_what_is_learnt_is_what_is_read(lesson, way):
    """The loss of a lesson is that of its answers as they are read token by token, with gradients for all it learns."""
    drawn = clips(torch.tensor([2]), "test")
    tokens, labels = texts(drawn)
    model = taught(lesson).requires_grad_(False)
    answer = labels[labels >= 0]
    with torch.no_grad():
        read = WAYS[way].read(model, drawn.images, tokens[:, : len(drawn.asked[0])])
        logits = [read.logits]
        for token in answer[:-1]:
            logits.append(model.language(token[None, None], read.state)[:, -1])
    for parameter in learnt(model).values():
        parameter.requires_grad_()
    loss = LESSONS[lesson].loss(model, drawn.images, tokens, labels, 0)
    torch.testing.assert_close(loss, F.cross_entropy(torch.cat(logits), answer), atol=1e-5, rtol=1e-5)
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in learnt(model).values() if p.dim() > 1)


def test_a_lesson_changes_what_it_names_alone():
    before = fresh().state_dict()
    model, losses = video_training.teach("all", 2)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.partition(".")[0] for name in changed} == {"language", "projector"} and len(losses) == 2


def test_weights_of_another_lesson_are_refused(tmp_path):
    save_file({"language.norm.weight": torch.ones(96)}, tmp_path / "videos_all.safetensors")
    with pytest.raises(ValueError, match=r"must be those of .*projector.linear_1.*, got \['language.norm.weight'\]"):
        taught("all", tmp_path)


@pytest.mark.parametrize(("accuracy", "met"), [(0.78, False), (0.79, True)])
def test_verdicts(accuracy, met, tmp_path):
    records = [record(PLAIN, 0.9), record("VideoScan, memory 4", accuracy), record(EXACT, 0.9, same=met)]
    found = videos.verdicts(records)
    assert [one.met for one in found] == [met, met]
    columns, rows = videos.show(records, 6)[1:]
    assert len(rows) == 3 and all(len(row) == len(columns) for row in rows)
    videos.plot(records, tmp_path / "made.png")
    assert (tmp_path / "made.png").stat().st_size > 5000
    assert all({way, beside} <= set(WAYS) for way, beside, *_ in videos.BOUNDS) and FRAMES == 4
