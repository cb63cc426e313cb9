"""Who acts in a world model: an actor and a critic, which learn from what was imagined."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from zoo.kernels.dispatch import compute_dtype
from zoo.layers.precision import KeepsFloat32
from zoo.worlds.bins import Bins
from zoo.worlds.dynamics import stack
from zoo.worlds.latents import picked

DECAY = 0.99  # of the averages of low and high returns
LOW, HIGH = 0.05, 0.95  # shares of returns below them
FURTHEST = 10.0  # standard deviations that a feature may be off its mean


def lambda_returns(rewards: Tensor, ends: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    r"""What follows from each step, in part as it was seen and in part as it was valued.

    .. math:: R_t = r_t + \gamma (1 - e_t) ((1 - \lambda) v_{t+1} + \lambda R_{t+1}), \quad R_H = v_H

    The authors' code has v_t for v_{t+1}.

    Args:
        rewards: r (B, H) of the actions at t = 0 .. H - 1.
        ends: e (B, H), how likely the episode ends with them.
        values: v (B, H + 1) of what was seen before them, and after the last.
        gamma: discount.
        lam: 0 for one step and the value after it, 1 for what was seen up to the last.

    Returns:
        (B, H).
    """
    following, found = values[:, -1], []
    for t in reversed(range(rewards.shape[1])):
        mixed = (1 - lam) * values[:, t + 1] + lam * following
        following = rewards[:, t] + gamma * (1 - ends[:, t]) * mixed
        found.append(following)
    return torch.stack(found[::-1], 1)


class Standardise(KeepsFloat32):
    """(x - mean) / std of all that was seen in training, cut at ten; it learns them by ``zoo.after_step``.

    Attributes:
        mean, variance (dim,), count: of the features so far.
    """

    float32_buffers = ("mean", "variance", "count")
    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))
        self.register_buffer("count", torch.tensor(1e-4))
        self.noted: list[tuple[Tensor, Tensor, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        if self.training and torch.is_grad_enabled():
            seen = x.detach().flatten(0, -2).to(self.mean.dtype)
            self.noted = [(seen.mean(0), seen.var(0, correction=0), len(seen))]
        scaled = (x - self.mean) * (self.variance + 1e-8).rsqrt()
        return scaled.clamp(-FURTHEST, FURTHEST).to(x.dtype)

    @torch.no_grad()
    def after_step(self) -> None:
        """Take in what the last training pass saw."""
        for mean, variance, size in self.noted:
            count, off = self.count + size, mean - self.mean
            squares = self.variance * self.count + variance * size + off.square() * self.count * size / count
            self.mean += off * size / count
            self.variance.copy_(squares / count)
            self.count.copy_(count)
        self.noted = []


class Agent(KeepsFloat32):
    """An actor, which says how likely it takes each action, and a critic, which says what follows in the long run.

    Args:
        feature_dim: numbers that tell where one is.
        num_actions: actions.
        actor_dim, critic_dim: hidden units.
        depth: hidden layers of each.
        bins: what the critic's values are split over.

    Attributes:
        low, high: averages of small and of large returns, whose distance advantages are measured by.
    """

    float32_buffers = ("low", "high")
    low: Tensor
    high: Tensor

    def __init__(self, feature_dim: int, num_actions: int, actor_dim: int, critic_dim: int, depth: int, bins: Bins):
        super().__init__()
        self.bins = bins
        self.standardise = Standardise(feature_dim)
        self.actor = nn.Sequential(*stack(feature_dim, actor_dim, depth), nn.Linear(actor_dim, num_actions))
        self.critic = nn.Sequential(*stack(feature_dim, critic_dim, depth), nn.Linear(critic_dim, bins.count))
        for network in (self.actor, self.critic):
            linears = [layer for layer in network if isinstance(layer, nn.Linear)]
            for linear in linears:
                nn.init.orthogonal_(linear.weight, 0.001 if linear is linears[-1] else 2**0.5)
                nn.init.zeros_(linear.bias)
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.noted: list[tuple[Tensor, Tensor]] = []

    def policy(self, features: Tensor) -> Tensor:
        """Features (..., feature_dim) to log-probabilities of actions (..., num_actions)."""
        logits = self.actor(self.standardise(features))
        return logits.to(compute_dtype(logits)).log_softmax(-1)

    def choose(self, features: Tensor, greedy: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Features (B, feature_dim) to actions (B,), drawn or the likeliest."""
        found = self.policy(features)
        return found.argmax(-1) if greedy else picked(found.exp(), generator)

    def values(self, logits: Tensor) -> Tensor:
        """Logits of the critic (..., bins) to values (...)."""
        return self.bins.mean(logits.to(compute_dtype(logits)))

    def losses(
        self,
        features: Tensor,
        actions: Tensor,
        rewards: Tensor,
        ends: Tensor,
        *,
        gamma: float,
        lam: float,
        entropy: float,
        slow: Callable[[Tensor], Tensor] | None = None,
        lasting: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        r"""Losses of what was imagined, and what there is to tell of it.

        .. math::
            L_{actor} = -\sum_t w_t (\mathrm{sg}[R_t - v_t] / \max(1, S) \log \pi(a_t | s_t) + \eta H(\pi(s_t))), \quad
            L_{critic} = \sum_t w_t (\mathrm{CE}(v_t, R_t) + \mathrm{CE}(v_t, R'_t))

        as means. S is the average of the distance between the 5th and the 95th percentile of the returns R, R' are
        returns by the slow critic, and w_t is how likely the episode has not ended before t, which the authors leave
        out; the weights add up to one.

        Args:
            features: s (B, H + 1, feature_dim).
            actions: a (B, H). rewards: (B, H). ends: (B, H), how likely the episode ends with the action.
            gamma, lam: see ``lambda_returns``.
            entropy: weight of the policy's entropy.
            slow: an average of the critic, of features to logits; without one R' is left out.
            lasting: (B,), how likely the episode had not ended when the imagining began; 1 where None.
        """
        logits, policy = self.critic(features), self.policy(features[:, :-1])
        logits = logits.to(compute_dtype(logits))
        values = self.values(logits)
        found = lambda_returns(rewards, ends, values, gamma, lam).detach()
        begun = torch.ones_like(ends[:, 0]) if lasting is None else lasting.to(ends.dtype)
        alive = torch.cat([begun[:, None], 1 - ends[:, :-1]], 1).cumprod(1)
        alive = alive / alive.sum().clamp_min(torch.finfo(alive.dtype).tiny)
        scale = (self.high - self.low).clamp_min(1.0)
        advantages = (found - values[:, :-1].detach()) / scale
        spread = -(policy.exp() * policy).sum(-1)
        chosen = policy.gather(-1, actions[..., None])[..., 0]
        valued = self.bins.losses(logits[:, :-1], found)
        if slow is not None:
            with torch.no_grad():
                other = lambda_returns(rewards, ends, self.values(slow(features)), gamma, lam)
            valued = valued + self.bins.losses(logits[:, :-1], other)
        if self.training:
            self.noted = [(found.quantile(LOW), found.quantile(HIGH))]
        losses = {
            "actor": -(alive * (advantages * chosen + entropy * spread)).sum(),
            "critic": (alive * valued).sum(),
        }
        return losses, {"entropy": spread.mean().detach(), "return": found.mean(), "scale": scale}

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the averages of small and large returns."""
        for low, high in self.noted:
            self.low.lerp_(low.to(self.low.dtype), 1 - DECAY)
            self.high.lerp_(high.to(self.high.dtype), 1 - DECAY)
        self.noted = []
