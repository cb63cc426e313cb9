"""What all vision models share: timm's surface, image checks, classifier, checkpointing."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from zoo.config import require_positive, require_ranges
from zoo.layers import fuse, recompute
from zoo.layers.depth.exits import ImageExits
from zoo.layers.precision import computes_in
from zoo.layers.quant import records
from zoo.vision.exits import classify
from zoo.vision.surface import TimmSurface

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Options of every vision model."""

    img_size: int | tuple[int, int] = 224
    """Side, or (height, width), in pixels."""
    in_chans: int = 3
    """Image channels."""
    num_classes: int = 1000
    """Classes, 0 for no classifier."""
    drop_rate: float = 0.0
    """Dropout before the classifier."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean of each channel that images are normalised by."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation of each channel that images are normalised by."""
    crop_pct: float = 0.9
    """Side of the centre crop over that of the resized image, in evaluation."""
    crop_mode: str = "center"
    """What follows the resizing, by timm's names: a "center" crop, the same with a "border" where the image is smaller,
    or "squash": both sides are resized."""
    interpolation: str = "bicubic"
    """How images are resized: timm's name, such as "bicubic"."""
    label_names: tuple[str, ...] = ()
    """Names of the classes in the order of the logits, where they are known."""

    def __post_init__(self):
        require_positive(self, "in_chans")
        require_ranges(self)
        if self.crop_mode not in ("center", "squash", "border"):
            raise ValueError(f"crop_mode must be 'center', 'squash' or 'border', got {self.crop_mode!r}")
        if not isinstance(self.num_classes, int) or self.num_classes < 0:
            raise ValueError(f"num_classes must be an integer of at least 0, got {self.num_classes!r}")
        if isinstance(self.img_size, tuple) and len(self.img_size) == 2 and self.img_size[0] == self.img_size[1]:
            object.__setattr__(self, "img_size", self.img_size[0])
        if len(self.image_shape) != 2 or not all(isinstance(side, int) and side > 0 for side in self.image_shape):
            raise ValueError(f"img_size must be a positive integer, or a height and a width, got {self.img_size!r}")

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else tuple(self.img_size)  # type: ignore[return-value]

    @property
    def map_shape(self) -> tuple[int, int] | None:
        """(height, width) of the last map at ``img_size``; None where features are tokens."""
        return None


class VisionModel(TimmSurface, ABC):
    """Images to logits over a sequence of tokens. A family sets ``first_conv``, builds ``head`` and ``layer_list()``.

    ``HierarchicalModel`` is the variant whose features are maps that shrink from stage to stage.

    Attributes: those of ``TimmSurface``; num_features and head_hidden_size (width of the tokens); feature_info (one
    dict a block with num_chs, reduction and module); fused (whether ``fuse`` was called); exits (where images may leave
    the blocks, see ``zoo.add_exits``; None for nowhere).
    """

    fused = False
    head: nn.Module

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.num_features = self.head_hidden_size = self.embed_dim = config.dim
        self.grad_checkpointing = False
        self.exits: ImageExits | None = None

    @abstractmethod
    def forward_embed(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to the tokens (B, N, dim) that enter the first block."""

    @abstractmethod
    def forward_norm(self, x: Tensor) -> Tensor:
        """The final norm."""

    @abstractmethod
    def pool(self, x: Tensor) -> Tensor:
        """Tokens (B, N, dim) to one vector (B, dim)."""

    @abstractmethod
    def patch_tokens(self, x: Tensor) -> Tensor:
        """Tokens (B, N, dim) without the class token, in raster order."""

    def prefix_tokens(self, x: Tensor) -> Tensor:
        """Tokens (B, N, dim) that stand for no patch; none here."""
        return x[:, :0]

    def grid_of(self, x: Tensor) -> tuple[int, int]:
        """(rows, columns) of the patches of images."""
        return self.patch_embed.grid_size  # type: ignore[union-attr,return-value]

    def feature_map(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, N, dim) to a map (B, dim, H, W) of ``grid``."""
        return self.patch_tokens(x).mT.unflatten(2, grid).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W), floating point, to logits (B, num_classes); pooled features when num_classes is 0."""
        if self.exits is not None:
            return classify(self, self.exits, x)
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to normalised tokens (B, N, dim).

        Raises:
            ValueError: for images of another shape than the configuration's, or of an integer dtype.
        """
        self._check(x)
        x = self.forward_embed(x)
        for block in self.layer_list()[1]:
            x = self._run(block, x)
        return self.forward_norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, N, dim) to logits, or to the pooled features that enter the classifier."""
        x = nn.functional.dropout(self.pool(x), self.config.drop_rate, self.training)
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        *,
        return_prefix_tokens: bool = False,
        block_args: tuple[Any, ...] = (),
    ) -> list[Any] | tuple[Tensor, list[Any]]:
        """Features of chosen blocks, as in timm.

        Args:
            indices: blocks to return (negative from the end), the last so many for an int, all for None.
            norm: apply the final norm to them.
            stop_early: run no further than the last of them.
            output_fmt: "NCHW" maps or "NLC" tokens, without the class token.
            intermediates_only: return only the list, else (final tokens, list).
            return_prefix_tokens: pairs of them and the class token (B, 1, dim), where there is one.
            block_args: what every block takes besides the tokens, in a family whose blocks take more.

        Raises:
            ValueError: for an unknown format or an index out of range.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}")
        self._check(x)
        taken = self.feature_indices(indices)
        grid, x, features = self.grid_of(x), self.forward_embed(x), []
        for index, block in enumerate(self.layer_list()[1]):
            if stop_early and index > taken[-1]:
                break
            x = self._run(block, x, *block_args)
            if index in taken:
                y = self.forward_norm(x) if norm else x
                feature = self.patch_tokens(y) if output_fmt == "NLC" else self.feature_map(y, grid)
                features.append((feature, self.prefix_tokens(y)) if return_prefix_tokens else feature)
        return features if intermediates_only else (self.forward_norm(x), features)

    def fuse(self) -> VisionModel:
        """Bring the model into its form for inference, in place, and return it.

        Batch norms are folded into the convolutions and linear layers beside them, the identity beside a depthwise
        convolution into its middle tap, and the model is put into eval mode. Outputs stay the same up to rounding;
        there is no way back, so save before.

        Raises:
            ValueError: for a model that ``zoo.quantize`` has compressed.
        """
        if held := records(self):
            raise ValueError(f"fuse() multiplies weights by scales, and {next(iter(held))} is compressed")
        fuse(self.eval())
        self.fused = True
        return self

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """One dict a block: num_chs (channels), reduction (pixels a feature), module (dotted name)."""
        name, blocks = self.layer_list()
        reduction = self.config.image_shape[0] // self.patch_embed.grid_size[0]  # type: ignore[union-attr]
        return [
            {"num_chs": self.num_features, "reduction": reduction, "module": f"{name}.{i}"} for i in range(len(blocks))
        ]

    def get_classifier(self) -> nn.Module:
        """The classifier layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier for ``num_classes``, none for 0; the pooling of a token model does not change.

        Raises:
            ValueError: for another pooling than the model's own.
        """
        if global_pool not in (None, "token"):
            raise ValueError(f"{type(self).__name__} pools by its class token ('token'), not {global_pool!r}")
        self._replace_head(num_classes=num_classes)

    def _replace_head(self, **changes: Any) -> None:
        self.config = dataclasses.replace(self.config, label_names=(), **changes)
        like = computes_in(self)
        self.head = self.build_head().to(like.device, like.dtype).train(self.training)
        if self.exits is not None:
            self.exits.reset(self.config.num_classes)
            self.exits.to(like.device, like.dtype).train(self.training)

    def build_head(self) -> nn.Module:
        """The classifier for ``config.num_classes``: truncated-normal weight, zero bias; identity for 0 classes."""
        if self.config.num_classes == 0:
            return nn.Identity()
        head = nn.Linear(self.config.dim, self.config.num_classes)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head

    def adapt_tensors(self, tensors: Mapping[str, Tensor], known: Any = None) -> dict[str, Tensor]:
        """Tensors of this model for images of another size, as they are for images of its own; a family with tables of
        positions resizes them.

        Args:
            tensors: under the names of ``state_dict()``.
            known: the configuration they were made with; None where only the tensors tell.
        """
        return dict(tensors)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone, besides biases and norms."""
        special = {
            f"{prefix}.{name}"
            for prefix, module in self.named_modules()
            for name in getattr(module, "float32_parameters", ())
        }
        return special | {"pos_embed", "cls_token"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of storing its activations."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that sort parameters by depth, for layer-wise learning rates."""
        return {"stem": r"^cls_token|pos_embed|patch_embed", "blocks": rf"^{self.layer_list()[0]}\.(\d+)"}

    def _run(self, block: nn.Module, x: Tensor, *args: Any) -> Tensor:
        if self.grad_checkpointing and self.training:
            return recompute(block, x, *args)
        return block(x, *args)

    def _check(self, x: Tensor) -> None:
        if isinstance(x, Proxy):
            return  # a symbolic tracer's, of no shape and dtype
        if not x.is_floating_point():
            raise ValueError(
                f"images must be floating point, got {x.dtype}: convert to float, scale to [0, 1] and normalise with "
                "model.pretrained_cfg['mean'] and ['std']"
            )
        self._check_shape(x)

    def _check_shape(self, x: Tensor) -> None:
        wanted = (self.config.in_chans, *self.config.image_shape)
        if x.dim() != 4 or tuple(x.shape[1:]) != wanted:
            raise ValueError(
                f"images must have shape (batch, {', '.join(map(str, wanted))}), got {tuple(x.shape)}: resize them, or "
                "create the model with img_size=... and in_chans=..."
            )


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Rates that rise linearly from 0 at the first block to ``rate`` at the last."""
    return torch.linspace(0, rate, depth, device="cpu").tolist()
