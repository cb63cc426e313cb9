"""Numbers of any size as a distribution over bins, which are even on a scale that is logarithmic on both sides."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """sign(x) (exp(|x|) - 1), the inverse of ``symlog``."""
    return x.sign() * x.abs().expm1()


@dataclasses.dataclass(frozen=True)
class Bins:
    """``count`` places from -limit to limit on the scale of ``symlog``; a number is split over the two beside it.

    Paper: Hafner et al., "Mastering Diverse Domains through World Models", arXiv 2301.04104.
    """

    count: int
    limit: float

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers (...) to the index of the lower bin and the weight of the upper one; what is beyond the ends counts
        as the end."""
        place = (symlog(x).clamp(-self.limit, self.limit) + self.limit) / (2 * self.limit) * (self.count - 1)
        low = place.floor().clamp(0, self.count - 2)
        return low.long(), place - low

    def weights(self, x: Tensor) -> Tensor:
        """Numbers (...) to what they put into each bin (..., count); rows sum to 1."""
        low, high = self.split(x)
        weights = x.new_zeros(*x.shape, self.count).scatter(-1, low[..., None], (1 - high)[..., None])
        return weights.scatter(-1, low[..., None] + 1, high[..., None])

    def losses(self, logits: Tensor, x: Tensor) -> Tensor:
        """Cross-entropy (...) of logits (..., count) with the weights of numbers (...), which get no gradient."""
        low, high = self.split(x.detach())
        found = logits.log_softmax(-1)
        at = [found.gather(-1, index[..., None])[..., 0] for index in (low, low + 1)]
        return -((1 - high) * at[0] + high * at[1])

    def mean(self, logits: Tensor) -> Tensor:
        """Logits (..., count) to numbers (...): ``symexp`` of the mean place."""
        places = torch.linspace(-self.limit, self.limit, self.count, dtype=logits.dtype, device=logits.device)
        return symexp(logits.softmax(-1) @ places)
