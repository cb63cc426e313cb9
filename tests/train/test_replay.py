"""What was played: a ring, where sequences begin, counts, and the state of it."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from zoo.train.replay import Replay
from zoo.train.tasks import WorldModeling
from zoo.worlds import Played


def played(start: int, stop: int) -> Played:
    steps = torch.arange(start, stop)
    return Played(steps[:, None, None, None].byte(), steps, steps.float(), steps % 5 == 4, steps % 5 == 0)


def test_sequences_are_steps_in_a_row_of_the_newest() -> None:
    replay = Replay(20)
    for start in range(0, 48, 6):
        replay.add(played(start, start + 6))
    assert len(replay) == 20
    found = replay.sample(17, 4)
    assert sorted(found.actions[:, 0].tolist()) == list(range(28, 45))  # each once
    assert (found.actions.diff(dim=1) == 1).all() and torch.equal(found.rewards, found.actions.float())
    assert torch.equal(found.frames[..., 0, 0, 0], found.actions.byte()) and found.firsts[:, 0].all()
    assert torch.equal(found.firsts[:, 1:], found.actions[:, 1:] % 5 == 0)
    replay.add(played(48, 148))  # more than there is room for
    assert sorted(replay.sample(20, 1).actions[:, 0].tolist()) == list(range(128, 148))


def test_scores_of_the_paper() -> None:
    replay = Replay(10, tau=2.0, alpha=1.5, beta=0.5, share=4.0)
    replay.add(played(0, 10))
    replay.trained[:3], replay.imagined[:3] = torch.tensor([0.0, 3.0, 1.0]), torch.tensor([0.0, 4.0, 8.0])
    torch.testing.assert_close(replay.scores(8), torch.tensor([0.0, -1.5, -0.5]))
    wanted = torch.tensor([0.0, (3 - 1.5 * 1 - 0.5 * 2) / 2, (1 - 1.5 * 2 - 0.5 * 0) / 2])
    torch.testing.assert_close(replay.scores(8, imagine=True), wanted)
    replay = Replay(10)  # alpha and beta 1: all that was trained on more often than imagined from is alike
    replay.add(played(0, 10))
    replay.trained[:3], replay.imagined[:3] = torch.tensor([9.0, 3.0, 1.0]), torch.tensor([2.0, 3.0, 4.0])
    torch.testing.assert_close(replay.scores(8, imagine=True), torch.tensor([0.0, 0.0, -0.3]))


def test_draws_follow_the_scores_and_are_counted() -> None:
    source = torch.Generator().manual_seed(0)
    replay = Replay(4, tau=1.0)
    replay.add(played(0, 4))
    first = torch.zeros(4)
    for _ in range(2000):
        replay.trained[:] = torch.tensor([0.0, 1.0, 2.0, 50.0])
        first[replay.sample(1, 1, generator=source).actions[0, 0]] += 1
    p = torch.tensor([0.0, -1.0, -2.0, -50.0]).softmax(0)
    assert (first / 2000 - p).abs().max() < 0.04
    replay.trained.zero_()
    replay.sample(3, 2)
    replay.sample(2, 2, imagine=True)
    assert replay.trained.sum() == 3 and replay.imagined.sum() == 2 and replay.trained[3] == 0
    for _ in range(9):
        replay.sample(2, 2)
    assert replay.trained[:3].max() - replay.trained[:3].min() <= 4  # what was seen less comes first


def test_what_is_overwritten_is_counted_anew() -> None:
    replay = Replay(6)
    replay.add(played(0, 6))
    replay.sample(6, 1)
    replay.add(played(6, 8))
    assert replay.scores(1).tolist() == pytest.approx([-0.1] * 4 + [0.0] * 2)


def test_another_one_goes_on_from_its_state() -> None:
    replay, other = Replay(10), Replay(10)
    replay.add(played(0, 14))
    replay.sample(5, 2)
    other.load_state_dict(replay.state_dict())
    for one in (replay, other):
        one.add(played(14, 17))
    drawn = [one.sample(4, 3, imagine=True, generator=torch.Generator().manual_seed(1)) for one in (replay, other)]
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))
    assert torch.equal(replay.scores(2), other.scores(2))
    fresh = Replay(10)
    fresh.load_state_dict(Replay(10).state_dict())
    assert len(fresh) == 0


def test_too_little_was_played() -> None:
    replay = Replay(10)
    replay.add(played(0, 5))
    with pytest.raises(ValueError, match="5 steps were played, a sequence takes 6: play more of them first"):
        replay.sample(1, 6)
    with pytest.raises(ValueError, match="4 sequences of 3 steps begin at different ones of 5: play more"):
        replay.sample(4, 3)
    with pytest.raises(ValueError, match="tau must be above 0, got 0"):
        Replay(10, tau=0)


def test_the_return_of_every_episode_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of one that was worth nothing; none before the first has ended."""
    task, logged, counter = WorldModeling("drama_nano", play=2, dreams=1, context=2), [], itertools.count()
    task.configure_model()
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.append((name, value)))

    def step(choose: Any) -> Played:
        index = next(counter)  # episodes of three steps, worth 0, 1, 2, ...
        reward = torch.tensor([float(index // 3) * (index % 3 == 1)])
        flags = torch.tensor([index % 3 == 2]), torch.tensor([index % 3 == 0])
        return Played(torch.zeros(1, 1, 32, 32, dtype=torch.uint8), torch.zeros(1).long(), reward, *flags)

    task.replay, task.player, task.policy = Replay(50), SimpleNamespace(step=step), SimpleNamespace()  # type: ignore[assignment]
    for index in range(5):
        task.on_train_batch_start((torch.zeros(1, 2, 1, 32, 32), torch.zeros(1, 2, 4)), index)
    assert logged == [("train/return", 0.0), ("train/return", 1.0), ("train/return", 2.0)]
