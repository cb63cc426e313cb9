"""Experts of ConPET: adapters and a head of their own, over one frozen model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from zoo.adapt import own_names
from zoo.language import LanguageModel


class Features(nn.Module):
    """What a model makes of an input before it is read out, (B, D): of a language model at the last token that is not
    ``pad``, behind the others. It is in eval mode always."""

    def __init__(self, model: Any, pad: int | None = None):
        super().__init__()
        self.model, self.pad = model, pad
        self.eval()

    def train(self, mode: bool = True) -> Features:
        """It stays as it is."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, T) or images -> (B, D)."""
        model: Any = self.model
        if isinstance(model, LanguageModel):
            y = model.forward_norm(model.forward_residual(x))
            if self.pad is None:
                return y[:, -1]
            place = torch.arange(x.shape[1], device=x.device)
            last = (place * (x != self.pad)).amax(1)
            return y[torch.arange(len(y), device=y.device), last]
        return model.forward_head(model.forward_features(x), pre_logits=True)

    @property
    def dim(self) -> int:
        """D."""
        known: Any = self.model
        return known.config.dim if isinstance(known, LanguageModel) else known.num_features


class Expert(nn.Module):
    """Adapters and a linear head of their own, over a frozen model that many share.

    Args:
        features: of the adapted model.
        classes: rows of the head.
    """

    def __init__(self, features: Features, classes: int):
        super().__init__()
        names = set(own_names(features.model))
        held = {f"model.{name}": p for name, p in features.model.named_parameters() if name in names}
        self.names = list(held)
        self.tensors = nn.ParameterList(nn.Parameter(p.detach().clone()) for p in held.values())
        like = next(features.parameters())
        self.head = nn.Linear(features.dim, classes, device=like.device, dtype=like.dtype)

    def read(self, features: Features, x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.head(functional_call(features, dict(zip(self.names, self.tensors, strict=True)), (x,)))

    def grow(self, classes: int) -> None:
        """So many rows more; those that there are stay."""
        old, like = self.head, self.head.weight
        self.head = nn.Linear(old.in_features, old.out_features + classes, device=like.device, dtype=like.dtype)
        with torch.no_grad():
            self.head.weight[: old.out_features], self.head.bias[: old.out_features] = old.weight, old.bias
