r"""How much of what steps wrote is left, in chunks: what the implementations by chunks share.

What step j writes has the share :math:`A_{ij}` in the memory M after step i and :math:`E_{ij}` in the momentum S, as
have M and S before the chunk:

.. math::
    A = \Gamma E, \quad M_i = \gamma_i M + f_i S + \sum_{j \le i} A_{ij} k_j w_j^\top, \quad
    f = \Gamma \epsilon, \quad S_i = \epsilon_i S + \sum_{j \le i} E_{ij} k_j w_j^\top

with :math:`\Gamma_{ij}, E_{ij}` the decay and the momentum from after step j to after step i, and
:math:`\gamma, \epsilon` those from before the chunk.

Source: the closed form of Behrouz et al., "Titans", arXiv 2501.00663, section 3.2, with each gradient at the newest
weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.common.chunks import LOWEST, decays_of, in_chunks


class Shares(NamedTuple):
    """Of c chunks of C steps, 0 between sequences; last axes of 2 are M and S.

    Attributes:
        taken: A (B, c, H, C, C), lower triangular.
        before: A of the step before, which a step's error reads, strictly lower.
        read: gamma and f (B, c, H, C, 2).
        error: those of the step before.
        written: of each step in M and S behind the chunk (B, c, H, C, 2).
        across: of M in M, of S in M and of S in S behind it (B, c, H, 3).
    """

    taken: Tensor
    before: Tensor
    read: Tensor
    error: Tensor
    written: Tensor
    across: Tensor


def shares_of(log_decay: Tensor, log_momentum: Tensor, starts: Tensor | None, size: int) -> Shares:
    """Of gates (B, T, H) and, where there are several, the starts of sequences (B, T), in chunks of ``size``."""
    gates = (in_chunks(gate.clamp(min=LOWEST)[..., None], size) for gate in (log_decay, log_momentum))
    segments = None if starts is None else in_chunks(starts[:, :, None, None].cumsum(1), size, "last")
    decay, carry = (decays_of(gate, segments, gate) for gate in gates)
    taken = decay.within @ carry.within
    read = torch.cat([decay.from_start, decay.within @ carry.from_start], dim=-1)
    end = (log_decay.shape[1] - 1) % size  # of the last chunk, behind which the momentum would go on

    def last(x: Tensor) -> Tensor:
        return torch.cat([x[:, :-1, :, -1], x[:, -1:, :, end]], dim=1)

    written = torch.stack([last(taken), last(carry.within)], dim=-1)
    across = torch.cat([last(read), last(carry.from_start)], dim=-1)
    before, error = F.pad(taken[..., :-1, :], (0, 0, 1, 0)), F.pad(read[..., :-1, :], (0, 0, 1, 0))
    error = error + F.pad(torch.ones_like(error[..., :1, :1]), (0, 1, 0, size - 1))  # nothing has decayed yet
    if segments is not None:
        first = F.pad(segments[:, :-1, :, -1:], [0, 0, 0, 0, 0, 0, 1, 0])
        before, error = before * (segments == segments.mT), error * (segments == first)
    return Shares(taken, before, read, error, written, across)
