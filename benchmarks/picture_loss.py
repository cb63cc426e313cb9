"""What models learn so that they read less of a picture: each the loss of answers under what is left of it.

Texts (B, T) begin with byte 0 and the places of a picture's features, as those of ``PicturesDataModule`` do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.benchmarks.picture_tokens import ALL, BUDGETS, woven


def drawn() -> int:
    """A number of tokens: one of the budgets."""
    return BUDGETS[int(torch.randint(len(BUDGETS), ()))]


def woven_loss(model: Any, images: Tensor, tokens: Tensor, labels: Tensor, progress: float) -> Tensor:
    """A picture is a chunk, what is said of it the next, which sees of it what is kept: a number that is drawn."""
    text = woven(model, images, drawn())
    said = torch.cat([tokens[:, :1], tokens[:, 1 + ALL :]], 1)
    return text.read(said, labels=torch.cat([labels[:, :1], labels[:, 1 + ALL :]], 1))
