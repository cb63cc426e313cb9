"""BAQ: each matrix gets as many bits as its errors deserve, within a budget."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.layers.quant import Format, Record, matrices, set_matrices
from zoo.quantize.calibration import Calibration, model_outputs
from zoo.quantize.feedback import feedback_codes
from zoo.quantize.method import Method
from zoo.quantize.moments import second_moments
from zoo.quantize.rounding import grid
from zoo.quantize.store import Store

WIDTHS = range(1, 9)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BAQ(Method, name="baq", calibrated=True):
    r"""Bits where they lower the loss most, and rounding with feedback.

    With the loss of part l falling as :math:`n_l c_l 2^{-2 R_l}` over its rate R, n numbers in it and
    :math:`\sum_l n_l R_l` given, the best rates leave every number the same loss:

    .. math::
        R_l = R_0 + \frac{1}{2} \log_2 \frac{c_l}{\mathrm{GM}(c)}

    Parts are whole matrices here, since a record has one width, and the rates integers from 1 to 8; in the paper they
    are columns with a number of levels that need not be a power of two. c comes from how the outputs of the model
    change when one matrix alone is rounded to ``bits``. Of this division and the same bits for all, the one that
    changes the outputs less is kept. Embeddings and convolutions in groups are rounded without feedback.

    Paper: "BAQ: Efficient Bit Allocation Quantization for Large Language Models", arXiv 2506.05664; the feedback:
    Frantar et al., "GPTQ", arXiv 2210.17323.
    """

    budget: float | None = None
    """Mean bits of a code, in [1, 8]; None: ``bits``."""

    def __post_init__(self):
        super().__post_init__()
        if self.budget is not None and not 1 <= self.budget <= 8:
            raise ValueError(f"budget must lie in [1, 8] bits, got {self.budget}")
        if self.group_rows != 1:
            raise ValueError(f"baq finds codes for each row: group_rows must be 1, got {self.group_rows}")

    def prepare(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration | None, store: Store
    ) -> Mapping[str, Any]:
        """Bits and the second moment of the inputs of each weight."""
        assert calibration is not None
        first = {id(model.get_parameter(name)): name for name in reversed(names)}
        parts = list(reversed(first.values()))
        store.expect(len(parts) + 2)
        moments = store.once("moments", lambda: second_moments(model, names, calibration))
        expected = model_outputs(model, calibration)

        def loss(widths: Mapping[str, int]) -> dict[str, Tensor]:
            return {"loss": self._loss(model, widths, moments, calibration, expected)}

        losses = {name: store.once(f"loss {name}", lambda name=name: loss({name: self.bits})) for name in parts}
        sizes = {name: model.get_parameter(name).numel() for name in parts}
        per_number = {name: found["loss"].item() / sizes[name] for name, found in losses.items()}
        bits = self._chosen(divided(per_number, sizes, self.bits, self.budget or self.bits), sizes, loss, store)
        return {name: (bits[first[id(model.get_parameter(name))]], moments.get(name)) for name in names}

    def _chosen(self, found: dict[str, int], sizes: Mapping[str, int], loss: Any, store: Store) -> dict[str, int]:
        """The division that was found, or the same bits for all where these do better within the budget."""
        same = dict.fromkeys(sizes, int(self.budget or self.bits))
        compared = store.once("loss of all", lambda: {"found": loss(found)["loss"], "same": loss(same)["loss"]})
        return found if compared["found"] <= compared["same"] else same

    def record(self, matrix: Tensor, form: Format, known: Any) -> Record:
        """Codes with feedback, in the bits of this weight."""
        bits, moment = known
        form = dataclasses.replace(form, bits=bits)
        scale, zero = grid(matrix, form)
        return Record.of(feedback_codes(matrix, scale, zero, form, moment), scale, zero, form)

    def _loss(
        self,
        model: nn.Module,
        widths: Mapping[str, int],
        moments: Mapping[str, Tensor],
        calibration: Calibration,
        expected: Tensor,
    ) -> Tensor:
        """The mean squared change of the outputs by rounding some weights; the model is left as it was."""
        kept = {name: model.get_parameter(name).data for name in widths}
        try:
            for name, bits in widths.items():
                matrix = matrices(model, name).float()
                form = self.format(matrix.shape[-1])
                set_matrices(model, name, self.record(matrix, form, (bits, moments.get(name))).dequantise())
            return (model_outputs(model, calibration) - expected).square().mean()
        finally:
            for name, data in kept.items():
                model.get_parameter(name).data = data


def rates(losses: Mapping[str, float], sizes: Mapping[str, int], mean: float) -> dict[str, float]:
    r"""The real rates :math:`R_l` of that mean over all numbers which leave each number the same loss.

    Args:
        losses: c of a number of each part, positive.
        sizes: numbers of each part.
        mean: :math:`R_0`.
    """
    total = sum(sizes.values())
    halves = {name: torch.tensor(loss, dtype=torch.float64).log2().item() / 2 for name, loss in losses.items()}
    middle = sum(sizes[name] * half for name, half in halves.items()) / total
    return {name: mean + half - middle for name, half in halves.items()}


def divided(losses: Mapping[str, float], sizes: Mapping[str, int], bits: int, budget: float) -> dict[str, int]:
    """Integer bits in [1, 8] of each part: one after another where the loss of a number falls most, while the mean is
    no more than the budget.

    Args:
        losses: of a number of each part at ``bits``; it is taken to fall fourfold with a bit.
        sizes: numbers of each part.
        bits: see there.
        budget: mean bits of all numbers.
    """
    left = budget * sum(sizes.values()) - sum(sizes.values())
    found = dict.fromkeys(losses, WIDTHS[0])
    waiting = [(-loss * 4.0 ** (bits - WIDTHS[0]), name) for name, loss in losses.items()]
    heapq.heapify(waiting)
    while waiting:
        gain, name = heapq.heappop(waiting)
        if sizes[name] > left:
            continue
        left -= sizes[name]
        found[name] += 1
        if found[name] < WIDTHS[-1]:
            heapq.heappush(waiting, (gain / 4, name))
    return found
