"""Axial Transformer: an autoregressive model of images, channel by channel, row by row, pixel by pixel.

Paper: Ho et al., "Axial Attention in Multidimensional Transformers", arXiv 1912.12180. Sizes, initialisation and the
order of the layers are those of the authors' code (google-research/axial, ``Transformer3d`` and its ImageNet
configurations). Where the house differs: one projection gives queries, keys and values, and sampling keeps the keys and
values of what it has drawn, so that a sample costs about one forward pass; the authors repeat the outer decoder for
every row and the row for every pixel, with the same result.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import require_positive, require_ranges
from zoo.kernels.dispatch import compute_dtype
from zoo.layers import recompute
from zoo.layers.attention import AxialAttention, KeyValueState, shift_down, shift_right
from zoo.layers.mlp import QuickGELU
from zoo.registry import Paper, register_model

States = list[KeyValueState | None]
COLUMN, ROW = 1, 2  # the axis of (B, H, W, dim) along which attention down a column, or along a row, runs
TRUNCATED_STD = 0.87962566  # standard deviation of a unit normal cut off at 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class AxialConfig:
    """Options of the Axial Transformer."""

    img_size: int | tuple[int, int]
    """Side, or (height, width), in pixels."""
    in_chans: int = 3
    """Image channels."""
    num_levels: int = 256
    """Values of a channel of a pixel."""
    dim: int
    """Model width."""
    num_heads: int = 16
    """Heads of the attention."""
    mlp_ratio: float = 1.0
    """Hidden width of the MLP over dim."""
    exterior_depth: int = 8
    """Blocks that read the earlier channels, an even number."""
    outer_depth: int = 8
    """Blocks that read the rows above, an even number."""
    inner_depth: int = 8
    """Blocks that read the row itself."""
    drop_rate: float = 0.0
    """Dropout after attention and MLP."""
    embedding_scale: float = 5.0
    """Size of the initial embeddings, whose standard deviation is this over sqrt(dim)."""
    residual_scale: float = 1e-10
    """Initial variance of the branches' outputs."""
    logits_scale: float = 1e-10
    """Initial variance of the logits."""
    norm_eps: float = 1e-5
    """Added to the variance in the norms."""

    def __post_init__(self):
        require_positive(self, "in_chans", "dim", "num_heads", "outer_depth", "inner_depth")
        require_ranges(self)
        if len(self.image_shape) != 2 or not all(isinstance(side, int) and side > 0 for side in self.image_shape):
            raise ValueError(f"img_size must be a positive integer, or a height and a width, got {self.img_size!r}")
        if self.num_levels < 2:
            raise ValueError(f"num_levels must be at least 2, got {self.num_levels}")
        if self.exterior_depth < 0 or self.exterior_depth % 2 or self.outer_depth % 2:
            raise ValueError(
                "exterior_depth and outer_depth must be even, as row and column attention alternate: "
                f"got {self.exterior_depth} and {self.outer_depth}"
            )

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else tuple(self.img_size)  # type: ignore[return-value]


class AxialBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with dropout after each branch."""

    def __init__(self, config: AxialConfig, axis: int, masked: bool):
        super().__init__()
        c, hidden_dim = config, int(config.dim * config.mlp_ratio)
        self.norm1 = nn.LayerNorm(c.dim, c.norm_eps)
        self.attn = AxialAttention(c.dim, c.num_heads, axis, masked)
        self.norm2 = nn.LayerNorm(c.dim, c.norm_eps)
        self.mlp = nn.Sequential(nn.Linear(c.dim, hidden_dim), QuickGELU(), nn.Linear(hidden_dim, c.dim))
        self.drop = nn.Dropout(c.drop_rate)

    def forward(self, x: Tensor, state: KeyValueState | None = None) -> Tensor:
        """x (B, H, W, dim) -> the same shape."""
        x = x + self.drop(self.attn(self.norm1(x), state))
        return x + self.drop(self.mlp(self.norm2(x)))


class GridPositions(nn.Module):
    """A learned vector for each row plus one for each column: () -> (H, W, dim)."""

    def __init__(self, height: int, width: int, dim: int):
        super().__init__()
        self.rows = nn.Parameter(torch.empty(height, dim))
        self.columns = nn.Parameter(torch.empty(width, dim))

    def forward(self) -> Tensor:
        """() -> (H, W, dim)."""
        return self.rows[:, None] + self.columns


class AxialTransformer(nn.Module):
    r"""p(image) = prod p(level | earlier channels, rows above, pixels to the left), each factor a softmax over levels.

        given = exterior(earlier channels)                          unmasked rows and columns
        above = shift_down(outer(embed(x) + given))                 unmasked rows, masked columns
        logits = head(inner(shift_right(embed(x)) + above + given)) masked rows

    with position tables added to the inputs of all three. One evaluation gives all factors; ``sample`` draws from them.

    Attributes:
        config, grad_checkpointing: whether blocks are recomputed in the backward pass.

    Paper: arXiv 1912.12180, section 3.
    """

    def __init__(self, config: AxialConfig):
        super().__init__()
        self.config = c = config
        self.grad_checkpointing = False
        self.exterior_conv = nn.Conv2d(2 * c.in_chans, c.dim, 3, padding=1)
        self.exterior_positions = GridPositions(*c.image_shape, c.dim)
        self.exterior = _alternating(c, c.exterior_depth, columns_masked=False)
        self.embedding = nn.Embedding(c.num_levels, c.dim)
        self.positions = GridPositions(*c.image_shape, c.dim)
        self.outer = _alternating(c, c.outer_depth, columns_masked=True)
        self.inner = nn.ModuleList(AxialBlock(c, ROW, masked=True) for _ in range(c.inner_depth))
        self.norm = nn.LayerNorm(c.dim, c.norm_eps)
        self.head = nn.Linear(c.dim, c.num_levels)
        self.init_weights()

    def init_weights(self) -> None:
        """Normal embeddings, truncated normals of variance scale / fan-in, zero biases: with the paper's scales every
        block starts as the identity and the loss at log(num_levels)."""
        c = self.config
        for table in (self.embedding, self.positions, self.exterior_positions):
            for parameter in table.parameters():
                nn.init.normal_(parameter, std=c.embedding_scale / math.sqrt(c.dim))
        scales: dict[nn.Module, float] = {self.head: c.logits_scale}
        for block in self.modules():
            if isinstance(block, AxialBlock):
                scales |= {block.attn.proj: c.residual_scale, block.mlp[2]: c.residual_scale}
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                std = math.sqrt(scales.get(module, 1.0) / module.weight[0].numel()) / TRUNCATED_STD
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor, labels: Tensor | None = None, channels: Tensor | None = None) -> Tensor:
        """Logits, or the loss when labels are given.

        Args:
            images: (B, C, H, W) int64 in [0, num_levels).
            labels: (B, C, H, W) int64, the images themselves; -100 is not scored.
            channels: (B,) int64: only this channel of each image, at 1 / C of the cost, as the paper trains.

        Returns:
            Logits (B, C, H, W, num_levels), with C = 1 where channels are given; or the mean loss in nats a scored
            dimension.

        Raises:
            ValueError: for images, labels or channels of the wrong shape, dtype or range.
        """
        self._check(images, labels, channels)
        batch, in_chans = images.shape[:2]
        if channels is None:
            every = torch.arange(in_chans, device=images.device).repeat(batch)
            logits = self.channel_logits(images.repeat_interleave(in_chans, 0), every).unflatten(0, (batch, in_chans))
        else:
            logits = self.channel_logits(images, channels)[:, None]
            labels = None if labels is None else _channel(labels, channels)[:, None]
        return logits if labels is None else _nats(logits, labels, "mean")

    def channel_logits(self, images: Tensor, channels: Tensor) -> Tensor:
        """Images (B, C, H, W) and a channel (B,) of each -> logits (B, H, W, num_levels) of that channel."""
        given = self.positions() + self.earlier_channels(images, channels)
        x = self.embedding(_channel(images, channels))  # (B, H, W, dim)
        above = shift_down(self._through(self.outer, x + given))
        return self.head(self.norm(self._through(self.inner, shift_right(x) + above + given)))

    def earlier_channels(self, images: Tensor, channels: Tensor) -> Tensor:
        """What the channels before ``channels`` (B,) tell, and which one it is: (B, C, H, W) -> (B, H, W, dim)."""
        index, channel = torch.arange(images.shape[1], device=images.device).view(-1, 1, 1), channels.view(-1, 1, 1, 1)
        positions = self.exterior_positions()
        dtype = positions.dtype
        known = images.to(dtype) * (index < channel) / (self.config.num_levels - 1)
        planes = torch.cat([known, (index == channel).to(dtype).expand_as(known)], dim=1)
        x = self.exterior_conv(planes).permute(0, 2, 3, 1) + positions
        return self._through(self.exterior, x)

    def bits_per_dim(self, images: Tensor) -> Tensor:
        """-log2 p(image) over the number of its dimensions, (B, C, H, W) int64 -> (B,)."""
        return _nats(self(images), images, "none").flatten(1).mean(1) / math.log(2)

    @torch.no_grad()
    def sample(
        self, batch_size: int = 1, *, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw images (batch_size, C, H, W) int64, in eval mode.

        Args:
            temperature: divides the logits; 0 takes the likeliest level.
            generator: source of randomness.

        Raises:
            ValueError: for a negative temperature or a batch_size below 1.
        """
        if batch_size < 1 or temperature < 0:
            raise ValueError(
                f"batch_size must be at least 1 and temperature at least 0, got {batch_size} and {temperature}"
            )

        def draw(logits: Tensor) -> Tensor:
            if temperature == 0:
                return logits.argmax(-1)
            return torch.multinomial((logits.float() / temperature).softmax(-1), 1, generator=generator)[:, 0]

        training = self.training
        self.eval()
        try:
            return self.decode(batch_size, draw)
        finally:
            self.train(training)

    def decode(self, batch_size: int, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """Images (batch_size, C, H, W) whose levels are chosen in order.

        Semi-parallel: the exterior runs once a channel, the outer decoder once a row, the inner decoder once a pixel.

        Args:
            choose: logits (B, num_levels) of the next dimension -> its levels (B,) int64.
        """
        c, positions = self.config, self.positions()
        device = positions.device
        height, width = c.image_shape
        images = torch.zeros(batch_size, c.in_chans, height, width, dtype=torch.int64, device=device)
        for channel in range(c.in_chans):
            channels = torch.full((batch_size,), channel, device=device)
            given = positions + self.earlier_channels(images, channels)
            outer = _states(self.outer, batch_size * width, height, given)
            above = torch.zeros_like(given[:, :1])
            for row in range(height):
                inner = _states(self.inner, batch_size, width, given)
                left = torch.zeros_like(above[:, :, :1])
                for column in range(width):
                    x = left + (above + given[:, row : row + 1])[:, :, column : column + 1]
                    level = choose(self.head(self.norm(self._through(self.inner, x, inner)))[:, 0, 0])
                    images[:, channel, row, column] = level
                    left = self.embedding(level)[:, None, None]
                x = self.embedding(images[:, channel, row : row + 1])
                above = self._through(self.outer, x + given[:, row : row + 1], outer)
        return images

    def no_weight_decay(self) -> set[str]:
        """The embeddings of levels and positions."""
        tables = ("embedding", "positions", "exterior_positions")
        return {name for name, _ in self.named_parameters() if name.split(".")[0] in tables}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of storing its activations."""
        self.grad_checkpointing = enable

    def _through(self, blocks: nn.ModuleList, x: Tensor, states: States | None = None) -> Tensor:
        for index, block in enumerate(blocks):
            if self.grad_checkpointing and self.training and states is None:
                x = recompute(block, x)
            else:
                x = block(x, None if states is None else states[index])
        return x

    def _check(self, images: Tensor, labels: Tensor | None, channels: Tensor | None) -> None:
        c = self.config
        wanted = (c.in_chans, *c.image_shape)
        if images.dim() != 4 or tuple(images.shape[1:]) != wanted:
            raise ValueError(
                f"images must have shape (batch, {', '.join(map(str, wanted))}), got {tuple(images.shape)}: resize "
                "them, or create the model with img_size=... and in_chans=..."
            )
        if images.dtype != torch.int64:
            raise ValueError(f"images must be int64 levels in [0, {c.num_levels}), got {images.dtype}: use .long()")
        if labels is not None and labels.shape != images.shape:
            raise ValueError(
                f"labels must have the shape of the images {tuple(images.shape)}, got {tuple(labels.shape)}"
            )
        if channels is not None and channels.shape != images.shape[:1]:
            raise ValueError(
                f"channels must have shape ({images.shape[0]},), one for each image, got {tuple(channels.shape)}"
            )
        if torch.compiler.is_compiling() or images.device.type != "cpu":  # a device would have to be waited for
            return
        if images.numel() and not 0 <= int(images.min()) <= int(images.max()) < c.num_levels:
            raise ValueError(
                f"images must be in [0, {c.num_levels}), got values from {int(images.min())} to {int(images.max())}"
            )


def _alternating(config: AxialConfig, depth: int, columns_masked: bool) -> nn.ModuleList:
    """Blocks of unmasked attention along rows and attention down columns, in turns."""
    pairs = ((ROW, False), (COLUMN, columns_masked))
    return nn.ModuleList(AxialBlock(config, *pairs[index % 2]) for index in range(depth))


def _nats(logits: Tensor, images: Tensor, reduction: str) -> Tensor:
    """-log p of levels (B, C, H, W) under logits (B, C, H, W, num_levels), in float32 or wider."""
    wide = compute_dtype(logits)
    return F.cross_entropy(logits.movedim(-1, 1).to(wide), images, reduction=reduction)


def _channel(images: Tensor, channels: Tensor) -> Tensor:
    """Channel ``channels[i]`` of image i: (B, C, H, W) -> (B, H, W)."""
    return images[torch.arange(images.shape[0], device=images.device), channels]


def _states(blocks: nn.ModuleList, num_lines: int, length: int, like: Tensor) -> States:
    """Caches of the masked blocks; an unmasked block sees the whole of its line at once."""
    attentions = cast("list[AxialAttention]", [block.attn for block in blocks])
    return [attn.init_state(num_lines, length, like) if attn.masked else None for attn in attentions]


_register = partial(
    register_model,
    AxialTransformer,
    task="image-generation",
    family="axial",
    paper=Paper("Axial Attention in Multidimensional Transformers", "1912.12180", 2019),
)


@_register()
def axial_nano():
    return AxialConfig(
        img_size=8, in_chans=1, num_levels=17, dim=64, num_heads=4, exterior_depth=0, outer_depth=4, inner_depth=4
    )


@_register()
def axial_imagenet32():
    return AxialConfig(img_size=32, dim=1536, drop_rate=0.04)


@_register()
def axial_imagenet64():
    return AxialConfig(img_size=64, dim=2048)
