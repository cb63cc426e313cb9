"""What models over patches and a class token share: positions, pooling, images of other sizes."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.layers import PatchEmbed
from zoo.layers.embed import patch_grid
from zoo.layers.positions import resize_positions
from zoo.vision.base import VisionConfig, VisionModel

POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {  # patches (B, N, dim) -> (B, dim)
    "avg": lambda x: x.mean(1),
    "max": lambda x: x.amax(1),
    "avgmax": lambda x: (x.mean(1) + x.amax(1)) / 2,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenConfig(VisionConfig):
    """Options of every model over patches and a class token."""

    global_pool: str = "token"
    """What is classified: the class "token", the "avg", "max" or "avgmax" (their mean) of the patches; "" for features
    that stay tokens (and no classes)."""
    dynamic_img_size: bool = False
    """Take images of any size that patches cover; the positions are resized to their grid."""

    def __post_init__(self):
        super().__post_init__()
        if self.global_pool not in ("token", *POOLINGS, ""):
            known = ", ".join(map(repr, ("token", *POOLINGS)))
            raise ValueError(f"global_pool must be {known}, or '' for no pooling, got {self.global_pool!r}")
        if self.global_pool == "" and self.num_classes > 0:
            raise ValueError(
                f"global_pool '' leaves tokens, which cannot be classified: got num_classes {self.num_classes}"
            )


class TokenModel(VisionModel):
    """Patches with a class token among them, and a table of positions; a family says where the token stands."""

    config: Any
    patch_embed: PatchEmbed
    cls_token: nn.Parameter
    pos_embed: nn.Parameter

    @staticmethod
    @abstractmethod
    def token_place(num_patches: int) -> int:
        """How many patches stand before the class token."""

    def forward_embed(self, x: Tensor) -> Tensor:
        """Patches with the class token among them, plus positions."""
        positions = self.positions(self.grid_of(x))
        x = self.patch_embed(x)
        place = self.token_place(positions.shape[1] - 1)
        return torch.cat([x[:, :place], self.cls_token.expand(x.shape[0], -1, -1), x[:, place:]], dim=1) + positions

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The table (1, N, dim) for the patches of a grid."""
        if grid == self.patch_embed.grid_size:
            return self.pos_embed
        table = resize_positions(self.pos_embed, grid, self.token_place, self.patch_embed.grid_size)
        return table.to(self.pos_embed.dtype)

    def adapt_tensors(self, tensors: Mapping[str, Tensor], known: Any = None) -> dict[str, Tensor]:
        """The position table resized to the grid of this model's patches, the row of the class token apart."""
        if (table := tensors.get("pos_embed")) is None:
            return dict(tensors)
        strides = (getattr(known, "patch_size", 0), getattr(known, "stride", None))
        source = None if known is None else patch_grid(known.image_shape, *strides)
        table = resize_positions(table, self.patch_embed.grid_size, self.token_place, source)
        return {**tensors, "pos_embed": table}

    def grid_of(self, x: Tensor) -> tuple[int, int]:
        """(rows, columns) of the patches of images."""
        if not self.config.dynamic_img_size:
            return self.patch_embed.grid_size
        (patch, _), (stride, _) = self.patch_embed.proj.kernel_size, self.patch_embed.proj.stride
        return patch_grid(x.shape[2:], patch, stride)

    def prefix_tokens(self, x: Tensor) -> Tensor:
        """The class token (B, 1, dim)."""
        place = self.token_place(x.shape[1] - 1)
        return x[:, place : place + 1]

    def patch_tokens(self, x: Tensor) -> Tensor:
        """All tokens but the class token."""
        return self._without(x, self.token_place(x.shape[1] - 1))

    def pool(self, x: Tensor) -> Tensor:
        """What ``global_pool`` names, (B, dim); the tokens themselves for ''."""
        kind = self.config.global_pool
        if kind == "token":
            return self.prefix_tokens(x).squeeze(1)
        return POOLINGS[kind](self.patch_tokens(x)) if kind else x

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier for ``num_classes``, none for 0; ``global_pool`` None keeps the present pooling.

        Raises:
            ValueError: for an unknown pooling, or "" with classes.
        """
        changes = {} if global_pool is None else {"global_pool": global_pool}
        self._replace_head(num_classes=num_classes, **changes)

    @staticmethod
    def _without(x: Tensor, place: int) -> Tensor:
        return x[:, 1:] if place == 0 else torch.cat([x[:, :place], x[:, place + 1 :]], dim=1)

    def _check_shape(self, x: Tensor) -> None:
        if not self.config.dynamic_img_size:
            return super()._check_shape(x)
        if x.dim() != 4 or x.shape[1] != self.config.in_chans:
            raise ValueError(
                f"images must have shape (batch, {self.config.in_chans}, height, width), got {tuple(x.shape)}"
            )
        (patch, _), (stride, _) = self.patch_embed.proj.kernel_size, self.patch_embed.proj.stride
        if any(side < patch or (side - patch) % stride for side in x.shape[2:]):
            raise ValueError(
                f"patches of {patch} pixels at stride {stride} must cover the images exactly, got sides of "
                f"{tuple(x.shape[2:])}: resize or pad them"
            )
