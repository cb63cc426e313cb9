"""From images to tokens."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Non-overlapping (or, with a smaller stride, overlapping) patches through one linear map.

    Args:
        img_size: side or (height, width) in pixels.
        patch_size, stride: in pixels; stride defaults to the patch size.
        bias: of the linear map.

    Raises:
        ValueError: when the image is smaller than a patch or the patches do not cover it exactly.
    """

    of_image_size = ("img_size", "grid_size", "num_patches")

    def __init__(
        self,
        img_size: int | tuple[int, int],
        patch_size: int,
        in_chans: int,
        dim: int,
        stride: int | None = None,
        bias: bool = True,
    ):
        super().__init__()
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        stride = stride or patch_size
        for side in self.img_size:
            if side < patch_size or (side - patch_size) % stride:
                raise ValueError(
                    f"patches of {patch_size} pixels at stride {stride} must cover the image exactly: "
                    f"img_size {self.img_size} leaves {max(side - patch_size, 0) % stride} pixels over; resize it"
                )
        self.grid_size = patch_grid(self.img_size, patch_size, stride)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, patches, dim)."""
        return self.proj(x).flatten(2).mT


def patch_grid(image: Sequence[int], patch_size: int, stride: int | None = None) -> tuple[int, int]:
    """(rows, columns) of the patches of an image (height, width) in pixels."""
    height, width = ((side - patch_size) // (stride or patch_size) + 1 for side in image)
    return height, width
