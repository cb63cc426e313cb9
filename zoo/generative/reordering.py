"""Attention of image generators in orders of the tokens in which it is made of few blocks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zoo.changes import Change, apply
from zoo.generative.diffusion import DiffusionModel
from zoo.generative.dit import DiT
from zoo.generative.unet import Attention, UNet
from zoo.layers.attention.reordered import DenseProduct, ReorderedProduct, axis_orders, kept_blocks, unevenness

if TYPE_CHECKING:
    from zoo.quantize import Calibration


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReorderedAttention(Change, kind="reordered_attention"):
    """What ``reorder_attention`` did, but for the orders and masks, which are among the weights."""

    block_size: int = 64
    """Tokens of a block."""
    bits: int | None = None
    """See ``ReorderedProduct``."""

    def install(self, model: nn.Module) -> None:
        """Put a ``ReorderedProduct`` between the projections of each self-attention."""
        if self.block_size < 1 or (self.bits is not None and self.bits not in range(2, 9)):
            raise ValueError(
                f"block_size must be at least 1 and bits from 2 to 8 or None, got {self.block_size} and {self.bits}"
            )
        places = self_attentions(model)
        if any(isinstance(attention.product, ReorderedProduct) for attention, _ in places.values()):
            raise ValueError("the attention is reordered already: do it once, on the plain model")
        for attention, grid in places.values():
            made = ReorderedProduct(heads_of(attention), math.prod(grid), self.block_size, self.bits)
            device = next(attention.parameters()).device
            attention.product = made if device.type == "meta" else made.to(device)  # weights may yet be on their way


@torch.no_grad()
def reorder_attention(
    model: DiffusionModel,
    *,
    calibration: Calibration | None = None,
    block_size: int = 64,
    mass: float = 0.95,
    evenness: float = 0.5,
    reorder: bool = True,
    bits: int | None = None,
) -> DiffusionModel:
    r"""Put the tokens of each head of a diffusion model's self-attention in the order of the grid's axes in which its
    weights lie in the fewest and most even blocks, and skip the other blocks from then on, in place.

    Of each order of the axes, (F, H, W) have six and (H, W) two, with A the head's weights, averaged over calls,

    .. math:: (1 - e) \, d / d_{\max} + e \, u / u_{\max}

    with d the share of the blocks that hold ``mass`` of what each block of queries sees, u how far the largest weight
    of a block is above its mean, on average, and the largest over all orders below. The least one is taken.

    Args:
        model: a DiT or U-Net of ``zoo.generative``.
        calibration: what it is called with; None: ``Calibration.of_samples(model)``.
        block_size: tokens of a block.
        mass: share of the weights that is kept; 1 keeps everything.
        evenness: e, from 0 to 1.
        reorder: False: leave the tokens where they are, and only skip blocks.
        bits: of rounded queries, keys, values and weights, see ``ReorderedProduct``.

    Returns:
        ``model``. ``zoo.save_model`` keeps orders and masks.

    Raises:
        ValueError: for a model without such attention or that is reordered or compressed already, or options out of
            range.

    Paper: Zhao et al., "PAROAttention", arXiv 2506.16054. How its two scores are weighed is not in what we read; masks
    are of averaged weights as there.
    """
    from zoo.quantize import Calibration

    if not 0 < mass <= 1 or not 0 <= evenness <= 1:
        raise ValueError(f"mass must lie in (0, 1] and evenness in [0, 1], got {mass} and {evenness}")
    places = self_attentions(model)
    calibration = Calibration.of_samples(model) if calibration is None else calibration
    calibration.check(model)
    training = model.training
    with watched({name: attention for name, (attention, _) in places.items()}) as seen:
        calibration.run(model.eval())
    apply(model, ReorderedAttention(block_size=block_size, bits=bits))
    for name, (attention, grid) in places.items():
        product: Any = attention.product
        for head, weights in enumerate(seen[name].mean()):
            order = best_order(weights, grid, block_size, mass, evenness) if reorder else torch.arange(len(weights))
            product.order[head] = order
            product.seen[head] = kept_blocks(weights[order][:, order], block_size, mass)
    return model.train(training)


def best_order(weights: Tensor, grid: tuple[int, ...], block_size: int, mass: float, evenness: float) -> Tensor:
    """The order (T,) for the weights (T, T) of one head; the first of those that are as good."""
    orders = list(axis_orders(grid).values())
    moved = torch.stack([weights[order][:, order] for order in orders])
    density = kept_blocks(moved, block_size, mass).flatten(1).float().mean(1)
    uneven = unevenness(moved, block_size)
    score = (1 - evenness) * density / density.amax() + evenness * uneven / uneven.amax()
    return orders[int(score.argmin())]


def self_attentions(model: nn.Module) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Name of a self-attention -> its module and the grid of its tokens.

    Raises:
        ValueError: for a model without.
    """
    found: dict[str, tuple[Any, tuple[int, ...]]] = {}
    if isinstance(model, DiT):
        sides = tuple(length // model.config.patch_size for length in model.config.image_shape)
        found = {f"blocks.{index}.attn": (block.attn, sides) for index, block in enumerate(model.blocks)}  # type: ignore[misc]
    elif isinstance(model, UNet):
        for name, module in model.named_modules():
            if isinstance(module, Attention) and name.endswith(".attn1"):
                level = level_of(name, len(model.config.dims) - 1)
                found[name] = module, tuple(length // 2**level for length in model.config.image_shape)
    if not found:
        raise ValueError(f"reordering takes a DiT or a U-Net with self-attention, got {type(model).__name__}")
    return found


def level_of(name: str, last: int) -> int:
    """How often the resolution was halved where a module of a U-Net is."""
    part, index, *_ = name.split(".")
    return {"down_blocks": int, "up_blocks": lambda at: last - int(at)}.get(part, lambda at: last)(index)


def heads_of(attention: Any) -> int:
    """Of an attention of DiT or U-Net."""
    return attention.num_heads if hasattr(attention, "num_heads") else attention.to_q.out_features // attention.head_dim


class Watched(DenseProduct):
    """Attention that keeps the sum of its weights over images."""

    def __init__(self):
        super().__init__()
        self.total: Any = 0
        self.count = 0

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """As of ``DenseProduct``."""
        weights = ((q @ k.mT) / math.sqrt(q.shape[-1])).softmax(-1)
        self.total, self.count = self.total + weights.sum(0).float(), self.count + len(q)
        return super().forward(q, k, v, mask)

    def mean(self) -> Tensor:
        """(H, T, T)."""
        return self.total / self.count


@contextmanager
def watched(attentions: Mapping[str, Any]) -> Iterator[dict[str, Watched]]:
    """Within it the weights of these are summed."""
    before = {name: attention.product for name, attention in attentions.items()}
    seen = {name: Watched() for name in attentions}
    try:
        for name, attention in attentions.items():
            attention.product = seen[name]
        yield seen
    finally:
        for name, attention in attentions.items():
            attention.product = before[name]
