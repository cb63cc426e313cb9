"""Environments of Gymnasium, as small pictures that are played step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.registry import nearest

ATARI = "ALE/"


class Step(NamedTuple):
    """What follows an action.

    Attributes:
        frame: uint8 (C, size, size).
        reward: of all repetitions.
        ended: the episode is lost or won, or a life is lost.
        over: nothing more can be done, also where time is up.
    """

    frame: Tensor
    reward: float
    ended: bool
    over: bool


class Environment:
    """An environment with actions to choose from, seen as frames (in_chans, size, size) of bytes.

    CartPole is drawn here, from its state; others give images, or are rendered by Gymnasium, which may ask for pygame.
    Games of the ALE show the brighter of their last two frames, each pixel, and a lost life ends an episode's value.

    Args:
        name: as Gymnasium knows it, such as "CartPole-v1" or "ALE/Pong-v5".
        size: height and width of a frame.
        in_chans: 1 for grey, 3 for colours.
        repeat: steps that an action is repeated for.
        options: of ``gymnasium.make``.

    Raises:
        ValueError: for an unknown name, actions that are not numbered, or another number of channels.
        ModuleNotFoundError: without Gymnasium, or ale-py for the ALE.
    """

    def __init__(
        self, name: str, size: int, in_chans: int = 1, *, repeat: int = 1, options: dict[str, Any] | None = None
    ):
        import gymnasium  # pyright: ignore[reportMissingImports]

        if in_chans not in (1, 3) or size < 1 or repeat < 1:
            raise ValueError(f"in_chans must be 1 or 3, size and repeat at least 1, got {in_chans}, {size}, {repeat}")
        self.name, self.size, self.in_chans, self.repeat = name, size, in_chans, repeat
        self.atari = name.startswith(ATARI)
        if self.atari:
            import ale_py  # pyright: ignore[reportMissingImports]

            gymnasium.register_envs(ale_py)
        if name not in gymnasium.registry:
            raise ValueError(f"Gymnasium has no environment {name!r}{nearest(name, gymnasium.registry)}")
        self.drawing = DRAWINGS.get(name.partition("-")[0])
        extra = {"repeat_action_probability": 0.0, "frameskip": 1} if self.atari else {}
        mode = None if self.drawing or self.atari else "rgb_array"
        self.env: Any = gymnasium.make(name, render_mode=mode, **extra | (options or {}))
        if not isinstance(self.env.action_space, gymnasium.spaces.Discrete):
            raise ValueError(f"{name} must have numbered actions, got {self.env.action_space}")
        self.num_actions = int(self.env.action_space.n)
        self.lives = 0

    def reset(self, seed: int) -> Tensor:
        """The first frame of the episode that ``seed`` (below 2^31) says."""
        found, info = self.env.reset(seed=seed)
        self.lives = info.get("lives", 0)
        return self._frame([found])

    def step(self, action: int) -> Step:
        """Act, as often as an action is repeated or until the episode is over."""
        reward, seen = 0.0, []
        for _ in range(self.repeat):
            found, part, ended, late, info = self.env.step(action)
            reward += float(part)
            lives = info.get("lives", 0)
            lost, self.lives = lives < self.lives, lives
            seen = [*seen, found][-2 if self.atari else -1 :]
            if ended or late:
                break
        return Step(self._frame(seen), reward, bool(ended or lost), bool(ended or late))

    def _frame(self, seen: list[Any]) -> Tensor:
        if self.drawing is not None:
            pixels = self.drawing(np.asarray(seen[-1], dtype=np.float64), self.size)
            return torch.from_numpy(np.rint(255 * pixels).astype(np.uint8))[None].repeat(self.in_chans, 1, 1)
        image = np.max(np.stack(seen), axis=0) if self.atari else self.env.render()
        pixels = torch.from_numpy(np.array(image, dtype=np.float32)).movedim(-1, 0)
        if self.in_chans == 1:
            pixels = pixels.mean(0, keepdim=True)
        side = (self.size, self.size)
        return F.interpolate(pixels[None], side, mode="bilinear", antialias=True)[0].round().clamp(0, 255).byte()


def cart_pole(state: np.ndarray, size: int) -> np.ndarray:
    """CartPole's place and tilt as an image (size, size) in [0, 1], with smooth edges, so that less than a pixel shows:
    the track from end to end, a cart, and a pole of six tenths of the image."""
    y, x = np.mgrid[0:size, 0:size] + 0.5
    middle, floor = size * (0.5 + state[0] / 5.6), 0.8 * size
    tip = middle + 0.6 * size * np.sin(state[2]), floor - 0.6 * size * np.cos(state[2])
    along = np.clip(((x - middle) * (tip[0] - middle) + (y - floor) * (tip[1] - floor)) / (0.6 * size) ** 2, 0, 1)
    off = np.hypot(x - middle - along * (tip[0] - middle), y - floor - along * (tip[1] - floor))
    pole = np.clip(size / 32 + 0.5 - off, 0, 1)
    inside = np.minimum(size / 8 - np.abs(x - middle), size / 20 - np.abs(y - floor - size / 20))
    return np.maximum(pole, 0.6 * np.clip(inside + 0.5, 0, 1))


DRAWINGS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"CartPole": cart_pole}
