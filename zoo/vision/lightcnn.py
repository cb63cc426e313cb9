"""The lightweight CNN: two branches of two convolutions, joined by two small layers.

Paper: Isong, "Building Efficient Lightweight CNN Models", arXiv 2501.15547. It gives 14,862 parameters for MNIST, fewer
than 20,000 for CIFAR-10, and branches of 10 and 20 filters; the sizes of the layers that join them are the ones that
meet both counts (14,862 and 19,622), not taken from the paper. Of the inputs at inference it says nothing: here both
branches see the image. ``zoo.train.tasks.DualInputClassification`` trains it in the paper's two stages.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import require_positive
from zoo.registry import Paper, register_model
from zoo.vision.base import VisionConfig, VisionModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class LightCNNConfig(VisionConfig):
    """Options of the lightweight CNN and its branches; ``drop_path_rate`` has no meaning."""

    dims: tuple[int, ...] = (10, 20)
    """Channels of a branch's convolutions, 3x3, each followed by a ReLU and a pooling that halves the map."""
    branch_dim: int = 10
    """Numbers a branch ends in; trained by itself it takes them for logits."""
    join_dim: int = 32
    """Width of the layer that joins the branches."""
    padding: int = 0
    """1 keeps the size of a map in a convolution, 0 as in the paper trims a pixel a side."""
    global_pool: str = "flatten"
    """"flatten" for the linear layers that the maps enter, or "" for features that stay maps (and no classes)."""
    crop_pct: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "branch_dim", "join_dim")
        if not self.dims or not all(isinstance(dim, int) and dim > 0 for dim in self.dims):
            raise ValueError(f"dims must hold positive integers, one a convolution, got {self.dims}")
        if self.padding not in (0, 1):
            raise ValueError(f"padding must be 0 or 1, got {self.padding}")
        if min(self.map_shape) < 1:
            raise ValueError(f"img_size {self.img_size} leaves nothing after {len(self.dims)} convolutions")
        if self.global_pool != "flatten" and (self.global_pool or self.num_classes):
            raise ValueError(
                f"global_pool must be 'flatten', or '' without classes, got {self.global_pool!r} and num_classes "
                f"{self.num_classes}"
            )
        if self.drop_path_rate:
            raise ValueError(f"there are no residual branches to drop, got drop_path_rate {self.drop_path_rate}")

    @property
    def dim(self) -> int:
        """Width of what enters the classifier."""
        return self.join_dim

    def map_shapes(self, height: int, width: int) -> list[tuple[int, int]]:
        """(height, width) of each convolution's map."""
        shapes = []
        for _ in self.dims:
            height, width = ((side - 2 + 2 * self.padding) // 2 for side in (height, width))
            shapes.append((height, width))
        return shapes

    @property
    def map_shape(self) -> tuple[int, int]:
        """(height, width) of the last map."""
        return self.map_shapes(*self.image_shape)[-1]


class ConvPool(nn.Module):
    r"""Both branches, side by side in the channels.

    .. math:: y = \mathrm{maxpool}(\mathrm{relu}(W * x))
    """

    def __init__(self, in_dim: int, dim: int, padding: int):
        super().__init__()
        self.conv = nn.Conv2d(2 * in_dim, 2 * dim, 3, padding=padding, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 2 in_dim, H, W) -> (B, 2 dim, h, w)."""
        return F.max_pool2d(F.relu(self.conv(x)), 2)


class LightCNN(VisionModel):
    r"""Two branches that see the image, each down to ``branch_dim`` numbers, and a classifier of both.

    .. math:: y = W_2 \, \mathrm{relu}(W_1 [a, b])
    """

    config: LightCNNConfig
    first_conv, final_norm = "blocks.0.conv", None

    def __init__(self, config: LightCNNConfig):
        super().__init__(config)
        widths = (config.in_chans, *config.dims)
        self.blocks = nn.ModuleList(
            ConvPool(before, dim, config.padding) for before, dim in zip(widths, config.dims, strict=False)
        )
        height, width = config.map_shape
        size = config.dims[-1] * height * width
        self.branch_heads = nn.ModuleList(nn.Linear(size, config.branch_dim) for _ in range(2))
        self.join = nn.Linear(2 * config.branch_dim, config.join_dim)
        self.head = self.build_head()
        self.num_features = self.embed_dim = 2 * config.dims[-1]  # of the maps; what joins the branches is narrower

    def forward_branches(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """An image for each branch (B, C, H, W) -> what each ends in, (B, branch_dim)."""
        self._check(first)
        self._check(second)
        x = torch.cat([first, second], dim=1)
        for block in self.blocks:
            x = self._run(block, x)
        return self._ends(x)

    def layer_list(self) -> tuple[str, nn.ModuleList]:
        """The convolutions of both branches."""
        return "blocks", self.blocks

    def forward_embed(self, x: Tensor) -> Tensor:
        """The image once a branch."""
        return torch.cat([x, x], dim=1)

    def forward_norm(self, x: Tensor) -> Tensor:
        """The maps themselves."""
        return x

    def pool(self, x: Tensor) -> Tensor:
        """The last maps of both branches (B, 2 C, h, w) -> what joins them, (B, join_dim); the maps for ''."""
        if self.config.global_pool == "":
            return x
        return F.relu(self.join(torch.cat(self._ends(x), dim=1)))

    def grid_of(self, x: Tensor) -> tuple[int, int]:
        """That of the pixels."""
        return x.shape[2], x.shape[3]

    def feature_map(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """The maps themselves."""
        return x

    def patch_tokens(self, x: Tensor) -> Tensor:
        """Maps (B, C, h, w) to tokens (B, h * w, C)."""
        return x.flatten(2).mT

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """One dict a convolution: num_chs (of both branches), reduction (pixels a feature), module (dotted name)."""
        return [
            {"num_chs": 2 * dim, "reduction": 2 ** (i + 1), "module": f"blocks.{i}"}
            for i, dim in enumerate(self.config.dims)
        ]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh last layer for ``num_classes``, none for 0; the branches keep what they end in.

        Raises:
            ValueError: for another ``global_pool`` than "flatten", or "" without classes.
        """
        changes = {} if global_pool is None else {"global_pool": global_pool}
        self._replace_head(num_classes=num_classes, **changes)

    def no_weight_decay(self) -> set[str]:
        """Nothing besides biases."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that sort parameters by depth."""
        return {"stem": r"^blocks\.0", "blocks": [(r"^blocks\.(\d+)", None), (r"^branch_heads|^join", (99999,))]}

    def _ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.chunk(2, dim=1)
        return self.branch_heads[0](first.flatten(1)), self.branch_heads[1](second.flatten(1))


_register = partial(
    register_model, LightCNN, task="image-classification", family="lightcnn",
    paper=Paper("Building Efficient Lightweight CNN Models", "2501.15547", 2025),
)  # fmt: skip


@_register()
def lightcnn_nano():
    return LightCNNConfig(img_size=8, in_chans=1, num_classes=10, dims=(16, 32), padding=1, mean=(0.305,), std=(0.376,))


@_register()
def lightcnn_mnist():
    return LightCNNConfig(img_size=28, in_chans=1, num_classes=10, mean=(0.1307,), std=(0.3081,))


@_register()
def lightcnn_cifar():
    return LightCNNConfig(img_size=32, num_classes=10, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
