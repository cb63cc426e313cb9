r"""CMD's diffusion of motions, given the frame of what a clip shows.

Paper: Yu et al., "Efficient Video Diffusion Models via Content-Frame Motion-Latent Decomposition", arXiv 2403.14148.
Names and sizes S to XL are the authors' (NVlabs/CMD), less the second half of the outputs, the variances of their
discrete diffusion; the path is that of all diffusion models here. Content frames are images, which any model of images
makes.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import require_positive
from zoo.generative.adaptive import AdaptiveBlock, AdaptiveHead
from zoo.generative.cmd import CMD
from zoo.generative.diffusion import DiffusionModel, waves
from zoo.generative.dit import TIME_SCALE, TIME_WAVES, DiTConfig, grid_waves
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class MotionDiTConfig(DiTConfig):
    """Options of a diffusion transformer of motions; ``img_size`` is (frames, columns and rows) of the motion."""

    img_size: int | tuple[int, int] = (16, 64)
    """(frames, columns and rows of patches)."""
    in_chans: int = 8
    """Numbers of the motion at a time and a row or column."""
    num_classes: int = 0
    """None: the content frame says what moves."""
    content_shape: tuple[int, int, int] = (3, 64, 64)
    """(channels, height, width) of the content frame."""
    content_patch: int = 4
    """Side of its patches in pixels."""
    tokenizer: str = "cmd_64"
    """Name of the model whose motions these are."""
    mean: tuple[float, ...] = (0.0,) * 8
    """Mean of each number that motions are normalised by."""
    std: tuple[float, ...] = (0.5,) * 8
    """Standard deviation of each number that motions are normalised by."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "content_patch")
        if min(self.content_shape) < 1 or any(side % self.content_patch for side in self.content_shape[1:]):
            raise ValueError(
                f"content_shape must be channels and multiples of content_patch {self.content_patch}, got "
                f"{self.content_shape}"
            )


class MotionDiT(DiffusionModel):
    r"""Patches of the noisy motion and of the content frame side by side; the velocities of the motion's.

    .. math:: u = \mathrm{head}(\mathrm{blocks}([E_m m, \; E_c c], t))_m
    """

    config: MotionDiTConfig
    unit = "motions"

    def __init__(self, config: MotionDiTConfig):
        super().__init__(config)
        c, side = config, config.patch_size
        self.x_embedder = nn.Conv2d(c.in_chans, c.dim, side, side)
        self.keyframe_embedder = nn.Conv2d(c.content_shape[0], c.dim, c.content_patch, c.content_patch)
        self.time = nn.Sequential(nn.Linear(TIME_WAVES, c.dim), nn.SiLU(), nn.Linear(c.dim, c.dim))
        self.blocks = nn.ModuleList(AdaptiveBlock(c.dim, c.num_heads, c.mlp_ratio) for _ in range(c.depth))
        self.head = AdaptiveHead(c.dim, side * side * c.in_chans)
        grids = ((c.image_shape, side), (c.content_shape[1:], c.content_patch))
        for name, ((height, width), patch) in zip(("positions", "content_positions"), grids, strict=True):
            self.register_buffer(name, grid_waves(height // patch, width // patch, c.dim), persistent=False)

    def forward(
        self, x: Tensor, t: Tensor | None = None, classes: Tensor | None = None, *, content: Tensor | None = None
    ) -> Tensor:
        """Noisy motions (B, in_chans, frames, columns + rows) -> their velocities.

        Args:
            t: (B,) times from 0 to 1; 0 where None.
            classes: there are none.
            content: (B, C, H, W), the frames of what moves.

        Raises:
            ValueError: without content, or for either of another shape.
        """
        wanted = (len(x), *self.config.content_shape)
        if content is None or tuple(content.shape) != wanted:
            found = None if content is None else tuple(content.shape)
            raise ValueError(f"motions need the content frames of their clips, of shape {wanted}, got {found}")
        t = x.new_zeros(len(x)) if t is None else t
        return self.moving(x, t.to(x.dtype), content)

    def velocity(self, x: Tensor, t: Tensor, classes: Tensor) -> Tensor:
        """Not without content: ``moving`` has it."""
        raise ValueError("motions need the content frames of their clips: call the model with content")

    def moving(self, x: Tensor, t: Tensor, content: Tensor) -> Tensor:
        """x (B, in_chans, frames, columns + rows), t (B,), content (B, C, H, W) -> the shape of x."""
        motion = self.x_embedder(x).flatten(2).mT + self.positions.to(x.dtype)
        frame = self.keyframe_embedder(content).flatten(2).mT + self.content_positions.to(x.dtype)
        c = self.time(waves(TIME_SCALE * t, TIME_WAVES))
        tokens = torch.cat([motion, frame], 1)
        for block in self.blocks:
            tokens = self._run(block, tokens, c)
        side = self.config.patch_size
        made = self.head(tokens[:, : motion.shape[1]], c)
        return F.fold(made.mT, self.config.image_shape, side, stride=side)

    def errors(
        self, images: Tensor, noise: Tensor, t: Tensor, classes: Tensor | None = None, content: Tensor | None = None
    ) -> Tensor:
        """Mean square (B,) of the velocity's difference from the path's, of motions and noise."""
        x, velocity = self.path.at(images, noise, t.to(images.dtype))
        return (self(x, t, content=content) - velocity).square().flatten(1).mean(1)

    @torch.no_grad()
    def animate(
        self,
        autoencoder: CMD,
        content: Tensor,
        *,
        steps: int = 20,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Clips (B, C, frames, H, W) of content frames (B, C, H, W), with motions that are drawn, in eval mode.

        Args:
            autoencoder: whose motions these are.
            steps, temperature, generator: as of ``sample``.

        Raises:
            ValueError: for less than one step, a negative temperature, or content of another shape.
        """
        if steps < 1 or temperature < 0:
            raise ValueError(f"steps must be at least 1 and temperature at least 0, got {steps} and {temperature}")
        shape = (len(content), *self.config.input_shape)
        x = temperature * torch.randn(shape, generator=generator, device=content.device, dtype=content.dtype)
        modes = [(model, model.training) for model in (self, autoencoder)]
        try:
            for model, _ in modes:
                model.eval()
            for step in range(steps):
                x = x - self(x, x.new_full((len(x),), 1 - step / steps), content=content) / steps
            return autoencoder.decode(self.motion(x), content)
        finally:
            for model, mode in modes:
                model.train(mode)

    def normalised(self, motion: Tensor) -> Tensor:
        """Motions of the autoencoder as the model reads them."""
        mean, std = (motion.new_tensor(part)[:, None, None] for part in (self.config.mean, self.config.std))
        return (motion - mean) / std

    def motion(self, x: Tensor) -> Tensor:
        """The inverse of ``normalised``, within (-1, 1)."""
        mean, std = (x.new_tensor(part)[:, None, None] for part in (self.config.mean, self.config.std))
        return (x * std + mean).clamp(-1, 1)


_register = partial(
    register_model, MotionDiT, task="video-diffusion", family="cmd",
    paper=Paper(
        "Efficient Video Diffusion Models via Content-Frame Motion-Latent Decomposition", "2403.14148", 2024
    ),
)  # fmt: skip


@_register()
def cmd_motion_shapes():
    return MotionDiTConfig(
        img_size=(8, 8), in_chans=4, content_shape=(1, 16, 16), dim=64, depth=3, num_heads=4, tokenizer="cmd_nano",
        mean=(0.11, 0.2, 0.03, 0.06), std=(0.41, 0.43, 0.48, 0.41),
    )  # fmt: skip


@_register()
def cmd_motion_s_2():
    return MotionDiTConfig(dim=384, depth=12, num_heads=6)


@_register()
def cmd_motion_b_2():
    return MotionDiTConfig(dim=768, depth=12, num_heads=12)


@_register()
def cmd_motion_l_2():
    return MotionDiTConfig(dim=1024, depth=24, num_heads=16)


@_register()
def cmd_motion_xl_2():
    return MotionDiTConfig(dim=1152, depth=28, num_heads=16)
