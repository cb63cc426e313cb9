"""LayerCast: weights of sixteen bits, everything else in float32."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import torch
from torch import Tensor, nn

from zoo.changes import Change, apply, changes_of
from zoo.layers.quant import compressible
from zoo.layers.quant.between import put_between

Model = TypeVar("Model", bound=nn.Module)
DTYPES = ("bfloat16", "float16")


class Widened(nn.Module):
    """The weight in float32, for as long as a layer computes with it."""

    def forward(self, weight: Tensor) -> Tensor:
        """A copy."""
        return weight.float()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerCast(Change, kind="layer_cast"):
    """``Widened`` before the matrices of linear layers, experts and convolutions, and after the rows of embeddings."""

    dtype: str = "bfloat16"

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"weights are kept in {' or '.join(DTYPES)}, got {self.dtype!r}")

    def install(self, model: nn.Module) -> None:
        """Narrow the weights, in place; tied ones stay tied."""
        if any(isinstance(change, LayerCast) for change in changes_of(model)):
            raise ValueError("the weights are kept in sixteen bits already")
        named = compressible(model)
        if wrong := {name: weight.dtype for name, weight in named.items() if weight.dtype != torch.float32}:
            raise ValueError(f"layer_cast takes a model in float32, got {next(iter(wrong.items()))}")
        for weight in named.values():
            weight.data = weight.data.to(getattr(torch, self.dtype))
        put_between(model, named, lambda name: Widened())


def layer_cast(model: Model, dtype: str = "bfloat16") -> Model:
    """Keep the weights of a model in sixteen bits and compute in float32, in place.

    Matrices of linear layers, experts, convolutions and embeddings are stored narrow and widened where they are used,
    one at a time; activations, caches, positions, norms and logits are float32. The outputs are those of the float32
    model with the rounded weights, bit for bit wherever the same product runs (a step of a plain model on the CPU has
    one of its own), so greedy text does not depend on how narrow sums were rounded. On CUDA leave
    ``torch.backends.cuda.matmul.allow_tf32`` off. ``zoo.save_model`` keeps it so.

    Args:
        model: of ``create_model``, in float32.
        dtype: "bfloat16" or "float16".

    Returns:
        ``model``.

    Raises:
        ValueError: for another dtype, or a model that is not in float32 or was changed so already.

    Paper: Yuan et al., "Give Me FP32 or Give Me Death? Challenges and Solutions for Reproducible Reasoning",
    arXiv 2506.09501.
    """
    apply(model, LayerCast(dtype=dtype))
    return model
