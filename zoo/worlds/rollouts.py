"""What was imagined beside what came: errors over the horizon, and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoo.arrays import read_arrays
from zoo.generate.decode import evaluating
from zoo.worlds.drama import Drama, Imagined
from zoo.worlds.environments import Environment
from zoo.worlds.play import AgentPlays, Played, Player, at_random, scaled

if TYPE_CHECKING:
    from PIL.Image import Image


@torch.no_grad()
def horizon_errors(model: Drama, frames: Tensor, actions: Tensor, firsts: Tensor, context: int) -> Tensor:
    """Mean squared errors of imagined frames against those that came, for the 1st, 2nd, ... after a context, with the
    actions that were taken; the likeliest codes.

    Args:
        frames: (B, T, C, H, W) in [0, 1]. actions, firsts: (B, T).
        context: frames that are seen first, below T.

    Returns:
        (T - context,): means over the sequences whose episode still lasts; NaN where none does.
    """
    horizon = frames.shape[1] - context
    found = model.imagine(
        frames[:, :context], actions[:, :context], horizon, moves=actions[:, context:], firsts=firsts[:, :context],
        likely=True,
    )  # fmt: skip
    with evaluating(model):
        errors = (model.decode(found.codes[:, :-1]) - frames[:, context:]).square().flatten(2).mean(2)
    lasting = firsts[:, context:].long().cumsum(1) == 0
    return (errors * lasting).sum(0) / lasting.sum(0)


@torch.no_grad()
def rollout(
    model: Drama, played: Played, context: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Imagined]:
    """Frames (T - context, C, H, W) that a model in evaluation imagines after the first ones of what was played, with
    the same actions; and the rest of what it imagines.

    Raises:
        ValueError: for fewer frames than one more than the context, or frames of another size.
    """
    if not 1 <= context < len(played.frames):
        raise ValueError(
            f"the context must be at least 1 and below the {len(played.frames)} frames that there are, got {context}"
        )
    frames = scaled(model, played.frames)[None]
    actions, firsts = (part[None].to(frames.device) for part in (played.actions, played.firsts))
    found = model.imagine(
        frames[:, :context], actions[:, :context], frames.shape[1] - context, moves=actions[:, context:],
        firsts=firsts[:, :context], generator=generator,
    )  # fmt: skip
    return model.decode(found.codes[:, :-1])[0], found


def beside(played: Played, imagined: Tensor) -> Image:
    """One picture: above the frames that came, those that were seen first among them, below what was imagined."""
    from zoo.generative import picture

    real = played.frames.float() / 255
    seen = len(real) - len(imagined)
    below = torch.cat([torch.full_like(real[:seen], 0.5), imagined.float().cpu()])
    return picture(torch.cat([real, below]), len(real), max(1, 64 // real.shape[-1]))


def environment_of(model: Drama) -> Environment:
    """Where a model learnt.

    Raises:
        ValueError: for a model that does not know.
    """
    c = model.config
    if c.environment is None:
        raise ValueError("the model does not know an environment: train it in one, or create it with environment=NAME")
    return Environment(c.environment, c.img_size, c.in_chans, repeat=c.repeat)


def one_episode(model: Drama, steps: int, seed: int) -> Played:
    """The longest of a few episodes in the model's environment, its first ``steps`` steps: by its agent, or at random.

    Raises:
        ValueError: where all of them are shorter.
    """
    player = Player(environment_of(model), seed)
    generator = torch.Generator().manual_seed(seed)
    chosen = AgentPlays(model, generator) if model.agent is not None else at_random(model.config.num_actions, seed)
    for _ in range(TRIES):
        found = [player.step(chosen)]
        while len(found) < steps and player.actions:
            found.append(player.step(chosen))
        if len(found) == steps:
            return Played(*map(torch.cat, zip(*found, strict=True)))
        while player.actions:
            player.step(chosen)
    raise ValueError(f"none of {TRIES} episodes lasts for {steps} steps: ask for fewer")


TRIES = 32  # episodes to find a long one


def read_played(path: str | Path, model: Drama) -> Played:
    """Frames and actions of a file ``.npz``: "frames" (T, C, H, W) or (T, H, W), bytes, and "actions" (T,).

    Raises:
        ValueError: for a file without them, frames of another size or type, or actions that there are not.
    """
    c = model.config
    content = read_arrays(path, ("frames", "actions"))
    frames, actions = torch.from_numpy(content["frames"]), torch.from_numpy(content["actions"])
    frames = frames[:, None] if frames.dim() == 3 else frames
    if frames.shape[1:] != c.input_shape[1:] or frames.dtype != torch.uint8:
        raise ValueError(
            f"frames in {path} must be bytes (T, {', '.join(map(str, c.input_shape[1:]))}), as the model reads, got "
            f"{tuple(frames.shape)} {frames.dtype}"
        )
    if actions.shape != frames.shape[:1] or actions.is_floating_point():
        raise ValueError(f"actions in {path} must be {len(frames)} integers, one a frame, got {tuple(actions.shape)}")
    if len(actions) and not 0 <= actions.min() <= actions.max() < c.num_actions:
        raise ValueError(f"actions in {path} must be from 0 to {c.num_actions - 1}")
    nothing = torch.zeros(len(frames))
    return Played(frames, actions.long(), nothing, nothing.bool(), nothing.bool())
