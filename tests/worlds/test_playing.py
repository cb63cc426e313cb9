"""Playing: environments as pictures, episodes that go on, returns, rollouts, files, runs that are killed, commands."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zoo
from zoo.cli import main, recipe_path
from zoo.train.command import TrainingRun
from zoo.train.data import EnvironmentDataModule
from zoo.worlds import (
    AgentPlays,
    Drama,
    Environment,
    Played,
    Player,
    at_random,
    beside,
    horizon_errors,
    play,
    read_played,
    returns,
    rollout,
)
from zoo.worlds.environments import cart_pole

pytest.importorskip("gymnasium", reason="environments are Gymnasium's: pip install 'efficient-zoo[worlds]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning")


@pytest.fixture(scope="module")
def model() -> Drama:
    torch.manual_seed(0)
    made: Any = zoo.create_model("drama_nano", environment="CartPole-v1", repeat=2)
    return made.eval()


def cart(repeat: int = 1) -> Environment:
    return Environment("CartPole-v1", 32, repeat=repeat)


@pytest.mark.cuda
def test_a_model_on_a_gpu_plays_and_imagines() -> None:
    made: Any = zoo.create_model("drama_nano", environment="CartPole-v1").eval().cuda()
    assert len(returns(made, cart, 2, longest=20)) == 2
    played = play(Player(cart(), 0), 8, AgentPlays(made, torch.Generator().manual_seed(0)))
    assert rollout(made, played, 4, torch.Generator().manual_seed(0))[0].device.type == "cuda"


def test_frames_follow_the_state() -> None:
    upright = cart_pole(np.zeros(4), 32)
    assert np.allclose(upright, upright[:, ::-1]) and upright.min() >= 0 and upright.max() <= 1
    right = cart_pole(np.array([0.0, 0.0, 0.2, 0.0]), 32)
    assert np.allclose(right[:, ::-1], cart_pole(np.array([0.0, 0.0, -0.2, 0.0]), 32))
    columns = np.arange(32)
    place = lambda image, rows: (image[rows] * columns).sum() / image[rows].sum()  # noqa: E731
    assert place(right, slice(0, 12)) > place(upright, slice(0, 12)) + 2
    moved = cart_pole(np.array([1.0, 0.0, 0.0, 0.0]), 32)
    assert place(moved, slice(0, 32)) - place(upright, slice(0, 32)) == pytest.approx(32 / 5.6, abs=0.05)
    slightly = cart_pole(np.array([0.0, 0.0, 0.01, 0.0]), 32)
    assert np.abs(slightly - upright).max() > 1 / 255  # less than a pixel shows


def test_an_episode_is_what_its_seed_and_actions_say() -> None:
    import gymnasium  # pyright: ignore[reportMissingImports]

    environment, wanted = cart(repeat=2), gymnasium.make("CartPole-v1")
    state, _ = wanted.reset(seed=3)
    frame = environment.reset(3)
    assert torch.equal(frame[0], torch.from_numpy(np.rint(255 * cart_pole(state, 32)).astype(np.uint8)))
    for action in (0, 1, 1, 1, 1, 1, 1, 1, 1):
        found, total = environment.step(action), 0.0
        for _ in range(2):
            state, reward, ended, _, _ = wanted.step(action)
            total += float(reward)
            if ended:
                break
        assert found.reward == total and found.ended == ended == found.over
        assert torch.equal(found.frame[0], torch.from_numpy(np.rint(255 * cart_pole(state, 32)).astype(np.uint8)))
        if ended:
            break
    assert found.over
    in_time = Environment("CartPole-v1", 8, options={"max_episode_steps": 2})
    in_time.reset(0)
    in_time.step(0)
    last = in_time.step(1)
    assert last.over and not last.ended


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("CartPole-v9", {}, "Gymnasium has no environment 'CartPole-v9', did you mean 'CartPole-v"),
        ("Pendulum-v1", {}, "Pendulum-v1 must have numbered actions, got Box"),
        ("CartPole-v1", {"in_chans": 2}, "in_chans must be 1 or 3"),
    ],
)
def test_wrong_environments(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Environment(name, 8, **options)


def test_a_player_goes_on_where_another_was(model: Drama) -> None:
    players, sources = [Player(cart(), 4) for _ in range(2)], [torch.Generator().manual_seed(1) for _ in range(2)]
    policies = [AgentPlays(model, source) for source in sources]
    first = play(players[0], 70, policies[0])
    assert first.firsts[0] and first.firsts.sum() > 2 and first.ends.sum() >= first.firsts.sum() - 1
    assert torch.equal(first.firsts[1:], first.ends[:-1])  # no episode is this long
    for new, old in ((players[1], players[0]), (policies[1], policies[0])):
        new.load_state_dict(old.state_dict())
    sources[1].set_state(sources[0].get_state())
    both = [play(player, 40, policy) for player, policy in zip(players, policies, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


def test_returns_are_sums_of_rewards(model: Drama) -> None:
    found = returns(None, cart, 30, seed=1)
    assert found == returns(None, cart, 30, seed=1) != returns(None, cart, 30, seed=2)
    assert 15 < sum(found) / 30 < 32  # 22 in the mean, of many
    model.train()
    assert len(returns(model, lambda: cart(2), 3)) == 3 and model.training
    model.eval()
    assert returns(None, cart, 2, longest=4) == [4.0, 4.0]


def test_errors_over_the_horizon(model: Drama) -> None:
    data = EnvironmentDataModule(steps=200, held_out=100, length=12, batch_size=4, repeat=2)
    data.setup()
    frames, moves = data.sources["train"].fetch(torch.arange(40), 0)
    assert frames.shape == (40, 12, 1, 32, 32) and moves.shape == (40, 12, 4) and 0.9 < frames.max() <= 1
    actions, firsts = moves[..., 0].long(), moves[..., 3] > 0
    found = horizon_errors(model, frames, actions, firsts, 4)
    dreamt = model.imagine(frames[:, :4], actions[:, :4], 8, moves=actions[:, 4:], firsts=firsts[:, :4], likely=True)
    decoded = model.decode(dreamt.codes[:, :8]).detach()
    for step in range(8):
        lasting = [i for i in range(40) if not firsts[i, 4 : 5 + step].any()]
        errors = (decoded[lasting, step] - frames[lasting, 4 + step]).square()
        wanted = errors.mean() if lasting else torch.tensor(math.nan)
        torch.testing.assert_close(found[step], wanted, equal_nan=True)
    with pytest.raises(ValueError, match="steps must be at least 12, got 5"):
        EnvironmentDataModule(steps=5, length=12)


def test_a_picture_of_a_rollout(model: Drama) -> None:
    played = play(Player(cart(2), 0), 9, at_random(2, 0))
    frames, found = rollout(model, played, 4, torch.Generator().manual_seed(0))
    assert frames.shape == (5, 1, 32, 32) and torch.equal(found.actions[0], played.actions[4:])
    picture = np.asarray(beside(played, frames))
    assert picture.shape == (2 * 65 - 1, 9 * 65 - 1)
    assert (picture[65:129, : 4 * 65 - 1].reshape(-1)[::50] == 128).all()  # nothing is imagined of what was seen
    with pytest.raises(ValueError, match="at least 1 and below the 9 frames that there are, got 9"):
        rollout(model, played, 9)


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_files_that_are_no_play(model: Drama, tmp_path: Path) -> None:
    frames, actions = np.zeros((5, 32, 32), np.uint8), np.zeros(5, np.int64)
    good = read_played(saved(tmp_path / "a.npz", frames=frames, actions=actions), model)
    assert isinstance(good, Played) and good.frames.shape == (5, 1, 32, 32)
    for message, arrays in (
        ("must hold the arrays frames and actions", {"frames": frames}),
        (r"frames in .* must be bytes \(T, 1, 32, 32\), as the model reads, got \(5, 1, 31, 32\)",
         {"frames": frames[:, 1:], "actions": actions}),
        ("must be 5 integers, one a frame, got", {"frames": frames, "actions": actions[1:]}),
        ("must be from 0 to 1", {"frames": frames, "actions": actions + 2}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read_played(saved(tmp_path / "b.npz", **arrays), model)


def test_commands(model: Drama, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zoo.save_model(model, tmp_path / "model")
    where, drawn = f"local-dir:{tmp_path / 'model'}", tmp_path / "a.png"
    played = play(Player(cart(2), 0), 10, at_random(2, 0))
    file = saved(tmp_path / "a.npz", frames=played.frames.numpy(), actions=played.actions.numpy())
    assert main(["predict", where, str(file), "--context", "6", "--output", str(drawn)]) == 0
    said = capsys.readouterr().out
    assert [line.split()[1] for line in said.splitlines() if line[:3] == "│ 6" or line.startswith("│ 9")] == ["6", "9"]
    assert drawn.stat().st_size > 500
    assert main(["generate", where, "--output", str(drawn), "--images", "3"]) == 0
    assert "CartPole-v1" in capsys.readouterr().out
    assert main(["predict", where, str(file), "--context", "10"]) != 0
    assert "below the 10 frames" in capsys.readouterr().err
    assert main(["generate", where, "--output", str(drawn), "--images", "0"]) != 0
    assert "images must be at least 1, got 0" in capsys.readouterr().err


QUICK = [
    "--data.batch_size=4", "--data.length=8", "--data.steps=100", "--data.held_out=40", "--data.eval_batch_size=8",
    "--model.dreams=6", "--model.play=4", "--model.episodes=2", "--model.model_args={horizon: 3}",
    "--trainer.limit_train_batches=6", "--trainer.max_epochs=1", "--model.schedule_steps=6",
    "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--throughput.count_flops=false",
    "--checkpoint.every_n_steps=3",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
def test_a_run_that_is_broken_off_goes_on(tmp_path: Path) -> None:
    """With all that was played, where the player is and what it remembers: the weights end as those of a whole run."""
    ends: list[Any] = []
    for name, stops in (("whole", [-1]), ("broken", [3, -1])):
        for stop in stops:
            options = [*QUICK, f"--trainer.max_steps={stop}"]
            run = TrainingRun(recipe_path("cartpole_drama_nano"), options, tmp_path / name, resume=True)
            run.fit()
        assert run.model.replay is not None and len(run.model.replay) == 100 + 6 * 4  # pyright: ignore
        ends.append(torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True))
        if name == "whole":  # an epoch that is resumed in its middle is not evaluated at its end
            assert run.scores()["val/return"] > 8 and run.scores()["val/error"] > 0
    assert ends[0]["global_step"] == ends[1]["global_step"] == 6
    slow = [key for key in ends[0]["state_dict"] if key.startswith("slow_critic.")]
    assert slow and all(
        torch.equal(tensor, ends[1]["state_dict"][key]) for key, tensor in ends[0]["state_dict"].items()
    )
    plays = [end["played"] for end in ends]
    assert all(torch.equal(a, plays[1]["replay"]["played"][k]) for k, a in plays[0]["replay"]["played"].items())
    assert plays[0]["player"] == plays[1]["player"] and plays[0]["total"] == plays[1]["total"]
    model = zoo.create_model(f"local-dir:{tmp_path / 'whole' / 'model'}")
    assert model.config.environment == "CartPole-v1" and model.config.repeat == 2
