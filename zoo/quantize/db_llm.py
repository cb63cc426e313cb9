"""DB-LLM: two planes of zeros and ones, whose scales learn what the float model says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.kernels.binary_matmul import pack_planes
from zoo.layers.quant import Format, Record, matrices
from zoo.layers.quant.layouts.binary import dual_bits
from zoo.layers.quant.layouts.layout import SCALES, in_groups, largest, stored
from zoo.quantize.calibration import Calibration
from zoo.quantize.distil import Values, first_names, learnt
from zoo.quantize.method import Method
from zoo.quantize.store import Store


@dataclasses.dataclass(frozen=True, kw_only=True)
class DBLLM(Method, name="db_llm", calibrated=True):
    r"""Two bits a weight as :math:`\hat w = \alpha_1 b_1 + \alpha_2 b_2` with b in {0, 1}, and both scales learnt.

    They start at the levels -s, 0, s and 2 s with :math:`s = \max |w| / 2`. Then the whole model learns the outputs of
    the float one, each prediction weighted by how unsure both are of it,

    .. math::
        \mathcal L = \sum_t \frac{(H^T_t H^S_t)^\gamma}{\mathrm{mean}} \; \mathrm{KL}(p^T_t \| p^S_t)

    and of all passes, the start among them, the one of the least mean KL on the calibration is kept. Bits follow the
    scales: each weight takes its nearest level, without a gradient.

    Paper: Chen et al., "DB-LLM: Accurate Dual-Binarization for Efficient LLMs", arXiv 2402.11960. How it weights by
    entropy is published in words alone; the formula here is ours.
    """

    bits: int = 2
    """Two."""
    epochs: int = 10
    """Passes over the calibration."""
    lr: float = 1e-2
    """Of Adam, of the logarithms of the scales."""
    deviation: float = 1.0
    r""":math:`\gamma`; 0 weights all predictions alike."""

    def __post_init__(self):
        super().__post_init__()
        if self.epochs < 0 or self.lr <= 0 or self.deviation < 0:
            raise ValueError(
                "epochs and deviation must be at least 0 and lr above 0, got "
                f"{self.epochs}, {self.deviation} and {self.lr}"
            )

    def format(self, columns: int) -> Format:
        """Of layout "dual_binary"."""
        return dataclasses.replace(super().format(columns), layout="dual_binary")

    def prepare(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration | None, store: Store
    ) -> Mapping[str, Any]:
        """Logarithms by which the scales of each weight (..., N, G, 2) have grown."""
        assert calibration is not None
        store.expect(1)
        return store.once("scales", lambda: self._learnt(model, names, calibration))

    def record(self, matrix: Tensor, form: Format, known: Any) -> Record:
        """The levels nearest to each weight."""
        first = first_scales(matrix, form)
        alpha = (first if known is None else first * known.exp()).to(SCALES[form.scale_dtype])
        planes = pack_planes(dual_bits(in_groups(matrix, form), alpha.float()).flatten(-2))
        return Record.holding(matrix.shape, form, {"planes": planes, "alpha": alpha})

    def _learnt(self, model: nn.Module, names: Sequence[str], calibration: Calibration) -> dict[str, Tensor]:
        first_name = first_names(model, names)
        held = {name: matrices(model, name).float() for name in dict.fromkeys(first_name.values())}
        forms = {name: self.format(matrix.shape[-1]) for name, matrix in held.items()}
        first = {name: first_scales(matrix, forms[name]) for name, matrix in held.items()}

        def rounded(logs: Values) -> dict[str, Tensor]:
            return {name: _rounded(held[name], first[name] * logs[name].exp(), forms[name]) for name in held}

        found = learnt(
            model, calibration, {name: torch.zeros_like(alpha) for name, alpha in first.items()}, rounded,
            partial(deviation_aware, gamma=self.deviation), epochs=self.epochs, lr=self.lr,
            judge=partial(deviation_aware, gamma=0.0),
        )  # fmt: skip
        return {name: found[first_name[name]].clone() for name in names}


def first_scales(matrix: Tensor, form: Format) -> Tensor:
    """2 s and -s (..., N, G, 2) of each group."""
    first = stored(largest(matrix, form), form).float()
    return torch.stack([first, -first / 2], -1)


def deviation_aware(student: Tensor, teacher: Tensor, gamma: float) -> Tensor:
    """The mean divergence of log-probabilities (..., V) from a teacher's, weighted by both entropies to a power; no
    gradient goes through the weights."""
    divergence = (teacher.exp() * (teacher - student)).sum(-1)
    if gamma == 0:
        return divergence.mean()
    sure = [-(p.detach().exp() * p.detach()).sum(-1) for p in (teacher, student)]
    weight = (sure[0] * sure[1]).clamp(min=0) ** gamma
    return (weight * divergence).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)


def _rounded(matrix: Tensor, alpha: Tensor, form: Format) -> Tensor:
    """What the record will stand for; with a gradient for the scales."""
    kept = alpha + (alpha.to(SCALES[form.scale_dtype]).to(alpha) - alpha).detach()
    bits = dual_bits(in_groups(matrix, form), kept.detach()).to(matrix)  # (..., N, 2, G, S)
    return (bits * kept.mT[..., None]).sum(-3).flatten(-2)
