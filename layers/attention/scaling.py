"""Rotary frequencies for contexts longer than those trained on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class RotaryScaling:
    """A change of the rotary frequencies; ``kind`` names it among the fields of a configuration."""

    kind: str = dataclasses.field(default="", init=False)

    def frequencies(self, frequency: Tensor, base: float) -> Tensor:
        """The unscaled frequencies base^(-i/P) of P channel pairs, (P,) -> (P,)."""
        raise NotImplementedError

    @property
    def rotation_scale(self) -> float:
        """What the rotated channels of queries and keys are multiplied by."""
        return 1.0

    @staticmethod
    def of(fields: Mapping[str, Any]) -> RotaryScaling:
        """The scaling that ``dataclasses.asdict`` made these fields of.

        Raises:
            ValueError: for an unknown kind.
        """
        options = dict(fields)
        kind = options.pop("kind", None)
        if kind not in SCALINGS:
            raise ValueError(f"the kind of a rotary scaling must be one of {', '.join(SCALINGS)}, got {kind!r}")
        return SCALINGS[kind](**options)

    def require_stretch(self, factor: float, length: float = 1) -> None:
        """Raise a ValueError for a factor or a length below 1."""
        if not factor >= 1 or length < 1:
            raise ValueError(f"{self.kind}: factor and length must be at least 1, got {factor} and {length}")


@dataclasses.dataclass(frozen=True)
class Linear(RotaryScaling):
    """Positions, and so all frequencies, are divided by ``factor``.

    Raises:
        ValueError: for a factor below 1.

    Paper: Chen et al., "Extending Context Window of Large Language Models via Positional Interpolation", arXiv
    2306.15595.
    """

    kind: str = dataclasses.field(default="linear", init=False)
    factor: float

    def __post_init__(self):
        self.require_stretch(self.factor)

    def frequencies(self, frequency: Tensor, base: float) -> Tensor:
        """See ``RotaryScaling``."""
        return frequency / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3(RotaryScaling):
    r"""Llama 3.1: channels that turn less than ``low`` times within ``length`` positions are interpolated, those that
    turn more than ``high`` times kept, those between mixed along a line in their turns.

    .. math::
        \theta'_i = (1 - r_i) \theta_i / \mathrm{factor} + r_i \theta_i, \quad
        r_i = \mathrm{clip}((\mathrm{length}\, \theta_i / 2 \pi - low) / (high - low), 0, 1)

    Args:
        factor: how many times longer the context is, at least 1.
        length: context of the training before.
        low, high: turns within ``length``.

    Raises:
        ValueError: for a factor or length below 1, or a ``high`` that is not above ``low``.

    Paper: Grattafiori et al., "The Llama 3 Herd of Models", arXiv 2407.21783; the rule is in the published code.
    """

    kind: str = dataclasses.field(default="llama3", init=False)
    factor: float = 8.0
    length: int = 8192
    low: float = 1.0
    high: float = 4.0

    def __post_init__(self):
        self.require_stretch(self.factor, self.length)
        if not self.high > self.low:
            raise ValueError(f"llama3: high must be above low, got {self.high} and {self.low}")

    def frequencies(self, frequency: Tensor, base: float) -> Tensor:
        """See ``RotaryScaling``."""
        turns = self.length * frequency / (2 * math.pi)
        kept = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return frequency / self.factor * (1 - kept) + frequency * kept


@dataclasses.dataclass(frozen=True)
class Yarn(RotaryScaling):
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
        truncate: the channels between which is mixed are whole numbers, rounded apart.

    Raises:
        ValueError: for a factor below 1 or a length below 1.

    Paper: Peng et al., "YaRN", arXiv 2309.00071, section 3; with the two scales of DeepSeek-V2, arXiv 2405.04434.
    """

    kind: str = dataclasses.field(default="yarn", init=False)
    factor: float
    length: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0
    magnitude: float | None = None
    truncate: bool = True

    def __post_init__(self):
        self.require_stretch(self.factor, self.length)

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
        """See ``RotaryScaling``."""
        pairs = frequency.shape[0]
        fast, slow = (self._channel(turns, pairs, base) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            fast, slow = math.floor(fast), math.ceil(slow)
        fast, slow = max(fast, 0), min(slow, 2 * pairs - 1)
        index = torch.arange(pairs, device=frequency.device, dtype=frequency.dtype)
        ramp = ((index - fast) / (slow - fast if slow != fast else 0.001)).clamp(0, 1)
        return frequency * (1 - ramp) + frequency / self.factor * ramp

    def _m(self, scale: float) -> float:
        return 0.1 * scale * math.log(self.factor) + 1

    def _channel(self, turns: float, pairs: int, base: float) -> float:
        """The pair that turns so many times within the length."""
        return pairs * math.log(self.length / (turns * 2 * math.pi)) / math.log(base)


SCALINGS: dict[str, type[RotaryScaling]] = {scaling.kind: scaling for scaling in (Linear, Llama3, Yarn)}
