"""D2MoE: experts in several widths at once, and a second router that says which a token needs."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.layers.moe.experts import RoutedExperts
from zoo.layers.moe.widths import ExpertWidths
from zoo.layers.quant import Format, Record, install, matrices
from zoo.quantize.calibration import Calibration
from zoo.quantize.method import Method
from zoo.quantize.store import Store

NESTED = "nested"
BETWEEN = "precision"  # of a layer of experts: the attribute


@dataclasses.dataclass(frozen=True, kw_only=True)
class D2MoE(Method, name="d2moe", calibrated=True):
    r"""Experts in layout "nested", each token of each expert in one of the widths from ``base_bits`` to ``bits``.

    A router of each expert (``ExpertWidths``) learns which, while the outputs of all widths are mixed:

    .. math::
        \mathcal L = \mathrm{KL}(p^T \| p^S) + \frac{\alpha}{L} \sum_l \sum_k p_{lk} b_k

    with L layers of experts. Of all passes, all tokens in the largest width first, the one of the least loss is kept,
    of widths that are not mixed any more. All other matrices are integers of ``bits``.

    Paper: "D2MoE: Dual Routing and Dynamic Scheduling for Efficient On-Device MoE-based LLM Serving", arXiv 2504.15299.
    There codes are found with feedback. ``zoo.offload(model, policy="d2moe")`` reads the bits that are asked for.
    """

    spending: float = 0.01
    r""":math:`\alpha`: nats that a bit is worth."""
    epochs: int = 5
    """Passes over the calibration."""
    lr: float = 0.02
    """Of Adam, of the routers."""
    shares: tuple[float, ...] | None = None
    """Of the tokens that each width takes at most while the routers learn, such as the paper's (0.3, 0.4, 0.3) of
    widths from 2 to 4; None: all."""

    def __post_init__(self):
        super().__post_init__()
        count = self.bits - self.base_bits + 1
        if self.shares is not None and (len(self.shares) != count or not all(0 < c <= 1 for c in self.shares)):
            raise ValueError(
                f"shares must be {count} numbers in (0, 1], one for each width from {self.base_bits} to {self.bits}, "
                f"got {tuple(self.shares)}"
            )
        if self.epochs < 0 or self.lr <= 0 or self.spending < 0:
            raise ValueError(
                "epochs and spending must be at least 0 and lr above 0, got "
                f"{self.epochs}, {self.spending} and {self.lr}"
            )
        self._nested(self.format(self.bits))

    def prepare(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration | None, store: Store
    ) -> Mapping[str, Any]:
        """Whether a weight is of experts; their layers get their routers."""
        from zoo.changes import apply  # which reads what zoo.quantize writes

        assert calibration is not None
        experts = [name for name in names if isinstance(_layer(model, name), RoutedExperts)]
        if not experts:
            raise ValueError(f"d2moe takes a mixture of experts, {type(model).__name__} has none")
        store.expect(1)
        widths = tuple(range(self.base_bits, self.bits + 1))
        learnt = store.once("routers", lambda: self._learnt(model, experts, widths, calibration))
        apply(model, _change()(widths=widths))
        routers(model).load_state_dict(learnt)
        return dict.fromkeys(experts, NESTED)

    def record(self, matrix: Tensor, form: Format, known: Any) -> Record:
        """The nearest codes."""
        return Record.nearest(matrix, self._nested(form) if known == NESTED else form)

    def _nested(self, form: Format) -> Format:
        return dataclasses.replace(form, layout=NESTED, base_bits=self.base_bits)

    def format(self, columns: int) -> Format:
        """Of matrices that are not of experts."""
        return dataclasses.replace(super().format(columns), base_bits=Format.base_bits)

    def _learnt(
        self, model: nn.Module, experts: Sequence[str], widths: tuple[int, ...], calibration: Calibration
    ) -> dict[str, Tensor]:
        """State of the routers of the least loss."""
        taught = [output.detach().log_softmax(-1) for output in calibration.outputs(model)]
        student: Any = copy.deepcopy(model)
        _change()(widths=widths).install(student)
        install(student, {name: self._of(student, name) for name in experts})
        held, device = routers(student), next(model.parameters()).device
        pairs = list(zip(calibration.inputs, taught, strict=True))

        def loss(batch: Tensor, teacher: Tensor, soft: bool) -> Tensor:
            for router in held:
                router.soft, router.shares = soft, self.shares  # type: ignore[assignment]
            found = student(batch.to(device)).log_softmax(-1)
            spent: Any = [router.spent if soft else router.activity["bits"] for router in held]  # type: ignore[union-attr]
            return (teacher.exp() * (teacher - found)).sum(-1).mean() + self.spending * torch.stack(spent).mean()

        optimizer = torch.optim.Adam(held.parameters(), lr=self.lr)
        best, least = {}, torch.inf
        for epoch in range(self.epochs + 1):
            for batch, teacher in pairs if epoch else ():
                with torch.enable_grad():
                    loss(batch, teacher, soft=True).backward(inputs=list(held.parameters()))
                optimizer.step()
                optimizer.zero_grad()
            with torch.no_grad():
                found = sum(loss(batch, teacher, soft=False).item() for batch, teacher in pairs)
            if found < least:
                best, least = {name: t.clone() for name, t in held.state_dict().items()}, found
        return best

    def _of(self, model: nn.Module, name: str) -> Record:
        matrix = matrices(model, name)
        return self.record(matrix.float(), self.format(matrix.shape[-1]), NESTED)


def routers(model: nn.Module) -> nn.ModuleList:
    """Those that say widths, in order."""
    return nn.ModuleList(module for module in model.modules() if isinstance(module, ExpertWidths))


def _layer(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _change() -> Any:
    from zoo.expert_widths import ExpertWidthsOf  # a change, see above

    return ExpertWidthsOf
