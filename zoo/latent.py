"""Experts of a model behind latent spaces that they share."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from torch import nn

from zoo.changes import Change, apply
from zoo.layers.moe.experts import RoutedExperts
from zoo.layers.moe.latent import LatentMatrix

Model = TypeVar("Model", bound=nn.Module)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentExperts(Change, kind="latent_experts"):
    """Matrices of experts in latent form; the fields are those of ``latent_experts``."""

    rank: int = 1
    group_size: int | None = None
    out_rank: int | None = None

    def install(self, model: nn.Module) -> None:
        """Put fresh factors in the place of all experts' matrices."""
        layers = _layers(model)
        if not layers:
            raise ValueError(f"latent_experts takes a model with layers of experts, {type(model).__name__} has none")
        made = [layer.latent_matrices(self.rank, self.group_size, self.out_rank) for layer in layers]
        for layer, matrices in zip(layers, made, strict=True):
            layer.replace_matrices(matrices)


def latent_experts(
    model: Model,
    rank: int,
    group_size: int | None = None,
    *,
    out_rank: int | None = None,
    expert_rank: int | None = None,
) -> Model:
    r"""Put the experts' matrices into latent form, in place: W_e = B_g A_e with B shared by a group (MoLAE).

    .. math::
        \min_{A, B} \sum_{e \in g} \lVert W_e - B_g A_e \rVert_F^2

    B are the leading singular vectors of a group's matrices side by side, and what is lost are its other singular
    values. Routers stay as they are. For the groups' experts E r F + G D r numbers stand for E D F of each of the two
    matrices into gated experts. The change is saved with the model.

    Args:
        model: any module with layers of experts.
        rank: r, the width of the latent spaces; nothing is lost at min(D, group_size F).
        group_size: neighbouring experts that share one; None for all.
        out_rank: of latent spaces out of the experts, on the same principle (this library's own); None: the matrices
            out of the experts stay.
        expert_rank: the paper's first step: each expert's matrix is cut to this rank by itself beforehand; None: not.

    Returns:
        The model.

    Raises:
        ValueError: for a model without experts, or whose experts are compressed or latent, a group_size that does not
            divide the experts, or a rank above what loses nothing. Nothing is changed then.

    Paper: Liu et al., "MoLAE: Mixture of Latent Experts for Parameter-Efficient Language Models", arXiv 2503.23100.
    """
    layers = _layers(model)
    before = [{name: getattr(layer, name) for name in ("w1", "w3", "w2")} for layer in layers]
    apply(model, LatentExperts(rank=rank, group_size=group_size, out_rank=out_rank))
    for layer, matrices in zip(layers, before, strict=True):
        for name, matrix in matrices.items():
            latent = getattr(layer, name)
            if isinstance(latent, LatentMatrix):
                latent.solve(matrix, expert_rank)
    return model


def _layers(model: nn.Module) -> list[RoutedExperts]:
    return [module for module in model.modules() if isinstance(module, RoutedExperts)]
