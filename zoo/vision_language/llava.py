"""LLaVA: what an encoder sees of an image stands among the tokens of a language model.

Papers: Liu et al., "Visual Instruction Tuning", arXiv 2304.08485; "Improved Baselines with Visual Instruction Tuning"
(LLaVA-1.5), arXiv 2310.03744, with the sizes of the published checkpoints. Encoder and language model are any of the
zoo's, by their names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import from_json, require_positive
from zoo.generate import Step
from zoo.language.base import LanguageModel
from zoo.layers import ModelState
from zoo.layers.cache.build import Cache
from zoo.layers.cache.names import policy_of
from zoo.layers.cache.policy import Policy
from zoo.registry import Paper, lookup, register_model
from zoo.vision.base import VisionModel
from zoo.vision_language.reduction import Reduction, Seen


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaConfig:
    """Options of LLaVA."""

    vision: str
    """Name of the encoder, a model of images over patches."""
    vision_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Its options, where they are not those of the name."""
    language: str
    """Name of the language model."""
    language_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Its options, where they are not those of the name."""
    image_token: int
    """Id that stands in a text for a feature of an image."""
    num_blocks: int | None = None
    """Blocks of the encoder before features are read, without its last norm; None: all of them, with it."""
    class_feature: bool = False
    """The class token is a feature as well, the first one."""
    projector_bias: bool = True
    """The two layers from features to the language model have biases."""
    caption_prompt: str = "<image>\n"
    """What a caption follows, where nothing else is asked."""

    def __post_init__(self):
        require_positive(self, "image_token", "num_blocks")
        for part in ("vision", "language"):
            settled = {"num_classes": 0} if part == "vision" else {}
            made = _configured(getattr(self, part), {**getattr(self, f"{part}_options"), **settled})
            object.__setattr__(self, f"{part}_options", dataclasses.asdict(made))
        words = self.language_options.get("vocab_size", 0)
        if self.image_token >= words:
            raise ValueError(f"image_token must be one of the {words} ids of {self.language}, got {self.image_token}")
        depth = self.vision_options.get("depth", self.num_blocks)
        if self.num_blocks is not None and self.num_blocks > depth:
            raise ValueError(f"num_blocks must be at most the {depth} blocks of {self.vision}, got {self.num_blocks}")

    @property
    def vision_config(self) -> Any:
        """The encoder's configuration."""
        return _configured(self.vision, self.vision_options)

    @property
    def language_config(self) -> Any:
        """The language model's configuration."""
        return _configured(self.language, self.language_options)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one image: (channels, height, width)."""
        vision = self.vision_config
        return vision.in_chans, *vision.image_shape


def _configured(name: str, options: Mapping[str, Any]) -> Any:
    return from_json(lookup(name).configure(), name, dict(options))


class Projector(nn.Module):
    r"""From features of an image to the language model, each by itself.

    .. math:: y = W_2 \, \mathrm{gelu}(W_1 x + b_1) + b_2
    """

    def __init__(self, in_dim: int, dim: int, bias: bool):
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, dim, bias)
        self.linear_2 = nn.Linear(dim, dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_dim) -> (..., dim)."""
        return self.linear_2(F.gelu(self.linear_1(x)))


class Llava(nn.Module):
    r"""A language model in whose texts images stand, each as the projected features of its patches.

    .. math:: x_t = E[w_t], \quad x_{t_j} = \mathrm{projector}(f_j), \quad f = \mathrm{encoder}(\mathrm{image})

    for the places t_j of ``config.image_token`` in the text; the language model reads x.

    Attributes:
        config, vision (the encoder), projector, language.

    Raises:
        ValueError: for an encoder of maps instead of patches, or a class feature of one without a class token.
    """

    def __init__(self, config: LlavaConfig):
        super().__init__()
        self.config = c = config
        self.vision: Any = lookup(c.vision).model_class(c.vision_config)
        self.language: Any = lookup(c.language).model_class(c.language_config)
        if not isinstance(self.vision, VisionModel) or not hasattr(self.vision, "patch_embed"):
            raise ValueError(f"vision must name a model of images over patches, got {c.vision}")
        if not isinstance(self.language, LanguageModel):
            raise ValueError(f"language must name a language model, got {c.language}")
        if c.class_feature and not hasattr(self.vision, "cls_token"):
            raise ValueError(f"class_feature asks for a class token, which {c.vision} does not have")
        self.projector = self.build_projector()

    def build_projector(self) -> nn.Module:
        """From features of an image to the language model."""
        return Projector(self.vision.num_features, self.language.stream_dim, self.config.projector_bias)

    @property
    def num_features(self) -> int:
        """Features of an image."""
        return self.vision.patch_embed.num_patches + self.config.class_feature

    def tokens_of_image(self, reduction: Reduction | None = None) -> int:
        """Tokens that an image, or what a reduction takes together, is for the language model."""
        return self.num_features if reduction is None else reduction.count(self.num_features)

    def forward(
        self,
        images: Tensor | None,
        tokens: Tensor | None = None,
        state: ModelState | None = None,
        *,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        seq_idx: Tensor | None = None,
        num_scored: int | Tensor | None = None,
        reduction: Reduction | None = None,
    ) -> Tensor:
        """Logits, or the loss when labels are given.

        Args:
            images: (I, C, H, W), normalised, in the order in which they stand in the texts; None for none.
            tokens: (B, T) int64 with ``image_token`` at every place of a feature, as ``encode_prompt`` makes them;
                None: texts of an image alone.
            state, labels, logits_to_keep, seq_idx, num_scored: those of ``LanguageModel.forward``.
            reduction: what is left of an image's features, which the texts must have places for; None for all.

        Returns:
            As ``LanguageModel.forward``.

        Raises:
            ValueError: for texts with other places than there are features, or images of another shape.
        """
        features = None if images is None else self.see(images, reduction)
        if tokens is None:
            if features is None:
                raise ValueError("there is nothing to read: give images, tokens or both")
            tokens = torch.full_like(features[..., 0], self.config.image_token, dtype=torch.int64)
        embedded = self._placed(tokens, features)
        call = {"labels": labels, "logits_to_keep": logits_to_keep, "seq_idx": seq_idx, "num_scored": num_scored}
        return self.language(tokens, state, embedded=embedded, **call)

    def see(self, images: Tensor, reduction: Reduction | None = None) -> Tensor:
        """Images (I, C, H, W) -> what the language model reads of them, (I, n, dim); fewer than I where a reduction
        takes several together."""
        if reduction is not None and len(images) % reduction.images:
            raise ValueError(f"{reduction!r} takes {reduction.images} images together, got {len(images)}")
        seen = self.encode(images, keep=reduction is not None)
        features = seen.features if reduction is None else reduction.reduce(seen)
        return self.projector(features.flatten(0, 1)).unflatten(0, features.shape[:2])  # one product, however grouped

    def encode(self, images: Tensor, keep: bool = False) -> Seen:
        """Images (I, C, H, W) -> their features; ``keep``: and the tokens that enter each block."""
        vision, kept = self.vision, []
        vision._check(images)
        x = vision.forward_embed(images)
        for block in vision.layer_list()[1][: self.config.num_blocks]:
            kept += [x] if keep else []
            x = vision._run(block, x)
        kept += [x] if keep else []
        normed = self.config.num_blocks is None
        x = vision.forward_norm(x) if normed else x
        features = vision.patch_tokens(x)
        if self.config.class_feature:
            features = torch.cat([vision.prefix_tokens(x), features], dim=1)
        return Seen(features, vision, kept, self.config.class_feature, normed)

    def continuing(self, state: ModelState, steps: Iterator[Step]) -> Iterator[Step]:
        """Steps of the language model after what this model has read into a state."""
        return steps

    def init_state(
        self,
        batch_size: int,
        max_length: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        cache: Cache = None,
    ) -> ModelState:
        """Of the language model, see ``LanguageModel.init_state``; a cache policy of images that names no tokens of
        theirs is told this model's."""
        if isinstance(cache, Mapping):
            cache = {index: self._told(policy) for index, policy in cache.items()}
        elif cache is not None:
            cache = self._told(cache)
        return self.language.init_state(batch_size, max_length, device, dtype, cache)

    def _told(self, policy: Policy | str) -> Policy:
        policy = policy_of(policy)
        unnamed = getattr(policy, "images", None) == ()
        return dataclasses.replace(policy, images=(self.config.image_token,)) if unnamed else policy  # type: ignore[call-arg]

    def no_weight_decay(self) -> set[str]:
        """Those of both models."""
        parts = ("vision", "language")
        return {f"{part}.{name}" for part in parts for name in getattr(self, part).no_weight_decay()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks of both models in the backward pass instead of storing their activations."""
        self.vision.set_grad_checkpointing(enable)
        self.language.set_grad_checkpointing(enable)

    def adapt_tensors(self, tensors: Mapping[str, Tensor], known: Any = None) -> dict[str, Tensor]:
        """Tensors of this model for images of another size, as they are for images of its own."""
        seen = {name.removeprefix("vision."): t for name, t in tensors.items() if name.startswith("vision.")}
        adapted = self.vision.adapt_tensors(seen, None if known is None else known.vision_config)
        return {**tensors, **{f"vision.{name}": tensor for name, tensor in adapted.items()}}

    def _placed(self, tokens: Tensor, features: Tensor | None) -> Tensor | None:
        """Texts (B, T) as the language model's blocks read them, (B, T, dim); None where there is no image."""
        places = tokens == self.config.image_token
        found = 0 if features is None else features.shape[0] * features.shape[1]
        if not torch.compiler.is_compiling() and tokens.device.type != "meta":
            self._check_places(places, features, found)
        if features is None:
            return None
        x = self.language.enter(tokens)
        return x.masked_scatter(places[..., None], features.to(x.dtype))

    def _check_places(self, places: Tensor, features: Tensor | None, found: int) -> None:
        wanted = int(places.sum())
        if features is None and wanted:
            raise ValueError(f"the texts have {wanted} places for features of images, and no image was given")
        if features is None:
            return
        length = features.shape[1]
        if wanted != found or bool((places.sum(1) % max(length, 1)).any()):
            raise ValueError(
                f"the texts must have {length} tokens {self.config.image_token} for each of {len(features)} images, "
                f"{found} in all, got {places.sum(1).tolist()} in their rows: zoo.vision_language.encode_prompt makes "
                "them of texts with one <image> for each"
            )


_register = partial(
    register_model, Llava, task="vision-language", family="llava",
    paper=Paper("Improved Baselines with Visual Instruction Tuning", "2310.03744", 2024),
)  # fmt: skip
_ASK = "USER: <image>\nDescribe the image. ASSISTANT:"
CLIP = {  # ViT-L/14
    "img_size": 336, "patch_size": 14, "dim": 1024, "depth": 24, "num_heads": 16, "norm_eps": 1e-5, "pre_norm": True,
    "activation": "quick_gelu", "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711), "crop_pct": 1.0,
}  # fmt: skip


@_register()
def llava_nano():
    return LlavaConfig(
        vision="vit_nano",
        vision_options={"img_size": 24, "patch_size": 4, "depth": 3, "mean": (0.13,), "std": (0.19,)},
        language="transformer_nano",
        language_options={"dim": 96, "mlp_dim": 224},
        image_token=255,  # a byte that is in no text
        class_feature=True,
        caption_prompt="<image>caption: ",
    )


def _llava_1_5(**language: int) -> LlavaConfig:
    return LlavaConfig(
        vision="vit_base_patch16_224", vision_options=CLIP, language="llama2_7b",
        language_options={"vocab_size": 32064, **language}, image_token=32000, num_blocks=23, caption_prompt=_ASK,
    )  # fmt: skip


@_register()
def llava_1_5_7b():
    return _llava_1_5()


@_register()
def llava_1_5_13b():
    return _llava_1_5(dim=5120, depth=40, num_heads=40, mlp_dim=13824)
