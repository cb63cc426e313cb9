r"""Diffusion in continuous time: images to noise along a path, and back by the velocity that a model predicts.

.. math:: x_t = \alpha(t) x + \sigma(t) \epsilon, \quad u_t = \alpha'(t) x + \sigma'(t) \epsilon

with t from 0 (the image) to 1 (noise). A model learns the mean of u given x_t, whatever the path; from it follow the
means of x and of the noise, and an ordinary differential equation whose solutions have the law of the images.

Papers: Lipman et al., "Flow Matching for Generative Modeling", arXiv 2210.02747; Liu et al., "Flow Straight and Fast",
arXiv 2209.03003 (the straight path).
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoo.config import require_positive, require_ranges
from zoo.generative.classes import wanted
from zoo.kernels.dispatch import compute_dtype
from zoo.layers import recompute


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Options of every diffusion model."""

    img_size: int | tuple[int, int] = 8
    """Side, or (height, width), in pixels."""
    in_chans: int = 1
    """Image channels."""
    num_classes: int = 10
    """Classes that images can be asked for; 0 for none."""
    class_drop_rate: float = 0.1
    """Share of the training images whose class is hidden, for guidance."""
    path: str = "straight"
    """"straight": alpha = 1 - t, sigma = t; "circle": cosine and sine of a quarter turn."""
    mean: tuple[float, ...] = (0.5,)
    """Mean of each channel that images are normalised by."""
    std: tuple[float, ...] = (0.5,)
    """Standard deviation of each channel that images are normalised by."""

    def __post_init__(self):
        require_positive(self, "in_chans")
        require_ranges(self)
        if not isinstance(self.num_classes, int) or self.num_classes < 0:
            raise ValueError(f"num_classes must be an integer of at least 0, got {self.num_classes!r}")
        if self.path not in PATHS:
            raise ValueError(f"path must be one of {', '.join(PATHS)}, got {self.path!r}")
        if len(self.image_shape) != 2 or not all(isinstance(side, int) and side > 0 for side in self.image_shape):
            raise ValueError(f"img_size must be a positive integer, or a height and a width, got {self.img_size!r}")

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else tuple(self.img_size)  # type: ignore[return-value]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of an image: (channels, height, width)."""
        return (self.in_chans, *self.image_shape)


class Path:
    """alpha and sigma, and their slopes, of times t (B, 1, ..., 1); the straight path."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha, sigma."""
        return 1 - t, t

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Their derivatives."""
        return -torch.ones_like(t), torch.ones_like(t)

    def at(self, images: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_t and its velocity (B, C, H, W) each; or of clips, (B, C, T, H, W)."""
        t = t.view(-1, *[1] * (images.dim() - 1))
        (alpha, sigma), (d_alpha, d_sigma) = self.coefficients(t), self.slopes(t)
        return alpha * images + sigma * noise, d_alpha * images + d_sigma * noise

    def ends(self, x: Tensor, velocity: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The image and the noise that x_t and a velocity stand for."""
        t = t.view(-1, *[1] * (x.dim() - 1))
        (alpha, sigma), (d_alpha, d_sigma) = self.coefficients(t), self.slopes(t)
        determinant = alpha * d_sigma - sigma * d_alpha
        return (d_sigma * x - sigma * velocity) / determinant, (alpha * velocity - d_alpha * x) / determinant


class Circle(Path):
    """A quarter turn from the image to the noise, at constant variance."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine."""
        return (math.pi / 2 * t).cos(), (math.pi / 2 * t).sin()

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Their derivatives."""
        alpha, sigma = self.coefficients(t)
        return -math.pi / 2 * sigma, math.pi / 2 * alpha


PATHS = {"straight": Path(), "circle": Circle()}


class Shortcut:
    """What steps of a sampler save; this one nothing. A subclass is its options."""

    def begin(self, model: DiffusionModel, steps: int) -> Shortened:
        """What it remembers of one call, fresh.

        Raises:
            ValueError: for a model that has not what it needs.
        """
        return Shortened()


class Shortened:
    """One call of a sampler.

    Attributes:
        passes: steps in which the model has run.
    """

    passes = 0

    @contextmanager
    def around(self, step: int) -> Iterator[None]:
        """The model runs within."""
        self.passes += 1
        yield

    def leaps(self, step: int, velocity: Tensor) -> bool:
        """Whether the velocity of this step leads to the image at once."""
        return False


class DiffusionModel(nn.Module, ABC):
    """Noisy images and times to velocities. A family writes ``velocity``.

    Attributes:
        config, grad_checkpointing: whether blocks are recomputed in the backward pass; path.
    """

    unit = "images"

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.grad_checkpointing = False
        self.path: Path = PATHS[config.path]

    @abstractmethod
    def velocity(self, x: Tensor, t: Tensor, classes: Tensor) -> Tensor:
        """x (B, C, H, W), t (B,) in x's dtype, classes (B,) with num_classes for none -> (B, C, H, W)."""

    def forward(self, x: Tensor, t: Tensor | None = None, classes: Tensor | None = None) -> Tensor:
        """Noisy images (B, C, H, W) -> their velocities, of the same shape.

        Args:
            t: (B,) times from 0 to 1; 0 where None.
            classes: (B,) int64; none where None. Some are hidden in training.

        Raises:
            ValueError: for images, times or classes of another shape, or integers for images.
        """
        c = self.config
        if tuple(x.shape[1:]) != c.input_shape or not x.is_floating_point():
            raise ValueError(
                f"{self.unit} must be floating point of shape (batch, {', '.join(map(str, c.input_shape))}), "
                f"got {x.dtype} {tuple(x.shape)}"
            )
        t = x.new_zeros(len(x)) if t is None else t
        if t.shape != (len(x),):
            raise ValueError(f"t must have shape ({len(x)},), one for each of the {self.unit}, got {tuple(t.shape)}")
        classes = wanted(classes, x, c.num_classes, c.class_drop_rate if self.training else 0.0)
        return self.velocity(x, t.to(x.dtype), classes)

    def errors(self, images: Tensor, noise: Tensor, t: Tensor, classes: Tensor | None = None) -> Tensor:
        """Mean square (B,) of the predicted velocity's difference from the path's, of images and noise (B, C, H, W)."""
        x, velocity = self.path.at(images, noise, t.to(images.dtype))
        wide = compute_dtype(images)
        return (self(x, t, classes).to(wide) - velocity.to(wide)).square().flatten(1).mean(1)

    @torch.no_grad()
    def sample(
        self,
        batch_size: int = 1,
        *,
        classes: Tensor | None = None,
        steps: int = 20,
        guidance: float = 0.0,
        temperature: float = 1.0,
        shortcut: Shortcut | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw normalised images (batch_size, C, H, W), in eval mode, by Euler's steps from noise.

        Args:
            classes: (batch_size,) int64 of what is wanted; none where None.
            steps: of equal length in t.
            guidance: w of (1 + w) u(given the class) - w u(without).
            temperature: standard deviation of the noise.
            shortcut: what some steps save, such as ``OnDeviceSora`` or ``StepRehash``.
            generator: source of randomness.

        Raises:
            ValueError: for sizes below 1, a negative temperature or guidance, or a shortcut that the model has not.
        """
        if batch_size < 1 or steps < 1 or guidance < 0 or temperature < 0:
            raise ValueError(
                f"batch_size and steps must be at least 1, guidance and temperature at least 0, got {batch_size}, "
                f"{steps}, {guidance}, {temperature}"
            )
        like = next(self.parameters())
        shape = (batch_size, *self.config.input_shape)
        x = temperature * torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)
        run = (shortcut or Shortcut()).begin(self, steps)
        training = self.training
        self.eval()
        try:
            for step in range(steps):
                t = x.new_full((batch_size,), 1 - step / steps)
                with run.around(step):
                    velocity = self.guided(x, t, classes, guidance)
                if run.leaps(step, velocity):
                    return x - (1 - step / steps) * velocity
                x = x - velocity / steps
        finally:
            self.train(training)
        return x

    def guided(self, x: Tensor, t: Tensor, classes: Tensor | None, guidance: float) -> Tensor:
        """The velocity given classes, moved away from that without by ``guidance``."""
        if not guidance or classes is None:
            return self(x, t, classes)
        none = torch.full_like(classes, self.config.num_classes)
        given, free = self(torch.cat([x, x]), torch.cat([t, t]), torch.cat([classes, none])).chunk(2)
        return (1 + guidance) * given - guidance * free

    def no_weight_decay(self) -> set[str]:
        """Embeddings of classes and positions."""
        return {name for name, _ in self.named_parameters() if name.split(".")[0] in ("classes", "pos_embed")}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of storing its activations."""
        self.grad_checkpointing = enable

    def _run(self, block: nn.Module, *args: Tensor) -> Tensor:
        return recompute(block, *args) if self.grad_checkpointing and self.training else block(*args)


def waves(t: Tensor, dim: int, longest: float = 10_000.0) -> Tensor:
    """Cosines and sines of t (B,) at ``dim`` / 2 frequencies from 1 down to nearly 1 / longest: (B, dim)."""
    half = dim // 2
    rates = torch.exp(-math.log(longest) / half * torch.arange(half, device=t.device, dtype=t.dtype))
    angles = t[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], 1)
