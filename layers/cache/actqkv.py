"""Blocks of the past, asked for by the queries that stand out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zoo.layers.cache.infllm import InfLLM
from zoo.layers.options import require_above


@dataclass(frozen=True)
class ActQKV(InfLLM):
    r"""As ``InfLLM``, but a chunk asks with a probe in which the queries that stand out weigh most.

    .. math:: p_h = \sum_t w_t q_{h, t}, \quad w = \mathrm{softmax}_t (b_t / \tau), \quad
              b_t = \frac{\lVert q_t - \bar q \rVert}{\mathrm{mean}_s \lVert q_s - \bar q \rVert}

    with :math:`\bar q` the mean of the chunk, and norms over all heads. The paper calls b the activation bias of a
    token; its formula was not to be had, so this is one choice: a subclass may give another ``bias``. The paper's
    budgets that differ between layers are not here: a mapping gives each layer a policy of its own.

    Args:
        init, local, block, top_k, representatives, chunk: of ``InfLLM``.
        temperature: tau; large for the mean query.

    Raises:
        ValueError: for a temperature of 0 or less, and see ``InfLLM``.

    Paper: Xiao et al., "Activation-aware Probe-Query", arXiv 2502.13542.
    """

    paper: ClassVar[str] = "2502.13542"

    temperature: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        require_above(0, temperature=self.temperature)

    def bias(self, q: Tensor, real: Tensor) -> Tensor:
        """Of queries (B, H, T, d), (B, T)."""
        distance = (q - super().probe(q, real)[:, :, None]).square().sum((1, 3)).sqrt() * real
        return distance / (distance.sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)).clamp(min=1e-12)

    def probe(self, q: Tensor, real: Tensor) -> Tensor:
        """See ``InfLLM``."""
        bias = (self.bias(q, real) / self.temperature).masked_fill(~real, -torch.inf)
        return (q * bias.softmax(1).nan_to_num(0.0)[:, None, :, None].to(q.dtype)).sum(2)
