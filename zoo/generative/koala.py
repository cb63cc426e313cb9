r"""U-Nets made smaller: which blocks of a large one a small one keeps, and what its blocks learn of them.

A small U-Net has fewer pairs of residual block and transformer a stage, shorter transformers and perhaps no middle. It
begins with the blocks of the large one that it keeps: the first pairs on the way down, on the way up the first ones and
the last, which alone reads what a finer stage made, and of each transformer the first blocks, as later ones change
little. It learns the large one's velocities and what its attention of the image over itself makes,

.. math:: L = |v_S - v|^2 + \lambda_o |v_S - v_T|^2 + \lambda_f \sum_l |A_S^l - A_T^l|^2

with means for the squares, of images that both see with the same noise, time and class.

Paper: Lee et al., "KOALA: Self-Attention Matters in Knowledge Distillation of Latent Diffusion Models for
Memory-Efficient and Fast Image Synthesis", arXiv 2312.04005. The weights of the three terms are not published; 1 here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoo.generative.unet import UNet, UNetConfig

LAYER = re.compile(r"(up_blocks\.\d+\.(?:resnets|attentions)\.)(\d+)")
# what is compared -> the modules whose outputs these are, by name
SITES: dict[str, re.Pattern[str]] = {
    "self_attention": re.compile(r".*\.attn1"),
    "cross_attention": re.compile(r".*\.attn2"),
    "feed_forward": re.compile(r".*\.transformer_blocks\.\d+\.ff"),
    "residual": re.compile(r".*\.resnets\.\d+"),
    "last": re.compile(r"conv_norm_out"),
}


def check_kept(small: UNetConfig, large: UNetConfig) -> None:
    """Raise a ValueError where a small U-Net's blocks are no part of a large one's."""
    same = ("dims", "head_dim", "context_dim", "context_tokens", "pooled_dim", "in_chans", "num_classes", "norm_groups")
    apart = [f"{name} {getattr(small, name)} and {getattr(large, name)}" for name in (*same, "image_shape", "path")
             if getattr(small, name) != getattr(large, name)]  # fmt: skip
    if apart:
        raise ValueError(f"a smaller U-Net of a larger one needs the same fields as it, got {', '.join(apart)}")
    deeper = small.num_layers > large.num_layers or any(
        a > b or (a > 0) != (b > 0) for a, b in zip(small.depths, large.depths, strict=True)
    )
    if deeper or (small.mid_depth or 0) > (large.mid_depth or 0):
        raise ValueError(
            "a smaller U-Net has no more blocks than the larger one, and transformers where that has some, got "
            f"num_layers {small.num_layers} of {large.num_layers}, depths {small.depths} of {large.depths}, mid_depth "
            f"{small.mid_depth} of {large.mid_depth}"
        )


def origin(name: str, small: UNetConfig, large: UNetConfig) -> str:
    """The large U-Net's name of a module or tensor of the small one."""

    def place(found: re.Match[str]) -> str:
        index = int(found[2])
        return found[1] + str(large.num_layers if index == small.num_layers else index)

    return LAYER.sub(place, name)


def inherit(small: UNet, large: UNet) -> UNet:
    """The small U-Net with the large one's weights in the blocks that it keeps.

    Raises:
        ValueError: for models of other fields, or a small one that is no part of the large one.
    """
    check_kept(small.config, large.config)
    tensors = large.state_dict()
    small.load_state_dict({name: tensors[origin(name, small.config, large.config)] for name in small.state_dict()})
    return small


def matched(small: UNet, large: UNet, site: str = "self_attention") -> dict[str, str]:
    """Names of the small U-Net's modules at a site -> those of the large one's that they learn of.

    Raises:
        ValueError: for another site than those of ``SITES``.
    """
    if site not in SITES:
        raise ValueError(f"features must be one of {', '.join(SITES)}, got {site!r}")
    check_kept(small.config, large.config)
    names = [name for name, _ in small.named_modules() if SITES[site].fullmatch(name)]
    return {name: origin(name, small.config, large.config) for name in names}


@contextmanager
def outputs(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Name -> what these modules make in the passes within."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            found[name] = output

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def distances(
    small: UNet, large: UNet, x: Tensor, t: Tensor, classes: Tensor, pairs: dict[str, str]
) -> tuple[Tensor, Tensor, Tensor]:
    """The small U-Net's velocity (B, C, H, W), its mean squared distance from the large one's, and the sum of those of
    what the matched modules make. The large one has no gradients.

    Args:
        x, t, classes: as of ``velocity``, the same for both; num_classes for a class that is hidden.
    """
    with torch.no_grad(), outputs(large, pairs.values()) as taught:
        target = large.velocity(x, t, classes)
    with outputs(small, pairs) as learnt:
        made = small.velocity(x, t, classes)
    parts = [(learnt[own] - taught[other]).square().mean() for own, other in pairs.items()]
    features = torch.stack(parts).sum() if parts else made.new_zeros(())
    return made, (made - target).square().mean(), features
