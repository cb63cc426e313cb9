"""World models, which learn from what was played, and whose agents play on."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoo.generate.decode import evaluating
from zoo.layers.options import require_at_least
from zoo.train.data.environments import ACTION, END, FIRST, REWARD, EnvironmentDataModule, joined
from zoo.train.data.rng import derive_seed
from zoo.train.replay import Replay
from zoo.train.tasks.base import Task
from zoo.train.tasks.metrics import Mean
from zoo.worlds import AgentPlays, Drama, Player, horizon_errors, play, returns

Batch = tuple[Tensor, Tensor]
DECAY = 0.98  # of the slow critic


class WorldModeling(Task):
    """Squared error of decoded frames, summed over their pixels, and the model's side losses; batches are sequences of
    `EnvironmentDataModule`.

    With an agent the task plays: it begins with the data's steps, adds `play` steps of its agent before each update,
    and draws the sequences of the update from all of them by dynamic frequency sampling (`zoo.train.replay`), in place
    of the loader's, and those that the agent imagines from. A checkpoint holds all that was played, and where the
    player is, so that a killed run goes on as if nothing had happened. Without an agent the loader's sequences are
    learnt from.

    Logs `train/return` of the last episode, `{val,test}/loss` (frames, rewards, ends and divergences), `{val,test}/
    error`, the mean squared error of frames imagined up to the end of a sequence after `context` ones, and
    `{val,test}/return` of `episodes` episodes that the agent plays.

    Args:
        model: see `Task`, which also has the other arguments.
        play: steps in the environment an update; 0 only learns from the loader.
        capacity: steps that are remembered.
        dreams: sequences that are imagined from in an update. context: frames of each.
        tau, alpha, beta: see `Replay`.
        episodes: that are played to evaluate; 0 for none.
        play_seed: of the episodes.

    Raises:
        ValueError: for numbers out of range.
    """

    unit = "sequences"

    def __init__(
        self,
        model: str | nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        play: int = 1,
        capacity: int = 100_000,
        dreams: int = 64,
        context: int = 8,
        tau: float = 10.0,
        alpha: float = 1.0,
        beta: float = 1.0,
        episodes: int = 10,
        play_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, model_args, **kwargs)
        require_at_least(0, play=play, episodes=episodes)
        require_at_least(1, dreams=dreams, context=context)
        self.steps, self.dreams, self.context = play, dreams, context
        self.episodes, self.play_seed = episodes, play_seed
        self.frequencies = {"capacity": capacity, "tau": tau, "alpha": alpha, "beta": beta}
        Replay(**self.frequencies)
        self.replay: Replay | None = None
        self.player: Player | None = None
        self.slow_critic: nn.Module | None = None
        self.updated: tuple[Batch, Batch] | None = None  # what this update learns from, and imagines from
        self.total: float | None = None  # of the present episode's rewards, once it has begun
        self.saved: dict[str, Any] | None = None
        self.policy: AgentPlays | None = None
        self.means = nn.ModuleDict({name: Mean() for name in ("loss", "error", "return")})

    def configure_model(self) -> None:
        first = self.model is None
        super().configure_model()
        if first and (agent := cast(Drama, self.trained).agent) is not None:
            self.slow_critic = _copy(agent.critic)

    @property
    def playing(self) -> bool:
        """Whether there is an agent that plays."""
        return self.steps > 0 and self.slow_critic is not None

    def on_train_start(self) -> None:
        """Begin with the data's steps, or go on from the checkpoint's."""
        if not self.playing:
            return
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, EnvironmentDataModule):
            raise ValueError(f"the agent plays in the environment of EnvironmentDataModule, got {type(data).__name__}")
        self.replay = Replay(**self.frequencies, share=self.dreams / data.batch_size)  # type: ignore[arg-type]
        self.player = Player(data.make(), derive_seed(self.play_seed, self.global_rank))
        self.policy = AgentPlays(cast(Drama, self.trained))
        if self.saved is None:
            self.replay.add(cast(Any, data.sources["train"]).played)
        else:
            for name, part in self._parts().items():
                part.load_state_dict(self.saved[name])
            self.total, self.saved = self.saved["total"], None

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Play, and draw what this update learns from."""
        if self.replay is None or self.player is None or self.policy is None:
            return
        with evaluating(self.trained):
            found = play(self.player, self.steps, self.policy)
        self.replay.add(found)
        for reward, first in zip(found.rewards.tolist(), found.firsts.tolist(), strict=True):
            if first and self.total is not None:
                self.log("train/return", self.total, prog_bar=True)
            self.total = reward + (0.0 if first or self.total is None else self.total)
        frames, _ = batch
        drawn = self.replay.sample(*frames.shape[:2]), self.replay.sample(self.dreams, self.context, imagine=True)
        learnt, dreamt = (tuple(part.to(frames.device) for part in joined(played)) for played in drawn)
        self.updated = learnt, dreamt  # type: ignore[assignment]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        model = cast(Drama, self.trained)
        if self.updated is None or self.asking:
            return self.log_training(self._error(batch))
        learnt, (starts, before) = self.updated
        loss = self._error(learnt, imagine=False)
        actions, _, ends, firsts = _told(before)
        imagined = model.imagine(starts, actions, model.config.horizon, firsts=firsts)
        losses, measures = model.agent_losses(imagined, self.slow_critic, lasting=~ends[:, -1])
        model.report(model.auxiliary_losses | losses, measures)
        return self.log_training(loss)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.slow_critic is not None:
            critic = cast(Any, self.trained).agent.critic
            with torch.no_grad():
                for slow, weight in zip(self.slow_critic.parameters(), critic.parameters(), strict=True):
                    slow.lerp_(weight.to(slow.dtype), 1 - DECAY)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val", batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test", batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What was played, and where the player is."""
        if self.replay is not None:
            parts = {name: part.state_dict() for name, part in self._parts().items()}
            checkpoint["played"] = {**parts, "total": self.total}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.saved = checkpoint.get("played")

    def _parts(self) -> dict[str, Any]:
        """What goes on where a run is resumed."""
        return {"replay": self.replay, "player": self.player, "policy": self.policy}

    def _error(self, batch: Batch, imagine: bool = True) -> Tensor:
        frames, moves = batch
        found = self.trained(frames, *_told(moves), imagine=imagine)
        return (found.float() - frames).square().flatten(2).sum(2).mean()

    @torch.no_grad()
    def _evaluate(self, batch: Batch, split: str, number: int) -> None:
        (frames, moves), model = batch, cast(Drama, self.evaluated)
        values = {"loss": losses_of(model, frames, moves).expand(len(frames))}
        if frames.shape[1] > self.context:
            actions, _, _, firsts = _told(moves)
            errors = horizon_errors(model, frames, actions, firsts, self.context)
            values["error"] = errors[errors.isfinite()]
        data = getattr(self.trainer, "datamodule", None)
        if number == 0 and self.episodes and model.agent is not None and isinstance(data, EnvironmentDataModule):
            values["return"] = torch.tensor(returns(model, data.make, self.episodes, seed=derive_seed(3)))
        for name, value in values.items():
            mean = cast(Mean, self.means[name])
            mean.update(value.to(self.device))
            self.log(f"{split}/{name}", mean, on_epoch=True, prog_bar=True, metric_attribute=f"means.{name}")


@torch.no_grad()
def losses_of(model: Drama, frames: Tensor, moves: Tensor) -> Tensor:
    """What a world model in evaluation would be trained by, without its agent: a scalar, the mean over the steps."""
    codes, losses = model.read(frames, *_told(moves))
    return (model.decode(codes) - frames).square().flatten(2).sum(2).mean() + sum(losses.values())


def _copy(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).requires_grad_(False)


def _told(moves: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Actions, rewards, ends and firsts of moves (B, T, 4)."""
    return moves[..., ACTION].long(), moves[..., REWARD], moves[..., END] > 0, moves[..., FIRST] > 0
