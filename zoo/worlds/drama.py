"""Drama: a world model of discrete codes with a Mamba-2 memory, in which an agent learns by imagining.

Paper: Wang et al., "Drama: Mamba-Enabled Model-Based Reinforcement Learning Is Sample and Parameter Efficient", ICLR
2025, arXiv 2410.08893, with the sizes of the authors' code (realwenlongwang/drama).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.generate.decode import evaluating
from zoo.layers.precision import computes_in
from zoo.layers.states import ModelState
from zoo.registry import Paper, register_model
from zoo.worlds.agent import Agent
from zoo.worlds.config import DramaConfig
from zoo.worlds.latents import drawn, likeliest
from zoo.worlds.model import WorldModel, wide


class Imagined(NamedTuple):
    """What was imagined of H steps, from the frame after those that were seen.

    Attributes:
        codes: (B, H + 1, code_dim) of the frames.
        features: (B, H + 1, code_dim + dim): the codes with what was remembered before them.
        actions: (B, H) at the frames but the last.
        rewards: (B, H) of the actions.
        ends: (B, H), how likely the episode ends with them.
    """

    codes: Tensor
    features: Tensor
    actions: Tensor
    rewards: Tensor
    ends: Tensor


@dataclasses.dataclass
class Remembered:
    """What an agent has seen so far: features (B, dim), and the memory's state; ``started`` once there was a frame."""

    features: Tensor
    state: ModelState
    started: bool = False


class Drama(WorldModel):
    """A world model, and an agent that learns in it where the configuration says so.

    Attributes:
        agent: None without one.
    """

    def __init__(self, config: DramaConfig):
        super().__init__(config)
        c = config
        parts = (c.code_dim + c.dim, c.num_actions, c.actor_dim, c.critic_dim, c.agent_depth, self.bins)
        self.agent = Agent(*parts) if c.agent else None

    @torch.no_grad()
    def imagine(
        self,
        frames: Tensor,
        actions: Tensor,
        horizon: int,
        *,
        moves: Tensor | None = None,
        firsts: Tensor | None = None,
        likely: bool = False,
        generator: torch.Generator | None = None,
    ) -> Imagined:
        """What follows frames that were seen, as the model in evaluation imagines it.

        Args:
            frames: (B, T, C, H, W), T at least 1. actions: (B, T) at them.
            horizon: H, steps to imagine.
            moves: (B, H) actions at the imagined frames; the agent's where None.
            firsts: see ``forward``.
            likely: the likeliest codes and actions, in place of drawn ones.
            generator: of the draws.

        Raises:
            ValueError: for a horizon below 1, frames of another size, actions or moves that do not fit, or no moves
                where there is no agent.
        """
        self._check(frames, actions)
        if horizon < 1 or not frames.shape[1]:
            raise ValueError(f"horizon must be at least 1, from one frame or more, got {horizon} and {len(frames[0])}")
        if moves is not None and moves.shape != (len(frames), horizon):
            raise ValueError(f"moves must be ({len(frames)}, horizon {horizon}), got {tuple(moves.shape)}")
        with evaluating(self):
            codes = self.encode(frames)
            codes = self._flat(likeliest(codes) if likely else drawn(codes, generator))
            return self.dream(codes, actions, horizon, moves=moves, firsts=firsts, likely=likely, generator=generator)

    @torch.no_grad()
    def dream(
        self,
        codes: Tensor,
        actions: Tensor | None,
        horizon: int,
        *,
        moves: Tensor | None = None,
        firsts: Tensor | None = None,
        likely: bool = False,
        generator: torch.Generator | None = None,
    ) -> Imagined:
        """As ``imagine``, from codes (B, T, code_dim)."""
        state = self.dynamics.init_state(len(codes))
        seen = self.remember(codes, actions, firsts, state)[:, -1]
        codes_ahead, features, chosen, memories = [], [], [], []
        for step in range(horizon + 1):
            expected = self.expected(seen)
            code = self._flat(likeliest(expected) if likely else drawn(expected, generator))
            codes_ahead.append(code)
            features.append(torch.cat([code, seen], -1))
            if step == horizon:
                break
            chosen.append(self._choose(features[-1], likely, generator) if moves is None else moves[:, step])
            seen = self.dynamics(code[:, None], chosen[-1][:, None], state)[:, -1]
            memories.append(seen)
        remembered = torch.stack(memories, 1)
        rewards = self.bins.mean(wide(self.reward(remembered)))
        ends = wide(self.end(remembered))[..., 0].sigmoid()
        ahead = torch.stack(codes_ahead, 1), torch.stack(features, 1), torch.stack(chosen, 1)
        return Imagined(*ahead, rewards, ends)

    def imagined_losses(
        self, codes: Tensor, actions: Tensor | None, ends: Tensor | None, firsts: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Of the agent, from the last of codes (B, T, code_dim)."""
        if self.agent is None:
            return {}, {}
        found = self.dream(codes, actions, self.config.horizon, firsts=firsts)
        return self.agent_losses(found, lasting=None if ends is None else ~ends[:, -1])

    def agent_losses(
        self,
        imagined: Imagined,
        slow: Callable[[Tensor], Tensor] | None = None,
        lasting: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See ``Agent.losses``, with the configuration's discounts."""
        c = self.config
        assert self.agent is not None
        weights = {"gamma": c.gamma, "lam": c.lam, "entropy": c.entropy_weight}
        return self.agent.losses(imagined.features, *imagined[2:], slow=slow, lasting=lasting, **weights)

    def begin(self, batch_size: int) -> Remembered:
        """What an agent remembers before the first frame."""
        nothing = computes_in(self).new_zeros(batch_size, self.config.dim)
        return Remembered(nothing, self.dynamics.init_state(batch_size))

    @torch.no_grad()
    def act(
        self,
        frames: Tensor,
        remembered: Remembered,
        *,
        greedy: bool = False,
        blind: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Actions (B,) at frames (B, C, H, W) in [0, 1] of a model in evaluation, which are remembered.

        Args:
            greedy: the likeliest actions, in place of drawn ones.
            blind: act on the frame that was expected, as the authors' code does, and look at the true one afterwards.
            generator: of the draws.

        Raises:
            ValueError: for a model without an agent, or frames of another size.
        """
        self._check(frames[:, None], None)
        code = drawn(self.encode(frames[:, None])[:, 0], generator)
        before = remembered.features
        at = drawn(self.expected(before), generator) if blind and remembered.started else code
        code, at = self._flat(code), self._flat(at)
        actions = self._choose(torch.cat([at, before], -1), greedy, generator)
        remembered.features = self.dynamics(code[:, None], actions[:, None], remembered.state)[:, -1]
        remembered.started = True
        return actions

    def _choose(self, features: Tensor, greedy: bool, generator: torch.Generator | None) -> Tensor:
        if self.agent is None:
            raise ValueError("the model has no agent to choose actions: give moves, or train it with agent=True")
        return self.agent.choose(features, greedy, generator)


_register = partial(
    register_model, Drama, task="world-model", family="drama",
    paper=Paper(
        "Drama: Mamba-Enabled Model-Based Reinforcement Learning Is Sample and Parameter Efficient", "2410.08893", 2024
    ),
)  # fmt: skip


@_register()
def drama():
    return DramaConfig(num_actions=6)


@_register()
def drama_nano():
    return DramaConfig(
        num_actions=2, in_chans=1, img_size=32, widths=(8, 16, 24, 32), groups=8, classes=8, dim=64, d_state=16,
        hidden_dim=64, agent=True, actor_dim=64, critic_dim=64, agent_depth=2, environment="CartPole-v1", repeat=2,
    )  # fmt: skip
