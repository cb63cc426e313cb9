"""The residual block of the sequence classifiers made of S4."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from zoo.layers.sequence_block import SequenceBlock, SequenceNorm
from zoo.layers.ssm.s4 import S4


class S4Block(SequenceBlock):
    """x + branch(norm(x)), or norm(x + branch(x)), where branch is S4, dropout and stochastic depth.

    Args:
        dim: model width.
        norm: dim -> the norm: a batch norm, or ``nn.LayerNorm``.
        prenorm: norm before the mixer, or (False) after the sum.
        drop_rate: dropout after the mixer, and within it twice in a row, as in the authors' code.
        drop_path: rate of leaving the branch out.
        options: of ``S4``.
    """

    def __init__(
        self,
        dim: int,
        *,
        norm: Callable[[int], nn.Module] = SequenceNorm,
        prenorm: bool = True,
        drop_rate: float = 0.0,
        drop_path: float = 0.0,
        **options: Any,
    ):
        mixer = S4(dim, drop_rate=twice(drop_rate), **options)
        super().__init__(dim, mixer, norm=norm, prenorm=prenorm, drop_rate=drop_rate, drop_path=drop_path)


def twice(drop_rate: float) -> float:
    """The rate of two dropouts in a row as one."""
    return 1 - (1 - drop_rate) ** 2
