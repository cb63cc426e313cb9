"""Rotary frequencies for contexts longer than those trained on."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Yarn:
    r"""YaRN: slow rotary channels are interpolated, fast ones kept, those between mixed along a line.

    .. math::
        \theta'_i = (1 - r_i) \theta_i + r_i \theta_i / \mathrm{factor}, \quad
        r_i = \mathrm{clip}((i - i_{fast}) / (i_{slow} - i_{fast}), 0, 1)

    with :math:`i_\beta` the channel that turns :math:`\beta` times within ``length`` positions. The logits' temperature
    is corrected by :math:`m(s) = 0.1 s \ln(\mathrm{factor}) + 1`.

    Args:
        factor: how many times longer the context is, at least 1.
        length: context of the training before.
        beta_fast, beta_slow: turns within ``length`` from which on channels are kept, below which interpolated.
        mscale: s of the rotation's magnitude.
        mscale_all_dim: s of the softmax scale; 0 for none.
        magnitude: of the rotation, in place of the one that follows from mscale and mscale_all_dim.

    Raises:
        ValueError: for a factor below 1 or a length below 1.

    Paper: Peng et al., "YaRN", arXiv 2309.00071, section 3; with the two scales of DeepSeek-V2, arXiv 2405.04434.
    """

    factor: float
    length: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0
    magnitude: float | None = None

    def __post_init__(self):
        if not self.factor >= 1 or self.length < 1:
            raise ValueError(f"yarn: factor and length must be at least 1, got {self.factor} and {self.length}")

    @property
    def rotation_scale(self) -> float:
        """What the rotated channels of queries and keys are multiplied by."""
        if self.magnitude is not None:
            return self.magnitude
        if self.mscale and self.mscale_all_dim:
            return self._m(self.mscale) / self._m(self.mscale_all_dim)
        return self._m(1.0)

    @property
    def softmax_scale(self) -> float:
        """What the logits are multiplied by."""
        return self._m(self.mscale_all_dim) ** 2

    def frequencies(self, frequency: Tensor, base: float) -> Tensor:
        """The unscaled frequencies base^(-i/P) of P channel pairs, (P,) -> (P,)."""
        pairs = frequency.shape[0]
        fast = max(math.floor(self._channel(self.beta_fast, pairs, base)), 0)
        slow = min(math.ceil(self._channel(self.beta_slow, pairs, base)), 2 * pairs - 1)
        index = torch.arange(pairs, device=frequency.device, dtype=frequency.dtype)
        ramp = ((index - fast) / (slow - fast if slow != fast else 0.001)).clamp(0, 1)
        return frequency * (1 - ramp) + frequency / self.factor * ramp

    def _m(self, scale: float) -> float:
        return 0.1 * scale * math.log(self.factor) + 1

    def _channel(self, turns: float, pairs: int, base: float) -> float:
        """The pair that turns so many times within the length."""
        return pairs * math.log(self.length / (turns * 2 * math.pi)) / math.log(base)
