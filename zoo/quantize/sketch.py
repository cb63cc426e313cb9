"""Sketches: tables of numbers for each row, where the outputs of a layer depend on them most."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from zoo.kernels.lowbit_matmul import pack
from zoo.layers.quant import Format, Record
from zoo.layers.quant.layouts.table import sketch
from zoo.quantize.calibration import Calibration
from zoo.quantize.method import Method
from zoo.quantize.moments import mean_squares, second_moments
from zoo.quantize.store import Store


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sketch(Method, name="sketch", calibrated=True, any_layout=True):
    r"""Layout "table": of each row, or group of it, the :math:`2^b` numbers of the least
    :math:`\sum_c h_c (\hat w_c - w_c)^2` that k-means finds, h the mean square of each input on the calibration.

    What ``zoo.adapt(model, "sketchtune")`` tunes. The start, evenly spaced numbers, is among what is compared.

    Paper: Zhang et al., "Sketch to Adapt: Fine-Tunable Sketches for Efficient LLM Adaptation", arXiv 2410.06364, whose
    sketches also pass errors on (LeanQuant); that is not done here.
    """

    layout: str = "table"
    """The only one."""

    def __post_init__(self):
        super().__post_init__()
        if self.layout != "table":
            raise ValueError(f"sketch makes tables: its layout is 'table', got {self.layout!r}")

    def prepare(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration | None, store: Store
    ) -> Mapping[str, Any]:
        """The mean square of each input of each layer."""
        assert calibration is not None
        store.expect(1)
        return store.once("squares", lambda: mean_squares(second_moments(model, names, calibration)))

    def record(self, matrix: Tensor, form: Format, known: Any) -> Record:
        """Codes and tables."""
        q, table = sketch(matrix, form, known)
        return Record.holding(matrix.shape, form, {"codes": pack(q, form.bits), "table": table})
