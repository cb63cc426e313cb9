"""WeTok: images as codes of a few bits a patch, and decoders that make images of them.

Paper: Zhuang et al., "WeTok: Powerful Discrete Tokenization for High-Fidelity Visual Reconstruction", arXiv 2508.05599,
with the sizes and names of the authors' code (zhuangshaobin/WeTok): ``wetok_24`` ... ``wetok_768`` are its tokenizers
of compression ratios 24 to 768. Codes over several ``scales``, each of what the coarser ones left over, are what
next-scale models predict; there the residual scheme is that of Tian et al., "Visual Autoregressive Modeling", arXiv
2404.02905, with signs of halving amplitude in place of its table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import require_positive, require_ranges
from zoo.generative.autoencoder import Decoder, Encoder
from zoo.generative.lookup_free import GroupedLookupFree
from zoo.layers import recompute
from zoo.layers.report import Reports
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeTokConfig:
    """Options of WeTok."""

    img_size: int | tuple[int, int] = 256
    """Side, or (height, width), in pixels; images of other sizes fit where no scales are given."""
    in_chans: int = 3
    """Image channels."""
    dims: tuple[int, ...] = (256, 512, 512, 1024)
    """Width of each level; all but the last halve the resolution."""
    num_blocks: int = 4
    """Residual blocks of a level, and in the middle."""
    norm_groups: int = 32
    """Groups of the group norms."""
    groups: int = 4
    """Indices of a patch."""
    bits: int = 8
    """Bits of an index."""
    scales: tuple[int, ...] = ()
    """Sides of the maps of codes, coarse to fine; empty for one map as large as the latents."""
    scale_decay: float = 0.5
    """Amplitude of a scale's codes over those of the scale before."""
    generative: bool = False
    """The decoder reads noise beside the codes: the second stage of training."""
    shared_usage: bool = True
    """The entropy loss compares the use of codes by all groups together."""
    entropy_weight: float = 0.1
    """Factor of the entropy loss."""
    commitment_weight: float = 0.25
    """Factor of the commitment loss."""
    temperature: float = 0.01
    """Of the softmax over codes in the entropy loss."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Mean of each channel that images are normalised by."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Standard deviation of each channel that images are normalised by."""

    def __post_init__(self):
        require_positive(self, "in_chans", "num_blocks", "norm_groups", "groups", "bits")
        require_ranges(self)
        if not self.dims or any(dim % self.norm_groups for dim in self.dims):
            raise ValueError(f"dims must be multiples of norm_groups {self.norm_groups}, got {self.dims}")
        if any(side < 1 or side % self.stride for side in self.image_shape):
            raise ValueError(f"img_size must be a multiple of {self.stride} pixels, got {self.img_size!r}")
        if not self.temperature > 0 or not 0 < self.scale_decay <= 1:
            raise ValueError(
                f"temperature must be positive and scale_decay in (0, 1], got {self.temperature}, {self.scale_decay}"
            )
        ends_whole = not self.scales or (self.scales[-1],) * 2 == self.latent_shape
        if not ends_whole or any(b <= a for a, b in zip((0, *self.scales), self.scales, strict=False)):
            raise ValueError(
                f"scales must rise from 1 or more to the side of the latents, {self.latent_shape}, got {self.scales}"
            )

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else tuple(self.img_size)  # type: ignore[return-value]

    @property
    def stride(self) -> int:
        """Pixels a side of a patch."""
        return 2 ** (len(self.dims) - 1)

    @property
    def latent_shape(self) -> tuple[int, int]:
        """(height, width) of the latents."""
        height, width = self.image_shape
        return height // self.stride, width // self.stride

    @property
    def code_dim(self) -> int:
        """Bits of a position, which are the channels of the latents."""
        return self.groups * self.bits

    @property
    def num_tokens(self) -> int:
        """Positions of all scales at ``img_size``."""
        height, width = self.latent_shape
        return sum(side * side for side in self.scales) or height * width

    @property
    def compression_ratio(self) -> float:
        """Bits of an image of 8 bits a channel over those of its codes."""
        height, width = self.image_shape
        return 8 * self.in_chans * height * width / (self.num_tokens * self.code_dim)


class Scales:
    """Codes over several maps: what they add up to, in latents of one shape.

    Args:
        sides: of the maps; empty for one as large as the latents.
        decay: amplitude of a map over the one before.
    """

    def __init__(self, sides: Sequence[int], decay: float = 1.0):
        self.sides, self.decay = tuple(sides), decay

    def shapes(self, latent: tuple[int, int]) -> list[tuple[int, int]]:
        """(height, width) of each map."""
        return [(side, side) for side in self.sides] or [latent]

    def amplitude(self, index: int) -> float:
        """Of the codes of a map."""
        return self.decay**index

    def enlarged(self, codes: Tensor, index: int, latent: tuple[int, int]) -> Tensor:
        """What the codes (B, C, h, w) of a map add to the latents (B, C, H, W)."""
        return self.amplitude(index) * resized(codes, latent)


def resized(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """A map (B, C, h, w) with (height, width) ``shape``: means of areas, or bilinearly enlarged."""
    if tuple(x.shape[2:]) == tuple(shape):
        return x
    if x.shape[2] > shape[0]:
        return F.interpolate(x, shape, mode="area")
    return F.interpolate(x, shape, mode="bilinear", align_corners=False)


class WeTok(Reports):
    """Images to codes and back: ``encode``, ``decode``, and both in ``forward``.

    Attributes:
        config, grad_checkpointing: whether levels are recomputed in the backward pass.
        encoder, quantizer, decoder; scales: how maps of codes become latents.
    """

    def __init__(self, config: WeTokConfig):
        super().__init__()
        self.config = c = config
        self.grad_checkpointing = False
        self.encoder = Encoder(c.in_chans, c.dims, c.num_blocks, c.code_dim, c.norm_groups)
        self.quantizer = GroupedLookupFree(
            c.groups, c.bits, entropy_weight=c.entropy_weight, commitment_weight=c.commitment_weight,
            temperature=c.temperature, shared_usage=c.shared_usage,
        )  # fmt: skip
        self.decoder = Decoder(c.code_dim, c.dims, c.num_blocks, c.in_chans, c.norm_groups, c.generative)
        self.scales = Scales(c.scales, c.scale_decay)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W), normalised, to what their codes decode to; in training the side losses "entropy" and
        "commit" are published.

        Args:
            noise: (B, groups * bits, h, w) of a generative decoder, drawn where None.

        Raises:
            ValueError: for images that are no multiples of a patch, or integers, or noise without a generative decoder.
        """
        z = self.latents(images)
        q, losses, _ = self.quantised(z)
        self.report(losses if self.training else {}, {})
        return self.rendered(q, noise)

    def latents(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> z (B, groups * bits, h, w)."""
        self._check(images)
        return self.encoder(images, self._run)

    def quantised(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        """z (B, C, h, w) -> its codes, added up over the scales, with the gradient of z; the side losses, summed over
        the scales; and the codes of each scale."""
        latent, rest, found, losses, maps = (z.shape[2], z.shape[3]), z, torch.zeros_like(z), {}, []
        for index, shape in enumerate(self.scales.shapes(latent)):
            small = resized(rest, shape) / self.scales.amplitude(index)
            codes = self.quantizer(small)
            if self.training:
                of_scale = self.quantizer.losses(small)
                losses = {name: losses.get(name, 0) + value for name, value in of_scale.items()}
            part = self.scales.enlarged(codes.detach(), index, latent)
            found, rest = found + part, rest - part
            maps.append(codes.detach())
        return z + (found - z).detach(), losses, maps

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> indices (B, tokens, groups) int64, scale after scale, each in raster order."""
        maps = self.quantised(self.latents(images))[2]
        return torch.cat([self.quantizer.indices(codes).flatten(1, 2) for codes in maps], 1)

    @torch.no_grad()
    def decode(self, indices: Tensor, noise: Tensor | None = None, shape: tuple[int, int] | None = None) -> Tensor:
        """Indices (B, tokens, groups) int64 -> images (B, C, H, W).

        Args:
            noise: as of ``forward``.
            shape: (height, width) of the latents; the configuration's where None.

        Raises:
            ValueError: for another number of tokens or groups than the latents have.
        """
        c, latent = self.config, shape or self.config.latent_shape
        sizes = [height * width for height, width in self.scales.shapes(latent)]
        if indices.dim() != 3 or indices.shape[1:] != (sum(sizes), c.groups):
            raise ValueError(
                f"indices must have shape (batch, {sum(sizes)}, {c.groups}) for latents {latent}, got "
                f"{tuple(indices.shape)}"
            )
        dtype, q = self.decoder.conv_in.weight.dtype, None
        for index, part in enumerate(indices.split(sizes, 1)):
            codes = self.quantizer.codes(part.unflatten(1, self.scales.shapes(latent)[index]), dtype)
            added = self.scales.enlarged(codes, index, latent)
            q = added if q is None else q + added
        return self.rendered(q, noise)

    def rendered(self, q: Tensor | None, noise: Tensor | None = None) -> Tensor:
        """Codes (B, groups * bits, h, w) -> images (B, C, H, W)."""
        assert q is not None
        if noise is not None and not self.config.generative:
            raise ValueError("noise is for a generative decoder: create the model with generative=True")
        if self.config.generative and noise is None:
            noise = torch.randn_like(q)
        return self.decoder(q, noise, self._run)

    def adapt_tensors(self, tensors: Mapping[str, Tensor], known: Any = None) -> dict[str, Tensor]:
        """Tensors of a plain model for a generative one: zeros for the noise, so that it decodes as before."""
        name, width = "decoder.conv_in.weight", self.config.code_dim
        weight = tensors.get(name)
        if not self.config.generative or weight is None or weight.dim() != 4 or weight.shape[1] != width:
            return dict(tensors)
        return {**tensors, name: torch.cat([weight, torch.zeros_like(weight)], 1)}

    def no_weight_decay(self) -> set[str]:
        """Nothing besides biases and norms."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each level in the backward pass instead of storing its activations."""
        self.grad_checkpointing = enable

    def _run(self, layer: nn.Module, x: Tensor) -> Tensor:
        return recompute(layer, x) if self.grad_checkpointing and self.training else layer(x)

    def _check(self, images: Tensor) -> None:
        c = self.config
        fits = images.dim() == 4 and images.shape[1] == c.in_chans
        fits = fits and not any(side % c.stride for side in images.shape[2:])
        if not fits or (c.scales and tuple(images.shape[2:]) != c.image_shape):
            sides = "the configuration's sides" if c.scales else f"sides that are multiples of {c.stride}"
            raise ValueError(f"images must have shape (batch, {c.in_chans}, height, width), {sides}, got "
                             f"{tuple(images.shape)}")  # fmt: skip
        if not images.is_floating_point():
            raise ValueError(f"images must be floating point, got {images.dtype}: scale to [0, 1] and normalise")


def generative(model: WeTok) -> WeTok:
    """The model with a decoder that reads noise, for the second stage of training: the same weights, and zeros for the
    noise, so that at first it decodes as before whatever the noise; the encoder is frozen. ``save_model`` writes it as
    any other; ``create_model(NAME, pretrained=True, generative=True)`` makes the same of weights without noise.

    Raises:
        ValueError: for a model that has such a decoder.
    """
    if model.config.generative:
        raise ValueError("the model has a generative decoder already")
    like = model.decoder.conv_in.weight
    made = WeTok(dataclasses.replace(model.config, generative=True)).to(like.device, like.dtype).train(model.training)
    made.load_state_dict(made.adapt_tensors(model.state_dict()))
    made.encoder.requires_grad_(False)
    for name in ("config_name", "source_folder"):  # what a saved model is known by
        if hasattr(model, name):
            setattr(made, name, getattr(model, name))
    return made


_register = partial(
    register_model, WeTok, task="image-tokenization", family="wetok",
    paper=Paper(
        "WeTok: Powerful Discrete Tokenization for High-Fidelity Visual Reconstruction", "2508.05599", 2025
    ),
)  # fmt: skip


def _digits(**options: Any) -> WeTokConfig:
    return WeTokConfig(
        img_size=8, in_chans=1, mean=(0.305,), std=(0.376,), dims=(16, 32), num_blocks=1, norm_groups=8, groups=2,
        bits=4, **options,
    )  # fmt: skip


@_register()
def wetok_nano():
    return _digits()


@_register()
def wetok_nano_generative():
    return _digits(generative=True)


@_register()
def wetok_scales_nano():
    return _digits(scales=(1, 2, 4))


@_register()
def wetok_shapes_nano():
    return WeTokConfig(
        img_size=16, in_chans=1, dims=(16, 32), num_blocks=1, norm_groups=8, groups=2, bits=4,
        scales=(1, 2, 3, 4, 6, 8), scale_decay=0.75, mean=(0.106,), std=(0.251,),
    )  # fmt: skip


@_register()
def wetok_24():
    return WeTokConfig(groups=8)


@_register()
def wetok_48():
    return WeTokConfig()


@_register()
def wetok_192():
    return WeTokConfig(dims=(256, 256, 512, 512, 1024))


@_register()
def wetok_768():
    return WeTokConfig(dims=(256, 256, 512, 512, 1024, 2048))
