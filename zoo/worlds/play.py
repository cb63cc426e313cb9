"""Playing: what was seen and done, and what it was worth."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo.generate.decode import evaluating
from zoo.layers.precision import computes_in
from zoo.worlds.drama import Drama
from zoo.worlds.environments import Environment

SEEDS = 2**31  # of Gymnasium
Choose = Callable[[Tensor, bool], int]  # the action at a frame, which may be the first of an episode


class Played(NamedTuple):
    """Steps in a row, of one episode after the other.

    Attributes:
        frames: uint8 (T, C, H, W). actions: (T,) at the frames. rewards: (T,) of the actions.
        ends: (T,), whether the episode ended with the action. firsts: (T,), frames with which an episode begins.
    """

    frames: Tensor
    actions: Tensor
    rewards: Tensor
    ends: Tensor
    firsts: Tensor


class Player:
    """Plays an environment step by step, episode after episode, and goes on where another one was.

    Args:
        environment: what is played.
        seed: of the episodes.

    Attributes:
        episode: number of the present one. actions: in it so far. frame: the present one.
    """

    def __init__(self, environment: Environment, seed: int):
        self.environment, self.seed = environment, seed
        self.episode, self.actions = 0, []
        self.frame = self._begin()

    def _begin(self) -> Tensor:
        return self.environment.reset(int(np.random.default_rng([self.seed, self.episode]).integers(SEEDS)))

    def step(self, choose: Choose) -> Played:
        """One step, T = 1."""
        frame, first = self.frame, not self.actions
        action = choose(frame, first)
        found = self.environment.step(action)
        self.actions.append(action)
        self.frame = found.frame
        if found.over:
            self.episode, self.actions = self.episode + 1, []
            self.frame = self._begin()
        done = torch.tensor([found.ended]), torch.tensor([first])
        return Played(frame[None], torch.tensor([action]), torch.tensor([found.reward]), *done)

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""
        return {"episode": self.episode, "actions": list(self.actions)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go where another one was: the episode is played again up to there, as environments follow their seeds."""
        self.episode, self.actions = state["episode"], list(state["actions"])
        self.frame = self._begin()
        for action in self.actions:
            self.frame = self.environment.step(action).frame


def play(player: Player, steps: int, choose: Choose) -> Played:
    """So many steps."""
    found = [player.step(choose) for _ in range(steps)]
    return Played(*map(torch.cat, zip(*found, strict=True)))


def at_random(num_actions: int, seed: int) -> Choose:
    """Any action, as likely as any other."""
    source = np.random.default_rng(seed)
    return lambda frame, first: int(source.integers(num_actions))


class AgentPlays:
    """What the agent of a model in evaluation does in one environment, and what it remembers of the episode.

    Args:
        model: with an agent.
        generator: of the draws; torch's own where None.
        options: of ``Drama.act``.
    """

    def __init__(self, model: Drama, generator: torch.Generator | None = None, **options: Any):
        self.model, self.generator, self.options = model, generator, options
        self.memory = model.begin(1)

    def __call__(self, frame: Tensor, first: bool) -> int:
        if first:
            self.memory = self.model.begin(1)
        frames = scaled(self.model, frame[None])
        return int(self.model.act(frames, self.memory, generator=self.generator, **self.options))

    def state_dict(self) -> dict[str, Any]:
        """What it remembers."""
        states = [dict(state.tensors()) for state in self.memory.state]
        return {"features": self.memory.features, "started": self.memory.started, "states": states}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Remember what another one did."""
        self.memory = self.model.begin(1)
        self.memory.features, self.memory.started = saved["features"].to(self.memory.features), saved["started"]
        for state, tensors in zip(self.memory.state, saved["states"], strict=True):
            state.map(lambda name, tensor, tensors=tensors: tensors[name].to(tensor))


def scaled(model: Drama, frames: Tensor) -> Tensor:
    """Bytes as numbers in [0, 1], where and as the model computes."""
    like = computes_in(model)
    return frames.to(like.device, like.dtype) / 255


@torch.no_grad()
def returns(
    model: Drama | None,
    build: Callable[[], Environment],
    episodes: int,
    *,
    seed: int = 0,
    greedy: bool = False,
    blind: bool = False,
    longest: int = 10_000,
) -> list[float]:
    """Sums of rewards of whole episodes, which a model's agent plays side by side, or nobody who chooses.

    Args:
        model: left in the mode it was in; actions at random where None.
        build: makes an environment.
        episodes: to play.
        seed: of the episodes and the draws.
        greedy, blind: see ``Drama.act``.
        longest: steps after which an episode is broken off.
    """
    environments = [build() for _ in range(episodes)]
    seeds = np.random.default_rng([seed, 1]).integers(SEEDS, size=episodes)
    frames = torch.stack([e.reset(int(s)) for e, s in zip(environments, seeds, strict=True)])
    generator = torch.Generator().manual_seed(seed)
    total, playing = [0.0] * episodes, list(range(episodes))
    with nullcontext() if model is None else evaluating(model):
        memory = None if model is None else model.begin(episodes)
        for _ in range(longest):
            if not playing:
                break
            if model is None or memory is None:
                actions = torch.randint(environments[0].num_actions, (episodes,), generator=generator)
            else:
                actions = model.act(scaled(model, frames), memory, greedy=greedy, blind=blind, generator=generator)
            for i in list(playing):
                found = environments[i].step(int(actions[i]))
                frames[i] = found.frame
                total[i] += found.reward
                if found.over:
                    playing.remove(i)
    return total
