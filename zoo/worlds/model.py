"""The world model of Drama: frames to codes, codes and actions to what comes next."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.dispatch import compute_dtype
from zoo.layers.precision import computes_in
from zoo.layers.report import Reports
from zoo.layers.states import ModelState
from zoo.worlds.autoencoder import Decoder, Encoder, init_truncated
from zoo.worlds.bins import Bins
from zoo.worlds.config import MEMORIES, DramaConfig
from zoo.worlds.dynamics import Dynamics, stack
from zoo.worlds.latents import divergence, drawn, likeliest, unimix


class WorldModel(Reports):
    """Frames to codes, codes and actions to what comes next.

    Attributes:
        config, encoder, posterior (codes of frames), decoder, dynamics, prior (codes of what comes next), reward, end.
        bins: of rewards and values.
    """

    def __init__(self, config: DramaConfig):
        super().__init__()
        self.config = c = config
        side = c.img_size >> len(c.widths) - 1
        self.bins = Bins(c.num_bins, c.bin_limit)
        self.encoder = Encoder(c.in_chans, c.widths, c.kernel_size)
        self.posterior = nn.Linear(c.widths[-1] * side**2, c.code_dim)
        self.decoder = Decoder(c.code_dim, c.in_chans, c.widths, c.kernel_size, side)
        self.dynamics = Dynamics(c.code_dim, c.num_actions, c.dim, [MEMORIES[c.memory](c) for _ in range(c.depth)])
        self.prior = nn.Linear(c.dim, c.code_dim)
        self.reward, self.end = (
            nn.Sequential(*stack(c.dim, c.hidden_dim, 1), nn.Linear(c.hidden_dim, out)) for out in (c.num_bins, 1)
        )
        self.reward.apply(init_truncated)
        self.end.apply(init_truncated)

    def forward(
        self,
        frames: Tensor,
        actions: Tensor | None = None,
        rewards: Tensor | None = None,
        ends: Tensor | None = None,
        firsts: Tensor | None = None,
        *,
        imagine: bool = True,
    ) -> Tensor:
        """Frames (B, T, C, H, W) in [0, 1] to frames of that shape.

        In evaluation, what is expected after each, from the likeliest codes. In training, what is decoded of each from
        a drawn code, and the side losses are published: "reward" and "end", cross-entropies of what was foretold;
        "dynamics" and "representation", see ``divergences``; and where there is an agent its "actor" and "critic", of
        what it imagines after the last frame.

        Args:
            actions: (B, T) integers, taken at the frames; nobody knows them where None.
            rewards: (B, T) of the actions; 0 where None.
            ends: (B, T) bool, whether the episode ended with the action; it never does where None.
            firsts: (B, T) bool, frames with which an episode begins.
            imagine: False leaves the agent out.

        Raises:
            ValueError: for frames of another size, or actions that do not fit them.
        """
        self._check(frames, actions)
        if not self.training:
            self.report({}, {})
            codes = self._flat(likeliest(self.encode(frames)))
            return self.decode(self._flat(likeliest(self.expected(self.remember(codes, actions, firsts)))))
        codes, losses = self.read(frames, actions, rewards, ends, firsts)
        further, measures = self.imagined_losses(codes.detach(), actions, ends, firsts) if imagine else ({}, {})
        self.report(losses | further, measures)
        return self.decode(codes)

    def read(
        self,
        frames: Tensor,
        actions: Tensor | None = None,
        rewards: Tensor | None = None,
        ends: Tensor | None = None,
        firsts: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Codes (B, T, code_dim) of frames, drawn in training and the likeliest in evaluation, and the losses of what
        is remembered of them; see ``forward``."""
        found = self.encode(frames)
        codes = self._flat(drawn(found) if self.training else likeliest(found))
        memory = self.remember(codes, actions, firsts)
        return codes, self._foretold(memory, rewards, ends) | self.divergences(found, self.expected(memory), firsts)

    def remember(
        self, codes: Tensor, actions: Tensor | None, firsts: Tensor | None, state: ModelState | None = None
    ) -> Tensor:
        """Codes (B, T, code_dim) and actions to what is remembered after each, (B, T, dim); with a state, from it."""
        ids = firsts.long().cumsum(1) if firsts is not None and self.config.reset_at_ends else None
        return self.dynamics(codes, actions, state, ids)

    def imagined_losses(
        self, codes: Tensor, actions: Tensor | None, ends: Tensor | None, firsts: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses of an agent, of what it imagines after codes (B, T, code_dim), and measures; here there is none."""
        return {}, {}

    def encode(self, frames: Tensor) -> Tensor:
        """Frames (B, T, C, H, W) to logs of how likely each class of their codes is, (B, T, groups, classes)."""
        logits = self.posterior(self.encoder(frames.flatten(0, 1)))
        return self._mixed(logits.unflatten(0, frames.shape[:2]))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, T, code_dim) to frames (B, T, C, H, W)."""
        found = self.decoder(codes.flatten(0, 1))
        return found.view(*codes.shape[:2], *found.shape[1:])

    def expected(self, features: Tensor) -> Tensor:
        """What is remembered, (B, T, dim), to logs of how likely the next frame's codes are, as ``encode`` has them."""
        return self._mixed(self.prior(features))

    def divergences(self, codes: Tensor, expected: Tensor, firsts: Tensor | None = None) -> dict[str, Tensor]:
        r"""How far codes are from what was expected a step before, twice: to teach either.

        .. math::
            \max(f, \mathrm{KL}(\mathrm{sg}[q_{t+1}] \| p_t)), \quad
            0.1 \max(f, \mathrm{KL}(q_{t+1} \| \mathrm{sg}[p_t]))

        means over all steps, sums over groups, with f nats free.

        Args:
            codes: log q (B, T, groups, classes).
            expected: log p.
            firsts: (B, T), frames that nobody could expect, where the memory starts anew with them.
        """
        q, p = codes[:, 1:], expected[:, :-1]
        kept = torch.ones_like(q[..., 0, 0])
        if firsts is not None and self.config.reset_at_ends:
            kept = (~firsts[:, 1:]).to(q.dtype)
        found = [
            ((divergence(a, b) * kept).sum() / kept.sum().clamp_min(1)).clamp_min(self.config.free_nats)
            for a, b in ((q.detach(), p), (q, p.detach()))
        ]
        return {"dynamics": found[0], "representation": 0.1 * found[1]}

    def no_weight_decay(self) -> set[str]:
        """Nothing besides biases and norms."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the memory's blocks in the backward pass instead of storing their activations."""
        self.dynamics.grad_checkpointing = enable

    def _foretold(self, memory: Tensor, rewards: Tensor | None, ends: Tensor | None) -> dict[str, Tensor]:
        found, ended = wide(self.reward(memory)), wide(self.end(memory))[..., 0]
        rewards = torch.zeros_like(ended) if rewards is None else rewards.to(found.dtype)
        wanted = torch.zeros_like(ended) if ends is None else ends.to(ended.dtype)
        return {
            "reward": self.bins.losses(found, rewards).mean(),
            "end": F.binary_cross_entropy_with_logits(ended, wanted),
        }

    def _mixed(self, logits: Tensor) -> Tensor:
        c = self.config
        return unimix(logits.unflatten(-1, (c.groups, c.classes)), c.mix_rate)

    def _flat(self, codes: Tensor) -> Tensor:
        return codes.flatten(-2).to(computes_in(self).dtype)

    def _check(self, frames: Tensor, actions: Tensor | None) -> None:
        shape = self.config.input_shape[1:]
        if frames.dim() != 5 or frames.shape[2:] != shape or not frames.is_floating_point():
            raise ValueError(
                f"frames must be (batch, steps, {', '.join(map(str, shape))}) floats in [0, 1], got "
                f"{tuple(frames.shape)} {frames.dtype}"
            )
        if actions is not None and (actions.shape != frames.shape[:2] or actions.is_floating_point()):
            raise ValueError(
                f"actions must be integers {tuple(frames.shape[:2])}, one a frame, got {tuple(actions.shape)} "
                f"{actions.dtype}"
            )


def wide(x: Tensor) -> Tensor:
    return x.to(compute_dtype(x))
