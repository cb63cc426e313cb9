"""The contract of what leaves out features of images before a language model reads them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Seen:
    """What an encoder saw of images.

    Attributes:
        features: (I, N, D), of all patches in raster order, behind the class token's where ``class_feature``.
        vision: the encoder.
        stream: the tokens (I, T, D) that entered each of the blocks that were run, and left the last.
        normed: the encoder's last norm is in the features.
        class_feature: the first feature is that of the class token.
    """

    features: Tensor
    vision: Any
    stream: list[Tensor]
    class_feature: bool = False
    normed: bool = True

    @property
    def patches(self) -> Tensor:
        """(I, N, D), without the class token's feature."""
        return self.features[:, int(self.class_feature) :]

    @property
    def num_blocks(self) -> int:
        """Blocks that were run."""
        return len(self.stream) - 1

    def class_attention(self, start: int, end: int) -> Tensor:
        """What the class token of blocks ``start`` to ``end`` (not included) gives to the patches, (blocks, I, N), the
        mean over the heads.

        Raises:
            ValueError: for an encoder without attention and a class token, or no such blocks.
        """
        blocks = self.vision.layer_list()[1]
        if not hasattr(self.vision, "cls_token") or not all(hasattr(b, "attn") and hasattr(b, "norm1") for b in blocks):
            raise ValueError(
                f"the attention of a class token is read, and {type(self.vision).__name__} has none: take a ViT"
            )
        if not 0 <= start < end <= self.num_blocks:
            raise ValueError(f"blocks must be some of the {self.num_blocks} that were run, got {start} to {end}")
        return torch.stack([_class_attention(blocks[i], self.stream[i]) for i in range(start, end)])


def _class_attention(block: Any, x: Tensor) -> Tensor:
    """(I, N) of x (I, 1 + N, D), the class token first."""
    attention = block.attn
    q, k, _ = attention.qkv(block.norm1(x)).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    logits = q[:, :, :1] @ k.mT * q.shape[-1] ** -0.5  # (I, H, 1, 1 + N)
    return logits.softmax(-1)[:, :, 0, 1:].mean(1)


class Reduction(ABC):
    """What is left of the features of an image, before the projector; a method is a frozen dataclass over it.

    One that leaves everything gives the plain model bit for bit.

    Attributes:
        images: consecutive images that are taken together, as the frames of a clip.
        paper: arXiv's number.
    """

    images: int = 1
    paper: ClassVar[str] = ""

    @abstractmethod
    def count(self, features: int) -> int:
        """Features that are left of so many an image."""

    @abstractmethod
    def reduce(self, seen: Seen) -> Tensor:
        """What is left, (I / images, count, D)."""
