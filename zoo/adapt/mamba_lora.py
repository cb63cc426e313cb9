"""LoRA on the matrices that make the parameters of Mamba's recurrences."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import nn

from zoo.adapt.lora import LoRA
from zoo.layers.adapt import before
from zoo.layers.ssm.steps import selective

FUSED = ("in_proj", "x_proj")  # what makes dt, B, C, x and z, several of them by one matrix
RECURRENT = ("A_log", "D", "dt_bias")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MambaLoRA(LoRA, kind="mamba_lora"):
    r"""LoRA on what makes the parameters of Mamba and Mamba-2 recurrences, of any model that has such mixers.

    in_proj makes x and z, with Mamba-2 also B, C and :math:`\Delta`; Mamba's x_proj makes what :math:`\Delta`, B and C
    are made of. One adapter on such a matrix is an adapter on each of its parts that share A:

    .. math:: W + B A = [W_1 + B_1 A; \dots; W_n + B_n A]

    Paper: Halloran et al., "Mamba State-Space Models Are Lyapunov-Stable Learners", arXiv 2406.00209.
    """

    output: bool = False
    """Also on out_proj."""
    ssm: bool = False
    """A, D and the bias of the step size learn too, all of them."""

    def chosen(self, model: nn.Module) -> dict[str, Any]:
        """The matrices of the mixers, or the layers that ``targets`` name."""
        found = super().chosen(model)
        parts = (*FUSED, "out_proj") if self.output else FUSED
        wanted = {f"{before(model, name)}.{part}" for name in selective(model) for part in parts}
        return found if self.targets else {name: layer for name, layer in found.items() if name in wanted}

    def own(self, model: nn.Module) -> Iterator[str]:
        """With ``ssm`` what the recurrences have of their own, too."""
        yield from super().own(model)
        learns = set()
        for name, mixer in selective(model).items() if self.ssm else ():
            parts = RECURRENT if hasattr(mixer, "dt_bias") else (*RECURRENT, "dt_proj.bias")
            learns |= {f"{before(model, name)}.{part}" for part in parts}
        yield from (name for name in model.state_dict() if before(model, name) in learns)
