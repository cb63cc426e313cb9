r"""CMD: a clip as one frame of what it shows and few numbers of how it moves.

Paper: Yu et al., "Efficient Video Diffusion Models via Content-Frame Motion-Latent Decomposition", arXiv 2403.14148,
with the sizes and tensor names of the authors' code (NVlabs/CMD): ``cmd_64`` is its autoencoder of 16 frames of 64 x 64
pixels. Its rotary embeddings are built there and never applied, so that frames are a set to it: ``positions`` adds
fixed vectors of places and times.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import require_positive, require_ranges
from zoo.generative.adaptive import Attention
from zoo.generative.diffusion import waves
from zoo.generative.dit import grid_waves
from zoo.layers import recompute
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class CMDConfig:
    """Options of CMD's autoencoder."""

    frames: int = 16
    """Of a clip."""
    img_size: int | tuple[int, int] = 64
    """Side, or (height, width), in pixels."""
    in_chans: int = 3
    """Channels of a frame."""
    patch_size: int = 2
    """Side of a patch in pixels."""
    dim: int = 384
    """Width."""
    depth: int = 8
    """Layers of the encoder, and of the decoder."""
    num_heads: int = 8
    """Heads of the attention."""
    motion_dim: int = 8
    """Numbers of the motion at a time and a row or column of patches."""
    positions: bool = False
    """Layers know places and times; otherwise a clip's frames are a set."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Mean of each channel that frames are normalised by."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Standard deviation of each channel that frames are normalised by."""

    def __post_init__(self):
        require_positive(self, "frames", "in_chans", "patch_size", "dim", "depth", "num_heads", "motion_dim")
        require_ranges(self)
        if self.dim % self.num_heads or self.dim % 4:
            raise ValueError(f"num_heads and 4 must divide dim, got {self.num_heads} and {self.dim}")
        if any(side < 1 or side % self.patch_size for side in self.image_shape):
            raise ValueError(f"img_size must be a multiple of patch_size {self.patch_size}, got {self.img_size!r}")

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else tuple(self.img_size)  # type: ignore[return-value]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of a clip: (channels, frames, height, width)."""
        return (self.in_chans, self.frames, *self.image_shape)

    @property
    def patches(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.image_shape
        return height // self.patch_size, width // self.patch_size

    @property
    def motion_shape(self) -> tuple[int, int, int]:
        """(motion_dim, frames, columns and rows)."""
        return self.motion_dim, self.frames, sum(self.patches)

    @property
    def latent_size(self) -> int:
        """Numbers of a clip's frame and motion."""
        height, width = self.image_shape
        channels, frames, lines = self.motion_shape
        return self.in_chans * height * width + channels * frames * lines


class Layer(nn.ModuleList):
    r"""Attention over time at a place, within a frame, and a gated MLP, each behind a norm and added.

    .. math:: x = x + \mathrm{time}(x), \quad x = x + \mathrm{space}(x), \quad
        x = x + W_2 (a \odot \mathrm{gelu}(b)), \; [a, b] = W_1 \mathrm{norm}(x)
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__(
            Normed(dim, part) for part in (Attention(dim, num_heads), Attention(dim, num_heads), GatedMLP(dim))
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, frames, places, dim) -> the same shape."""
        clips, frames, places, _ = x.shape
        time, space, mlp = self
        rows = x.transpose(1, 2).flatten(0, 1)
        x = (rows + time(rows)).unflatten(0, (clips, places)).transpose(1, 2)
        rows = x.flatten(0, 1)
        x = (rows + space(rows)).unflatten(0, (clips, frames))
        return x + mlp(x)


class Normed(nn.Module):
    """fn(norm(x))."""

    def __init__(self, dim: int, fn: nn.Module):
        super().__init__()
        self.fn, self.norm = fn, nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> the same shape."""
        return self.fn(self.norm(x))


class GatedMLP(nn.Module):
    """A gated hidden layer of four times the width."""

    def __init__(self, dim: int):
        super().__init__()
        self.net = nn.ModuleList([nn.Linear(dim, 8 * dim), nn.Identity(), nn.Identity(), nn.Linear(4 * dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> the same shape."""
        a, b = self.net[0](x).chunk(2, -1)
        return self.net[3](a * F.gelu(b))


class Layers(nn.Module):
    """Layers one after another; the encoder's have an embedding of patches before."""

    def __init__(self, config: CMDConfig, embeds: bool):
        super().__init__()
        if embeds:
            self.to_patch_embedding = nn.Linear(config.in_chans * config.patch_size**2, config.dim)
        self.layers = nn.ModuleList(Layer(config.dim, config.num_heads) for _ in range(config.depth))


class CMD(nn.Module):
    r"""Clips to a frame and a motion, and back: ``encode``, ``decode``, and both in ``forward``.

    The content frame is a mean over the frames with weights of each pixel and channel; the motion are the encoder's
    outputs h, averaged over rows and over columns of patches,

    .. math:: c = \sum_t w_t \odot x_t, \quad w = \mathrm{softmax}_t(\mathrm{logits}(h)) \\
        m = \tanh [ W_x \, \mathrm{mean}_{rows} h, \; W_y \, \mathrm{mean}_{columns} h ]

    Attributes:
        config, grad_checkpointing: whether layers are recomputed in the backward pass.
    """

    places: Tensor

    def __init__(self, config: CMDConfig):
        super().__init__()
        self.config = c = config
        self.grad_checkpointing = False
        self.encoder, self.decoder = Layers(c, embeds=True), Layers(c, embeds=False)
        self.to_output, self.to_logit = (
            nn.ModuleList([nn.Identity(), nn.ConvTranspose2d(c.dim, c.in_chans, c.patch_size, c.patch_size)])
            for _ in range(2)
        )
        self.pre_xt, self.pre_yt = (nn.Conv2d(c.dim, c.motion_dim, 1) for _ in range(2))
        self.post_xt, self.post_yt = (nn.Conv2d(c.motion_dim, c.dim, 1) for _ in range(2))
        self.to_patch_embedding_xy = nn.Linear(c.in_chans * c.patch_size**2, c.dim)
        places = grid_waves(*c.patches, c.dim) + waves(torch.arange(float(c.frames)), c.dim)[:, None]
        self.register_buffer("places", places * float(c.positions), persistent=False)  # (frames, places, dim)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (B, C, frames, H, W), normalised, to what their frame and motion decode to.

        Raises:
            ValueError: for clips of another shape, or integers.
        """
        return self.decode(*self.encode(clips))

    def encode(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Clips (B, C, frames, H, W) -> motion (B, motion_dim, frames, columns + rows) in (-1, 1), and content frame
        (B, C, H, W) between the least and the largest of each pixel.

        Raises:
            ValueError: as of ``forward``.
        """
        c = self.config
        if tuple(clips.shape[1:]) != c.input_shape or not clips.is_floating_point():
            raise ValueError(
                f"clips must be floating point of shape (batch, {', '.join(map(str, c.input_shape))}), got "
                f"{clips.dtype} {tuple(clips.shape)}"
            )
        frames = clips.transpose(1, 2).flatten(0, 1)
        h = self.encoder.to_patch_embedding(self._patched(frames)).unflatten(0, (len(clips), c.frames))
        h = self._through(self.encoder, h)  # (B, frames, places, dim)
        weights = self._pixels(self.to_logit, h).softmax(2)
        content = (clips * weights).sum(2)
        h = h.unflatten(2, c.patches).movedim(-1, 1)  # (B, dim, frames, rows, columns)
        motion = torch.cat([self.pre_xt(h.mean(3)), self.pre_yt(h.mean(4))], -1).tanh()
        return motion, content

    def decode(self, motion: Tensor, content: Tensor) -> Tensor:
        """Motion (B, motion_dim, frames, columns + rows) and content (B, C, H, W) -> clips (B, C, frames, H, W).

        Raises:
            ValueError: for either of another shape.
        """
        c = self.config
        wanted = c.motion_shape, (c.in_chans, *c.image_shape)
        if (tuple(motion.shape[1:]), tuple(content.shape[1:])) != wanted:
            raise ValueError(
                f"motion and content must have shapes (batch, ...) of {wanted[0]} and {wanted[1]}, got "
                f"{tuple(motion.shape)} and {tuple(content.shape)}"
            )
        rows, columns = c.patches
        across, down = motion.split([columns, rows], -1)
        x = self.to_patch_embedding_xy(self._patched(content)).mT.unflatten(2, c.patches)[:, :, None]
        x = x + self.post_yt(down)[..., None] + self.post_xt(across)[..., None, :]  # (B, dim, frames, rows, columns)
        x = self._through(self.decoder, x.flatten(3).permute(0, 2, 3, 1))
        mean, std = (x.new_tensor(part).view(-1, 1, 1, 1) for part in (c.mean, c.std))
        return (self._pixels(self.to_output, x).sigmoid() - mean) / std

    def no_weight_decay(self) -> set[str]:
        """Nothing besides biases and norms."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each layer in the backward pass instead of storing its activations."""
        self.grad_checkpointing = enable

    def _through(self, part: Layers, x: Tensor) -> Tensor:
        x = x + self.places.to(x)
        for layer in part.layers:
            x = recompute(layer, x) if self.grad_checkpointing and self.training else layer(x)
        return x

    def _patched(self, frames: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, places, numbers of a patch: rows, columns, channels)."""
        side, (rows, columns) = self.config.patch_size, self.config.patches
        x = frames.unflatten(3, (columns, side)).unflatten(2, (rows, side))  # (B, C, rows, side, columns, side)
        return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def _pixels(self, head: nn.ModuleList, x: Tensor) -> Tensor:
        """(B, frames, places, dim) -> (B, C, frames, H, W)."""
        maps = x.flatten(0, 1).mT.unflatten(2, self.config.patches)
        return head[1](maps).unflatten(0, x.shape[:2]).transpose(1, 2)


_register = partial(
    register_model, CMD, task="video-autoencoding", family="cmd",
    paper=Paper(
        "Efficient Video Diffusion Models via Content-Frame Motion-Latent Decomposition", "2403.14148", 2024
    ),
)  # fmt: skip


@_register()
def cmd_nano():
    return CMDConfig(
        frames=8, img_size=16, in_chans=1, patch_size=4, dim=48, depth=2, num_heads=4, motion_dim=4, positions=True,
        mean=(0.106,), std=(0.251,),
    )  # fmt: skip


@_register()
def cmd_64():
    return CMDConfig()
