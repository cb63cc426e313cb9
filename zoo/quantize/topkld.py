"""TopKLD: weights that learn, rounded, what the float model says, its likeliest answers apart from all others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from zoo.divergence import TopK
from zoo.layers.quant import Format, Record, matrices
from zoo.layers.quant.rounded import Straight
from zoo.quantize.calibration import Calibration
from zoo.quantize.distil import Values, first_names, learnt
from zoo.quantize.method import Method
from zoo.quantize.store import Store


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopKLD(Method, name="topkld", calibrated=True, any_layout=True):
    r"""The whole model, rounded to nearest in any layout, learns the outputs of the float one by ``TopK``.

    The numbers that are rounded learn, with the gradient straight through rounding, and ranges follow them. Of all
    passes over the calibration, plain rounding among them, the one of the least divergence is kept.

    Paper: "Dissecting Bit-Level Scaling Laws in Quantizing Vision Generative Models", arXiv 2501.06218; what is
    learnt, and how, is not known to us beyond the divergence.
    """

    epochs: int = 10
    """Passes over the calibration."""
    lr: float = 3e-4
    """Of Adam, of the weights."""
    top_k: int = 16
    """See ``zoo.divergence.TopK``."""
    head: str = "forward"
    """See there."""
    tail: str = "reverse"
    """See there."""
    tail_weight: float = 1.0
    """See there."""

    def __post_init__(self):
        super().__post_init__()
        if self.epochs < 0 or self.lr <= 0:
            raise ValueError(f"epochs must be at least 0 and lr above 0, got {self.epochs} and {self.lr}")
        self.divergence()

    def divergence(self) -> TopK:
        """From the float model."""
        return TopK(top_k=self.top_k, head=self.head, tail=self.tail, tail_weight=self.tail_weight)

    def prepare(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration | None, store: Store
    ) -> Mapping[str, Any]:
        """The numbers (..., N, C) of each weight that are rounded in its place."""
        assert calibration is not None
        store.expect(1)
        first = first_names(model, names)
        found = store.once("weights", lambda: self._learnt(model, sorted(set(first.values())), calibration))
        return {name: found[first[name]] for name in names}

    def record(self, matrix: Tensor, form: Format, known: Any) -> Record:
        """The nearest codes of what was learnt."""
        return Record.nearest(matrix if known is None else known, form)

    def _learnt(self, model: nn.Module, names: Sequence[str], calibration: Calibration) -> dict[str, Tensor]:
        start = {name: matrices(model, name).float().contiguous() for name in names}
        divergence = self.divergence()

        def rounded(values: Values) -> dict[str, Tensor]:
            return {name: self._rounded(matrix) for name, matrix in values.items()}

        def loss(student: Tensor, teacher: Tensor) -> Tensor:
            return divergence(student, teacher).mean()

        return learnt(model, calibration, start, rounded, loss, epochs=self.epochs, lr=self.lr)

    def _rounded(self, matrix: Tensor) -> Tensor:
        record = Record.nearest(matrix.detach(), self.format(matrix.shape[-1]))
        return Straight.apply(matrix, record.dequantise())  # type: ignore[return-value]
