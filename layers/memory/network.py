"""The memory of Titans: a small network whose weights go down the gradient of what they should have returned."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.common.chunks import decay_between
from zoo.layers.options import require_above, require_at_least
from zoo.layers.ssm.state_space import wide


class Learned(NamedTuple):
    """What the steps so far have made of a memory, a tensor (B, H, in, out) a layer.

    Attributes:
        change: of the weights, from the initial ones.
        momentum: S.
        anchor: the change at the chunk's start, where its gradients are taken.
    """

    change: list[Tensor]
    momentum: list[Tensor]
    anchor: list[Tensor]


class Gates(NamedTuple):
    """Of n steps, (B, H, n): the rate theta, log(1 - alpha) and log(eta)."""

    rate: Tensor
    log_decay: Tensor
    log_momentum: Tensor


class Effects(NamedTuple):
    """What becomes of the weights W and the momentum S before n steps, and of their gradients: after every step

    .. math::
        M_t = \\mathrm{kept}_t W + \\mathrm{moved}_t S - \\sum_j \\mathrm{taken}_{tj} \\nabla_j
    """

    kept: Tensor  # (B, H, n, 1)
    moved: Tensor  # (B, H, n, 1)
    taken: Tensor  # (B, H, n, n), lower triangular
    carried: Tensor  # (B, H, 1, 1), of S to the momentum after all steps
    added: Tensor  # (B, H, n, 1), of the gradients to it, with a minus

    @classmethod
    def of(cls, gates: Gates, valid: Tensor | None) -> Effects:
        """Of steps of which those are none where ``valid`` (B, n) is False."""
        rate, decay, momentum = gates
        if valid is not None:
            real = valid[:, None]
            rate, decay, momentum = (gate.where(real, 0.0) for gate in gates)
        kept, between = decay_between(decay), decay_between(momentum)
        if valid is not None:
            kept = kept * valid[:, None, None]
        passed = momentum.cumsum(-1).exp()[..., None]
        return cls(
            decay.cumsum(-1).exp()[..., None],
            kept @ passed,
            (kept @ between) * rate[..., None, :],
            passed[..., -1:, :],
            (between[..., -1, :] * rate)[..., None],
        )


class MemoryNetwork(nn.Module):
    r"""A network M of ``depth`` matrices with GELU between, one for each head, that learns from each step.

    .. math::
        \ell(M; k, v) = \tfrac12 |M(k) - v|^2, \quad
        S_t = \eta_t S_{t-1} - \theta_t \nabla \ell(M_c; k_t, v_t), \quad M_t = (1 - \alpha_t) M_{t-1} + S_t, \quad
        y_t = M_t(q_t)

    where c is the step before the chunk's first: the gradients of a chunk are all taken at the weights that it begins
    with, so that its steps are computed at once; with chunks of one step c = t - 1. The gradients are formulas that
    autograd differentiates again, so the outer loss teaches the initial weights, keys, values and gates how to learn.

    Args:
        num_heads: heads H.
        dim: channels of a head's queries, keys and values.
        depth: matrices.
        expand: width between them over dim.
        clip: largest norm of a step's gradient by a matrix; None for no limit. Deeper memories may diverge without.

    Paper: Behrouz, Zhong and Mirrokni, "Titans", arXiv 2501.00663, section 3.
    """

    def __init__(self, num_heads: int, dim: int, depth: int, expand: int, clip: float | None = None):
        super().__init__()
        if clip is not None:
            require_above(0, clip=clip)
        self.clip = clip
        require_at_least(1, num_heads=num_heads, dim=dim, depth=depth, expand=expand)
        widths = [dim, *[expand * dim] * (depth - 1), dim]
        self.weights = nn.ParameterList(
            torch.empty(num_heads, *sides).uniform_(-(sides[0] ** -0.5), sides[0] ** -0.5) for sides in pairwise(widths)
        )

    @property
    def numbers(self) -> int:
        """Weights of all heads."""
        return sum(weight.numel() for weight in self.weights)

    def initial(self) -> list[Tensor]:
        """The weights (H, in, out) before the first step, in float32 or wider."""
        return [wide(weight) for weight in self.weights]

    def unpack(self, flat: Tensor) -> list[Tensor]:
        """(B, numbers) to a tensor (B, H, in, out) a layer."""
        parts = flat.split([weight.numel() for weight in self.weights], dim=-1)
        return [part.unflatten(-1, weight.shape) for part, weight in zip(parts, self.weights, strict=True)]

    def pack(self, layers: list[Tensor]) -> Tensor:
        """The inverse of ``unpack``."""
        return torch.cat([layer.flatten(1) for layer in layers], dim=-1)

    def recall(self, change: list[Tensor], q: Tensor) -> Tensor:
        """M(q) for q (B, H, n, dim), without learning."""
        for index, (weight, moved) in enumerate(zip(self.initial(), change, strict=True)):
            q = (F.gelu(q) if index else q) @ (weight + moved)
        return q

    def learn(
        self, past: Learned, q: Tensor, k: Tensor, v: Tensor, gates: Gates, valid: Tensor | None = None
    ) -> tuple[Tensor, Learned]:
        """n steps that lie in one chunk.

        Args:
            past: before them.
            q, k, v: (B, H, n, dim), float32 or wider.
            gates: of the steps.
            valid: (B, n), False where there is no step, None for everywhere.

        Returns:
            y (B, H, n, dim), each from the weights after its step, and what has been learned with the old anchor.
        """
        initial, effects = self.initial(), Effects.of(gates, valid)
        inputs, errors = self._gradients([w + a for w, a in zip(initial, past.anchor, strict=True)], k, v)
        changes, momenta, y = [], [], q
        for index, (start, change, momentum, x, error) in enumerate(
            zip(initial, past.change, past.momentum, inputs, errors, strict=True)
        ):
            y, weight = F.gelu(y) if index else y, start + change
            gradient = effects.taken[..., -1:, :].mT * x, effects.added * x  # of the last weights and the momentum
            new = effects.kept[..., -1:, :] * weight + effects.moved[..., -1:, :] * momentum - gradient[0].mT @ error
            changes.append(new - start)
            y = effects.kept * (y @ weight) + effects.moved * (y @ momentum) - (effects.taken * (y @ x.mT)) @ error
            momenta.append(effects.carried * momentum - gradient[1].mT @ error)
        return y, Learned(changes, momenta, past.anchor)

    def _gradients(self, weights: list[Tensor], k: Tensor, v: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Of each step's loss by each matrix, as what the matrix multiplied and the gradient of what came of it."""
        inputs, sums = [k], []
        for weight in weights:
            sums.append(inputs[-1] @ weight)
            inputs.append(F.gelu(sums[-1]))
        errors = [sums[-1] - v]
        for weight, total in zip(weights[:0:-1], sums[-2::-1], strict=True):
            errors.insert(0, (errors[0] @ weight.mT) * _gelu_slope(total))
        return inputs[:-1], [self._clipped(x, error) for x, error in zip(inputs, errors, strict=False)]

    def _clipped(self, x: Tensor, error: Tensor) -> Tensor:
        """The gradients of the products of x (..., in), small enough that those by the matrix, x^T error, are too."""
        if self.clip is None:
            return error
        norm = x.norm(dim=-1, keepdim=True) * error.norm(dim=-1, keepdim=True)
        return error * (self.clip / norm.clamp(min=self.clip))


def _gelu_slope(x: Tensor) -> Tensor:
    """The derivative of GELU."""
    normal = torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * normal
