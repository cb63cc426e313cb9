"""ADEM-VL: a language model that looks at an image beside its feed-forward layers, with one more token in its text.

Paper: Hao et al., "ADEM-VL: Adaptive and Embedded Fusion for Efficient Vision-Language Tuning", arXiv 2410.17779, with
the sizes of the authors' code (Hao840/ADEM-VL).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import require_positive, require_ranges
from zoo.generate import Step
from zoo.layers import ModelState
from zoo.registry import Paper, register_model
from zoo.vision_language.llava import CLIP, Llava, LlavaConfig
from zoo.vision_language.reduction import Reduction


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdemVLConfig(LlavaConfig):
    """Options of ADEM-VL."""

    grids: tuple[int, ...] = (16, 8)
    """Sides of the grids that patches are averaged to, all of which are looked at."""
    hidden_dim: int = 128
    """Width between the two layers of a projector."""
    adapter_dim: int = 12
    """Width of the adapters beside the encoder's feed-forward layers."""
    adapter_scale: float = 0.1
    """Factor of what they add."""
    image_scale: float = 0.01
    """Factor of the projected features."""
    fusion_scale: float = 0.1
    """Factor of what a token sees."""
    dropped_share: float = 0.1
    """Share of the features that a token does not see: those of its lowest scores."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "hidden_dim", "adapter_dim")
        require_ranges(self)
        if self.num_blocks is not None or self.class_feature or not self.projector_bias:
            raise ValueError(
                "ADEM-VL reads the whole encoder, its class token by itself, and projects with biases: leave out "
                f"num_blocks, class_feature and projector_bias, got {self.num_blocks}, {self.class_feature}, "
                f"{self.projector_bias}"
            )
        if not self.grids or min(self.grids) < 1:
            raise ValueError(f"grids must be sides of at least one cell each, got {self.grids}")
        if not 0 <= self.dropped_share < 1:
            raise ValueError(f"dropped_share must be in [0, 1), got {self.dropped_share}")


class Bottleneck(nn.Module):
    r"""From a feature to the language model.

    .. math:: y = W_2 \, \mathrm{silu}(W_1 x + b_1) + b_2
    """

    def __init__(self, in_dim: int, hidden_dim: int, dim: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(in_dim, hidden_dim), nn.Linear(hidden_dim, dim)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_dim) -> (..., dim)."""
        return self.fc2(F.silu(self.fc1(x)))


class AdaptedMlp(nn.Module):
    r"""A feed-forward layer of the encoder with a narrow one beside it, which adds nothing at first.

    .. math:: y = \mathrm{mlp}(x) + s \, W_2 \, \mathrm{dropout}(\mathrm{gelu}(W_1 x))
    """

    def __init__(self, mlp: nn.Module, dim: int, hidden_dim: int, scale: float):
        super().__init__()
        self.mlp, self.scale = mlp, scale
        self.down, self.up = nn.Linear(dim, hidden_dim, bias=False), nn.Linear(hidden_dim, dim, bias=False)
        self.drop = nn.Dropout(0.1)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        return self.mlp(x) + self.scale * self.up(self.drop(F.gelu(self.down(x))))


class Fusion(nn.Module):
    r"""What tokens see of an image: no projections, no softmax, the same two tables in all layers.

    .. math::
        s = \mathrm{silu}(x) \, \mathrm{silu}(V + e_1)^\top, \quad
        s'_{tj} = s_{tj} \, [s_{tj} \ge s_{t,(\lfloor \gamma n \rfloor)}], \quad y = s' (V + e_2)

    with V the n features of the row's image, 0 without one, and s_(k) a token's scores in ascending order.

    Args:
        features: n.
        dim: of the language model.
        dropped: gamma.
    """

    def __init__(self, features: int, dim: int, dropped: float):
        super().__init__()
        self.dropped = int(dropped * features)
        self.seen: Tensor | None = None  # V (B, n, dim) within ``seeing``
        self.key_table = nn.Parameter(0.02 * torch.randn(1, features, dim))
        self.value_table = nn.Parameter(torch.zeros(1, features, dim))

    @contextmanager
    def seeing(self, features: Tensor | None) -> Iterator[None]:
        """Within it tokens see V (B, n, dim), or no image."""
        before, self.seen = self.seen, features
        try:
            yield
        finally:
            self.seen = before

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        keys, values = self.key_table, self.value_table
        if self.seen is not None:
            keys, values = self.seen + keys, self.seen + values
        score = F.silu(x) @ F.silu(keys).mT  # (B, T, n)
        if self.dropped:
            least = score.sort(dim=-1).values[..., self.dropped, None]
            score = torch.where(score < least, 0, score)
        return score @ values


class FusedMlp(nn.Module):
    """A feed-forward layer of the language model, plus what its input sees of the image, times a factor."""

    def __init__(self, mlp: nn.Module, fusion: Fusion, scale: float):
        super().__init__()
        self.mlp, self.scale = mlp, scale
        self._fusion = [fusion]  # a submodule of the model alone

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        return self.mlp(x) + self.scale * self._fusion[0](x)


class AdemVL(Llava):
    """The class token of an image is one token of the text; its patches are seen beside every feed-forward layer.

    A text has at most one image. ``tuned()`` are the parameters that the authors train: all others are those of the
    encoder and of the language model.

    Attributes: those of ``Llava``, whose projector is the class token's; feature_projector, fusion.

    Raises:
        ValueError: for an encoder without class token, blocks with an ``mlp`` and a square of patches, or language
            models of blocks without one.
    """

    config: AdemVLConfig

    def __init__(self, config: AdemVLConfig):
        super().__init__(config)
        c, dim, width = config, self.language.stream_dim, self.vision.num_features
        blocks = [*self.vision.layer_list()[1], *self.language.blocks]
        if not hasattr(self.vision, "cls_token") or not all(getattr(one, "mlp", None) is not None for one in blocks):
            raise ValueError(
                f"ADEM-VL adds to feed-forward layers and reads a class token: {c.vision} or {c.language} has none"
            )
        self.feature_projector = Bottleneck(width, c.hidden_dim, dim)
        self.fusion = Fusion(sum(side * side for side in c.grids), dim, c.dropped_share)
        for block in self.vision.layer_list()[1]:
            block.mlp = AdaptedMlp(block.mlp, width, c.adapter_dim, c.adapter_scale)
        for block in self.language.blocks:
            block.mlp = FusedMlp(block.mlp, self.fusion, c.fusion_scale)

    def build_projector(self) -> nn.Module:
        """Of the class token."""
        return Bottleneck(self.vision.num_features, self.config.hidden_dim, self.language.stream_dim)

    @property
    def num_features(self) -> int:
        """Tokens of an image in a text."""
        return 1

    def tuned(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of what is trained beside a frozen encoder and language model."""
        own = ("projector.", "feature_projector.", "fusion.")
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if name.startswith(own) or ".mlp.down." in name or ".mlp.up." in name
        }

    def forward(
        self,
        images: Tensor | None,
        tokens: Tensor | None = None,
        state: ModelState | None = None,
        *,
        reduction: Reduction | None = None,
        **call: Any,
    ) -> Tensor:
        """As ``Llava.forward``, with at most one image a row; a state remembers what was seen.

        Raises:
            ValueError: for texts with several images, a reduction, or as there.
        """
        if reduction is not None:
            raise ValueError(f"an image is one token of the text already: leave out {reduction!r}")
        if images is None:
            with self.fusion.seeing(None if state is None else state.image):
                return super().forward(None, tokens, state, **call)
        self.vision._check(images)
        x = self.vision.forward_features(images)
        first = self.projector(self.vision.prefix_tokens(x))
        seen = self.config.image_scale * self.feature_projector(self._multiscale(self.vision.patch_tokens(x)))
        if tokens is None:
            tokens = torch.full_like(first[..., 0], self.config.image_token, dtype=torch.int64)
        embedded = self._placed(tokens, first)
        places = (tokens == self.config.image_token).sum(1)
        if not torch.compiler.is_compiling() and tokens.device.type != "meta" and bool((places > 1).any()):
            raise ValueError(f"a text of ADEM-VL has at most one image, got {places.tolist()} in their rows")
        which = (places.cumsum(0) - 1).clamp(min=0)  # of the images, in order
        seen = seen[which] * places.view(-1, 1, 1)
        if state is not None:
            if state.image is not None:  # rows without an image now go on with what they saw before
                seen = torch.where(places.view(-1, 1, 1) > 0, seen, state.image)
            state.image = seen
        with self.fusion.seeing(seen):
            return self.language(tokens, state, embedded=embedded, **call)

    def continuing(self, state: ModelState, steps: Iterator[Step]) -> Iterator[Step]:
        """Every step sees what the state remembers."""
        while True:
            with self.fusion.seeing(state.image):
                step = next(steps, None)
            if step is None:
                return
            yield step

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the encoder's blocks in the backward pass; those of the language model see an image that is no
        argument of theirs, and are kept."""
        self.vision.set_grad_checkpointing(enable)

    def _multiscale(self, patches: Tensor) -> Tensor:
        """Patches (I, N, D) of a square -> their means over the cells of each grid, (I, n, D)."""
        square = patches.mT.unflatten(2, self.vision.patch_embed.grid_size)
        return torch.cat([F.adaptive_avg_pool2d(square, side).flatten(2).mT for side in self.config.grids], dim=1)


_register = partial(
    register_model, AdemVL, task="vision-language", family="adem_vl",
    paper=Paper("ADEM-VL: Adaptive and Embedded Fusion for Efficient Vision-Language Tuning", "2410.17779", 2024),
)  # fmt: skip
_CLIP_224 = {**CLIP, "img_size": 224}
_ASK = "Image: <image>Generate caption of this image\nResponse:"


@_register()
def adem_vl_nano():
    return AdemVLConfig(
        vision="vit_nano",
        vision_options={"img_size": 24, "patch_size": 4, "depth": 3, "mean": (0.13,), "std": (0.19,)},
        language="transformer_nano",
        language_options={"dim": 96, "mlp_dim": 224},
        image_token=255,
        caption_prompt="<image>caption: ",
        grids=(6, 3),
        hidden_dim=64,
        adapter_dim=4,
        image_scale=1.0,
        fusion_scale=0.1,
    )


@_register()
def adem_vl_7b():
    return AdemVLConfig(
        vision="vit_base_patch16_224", vision_options=_CLIP_224, language="llama2_7b", image_token=1,
        caption_prompt=_ASK,
    )  # fmt: skip


@_register()
def adem_vl_13b():
    return AdemVLConfig(
        vision="vit_base_patch16_224", vision_options=_CLIP_224, language="llama2_13b", image_token=1,
        caption_prompt=_ASK,
    )  # fmt: skip
