"""Linear time-invariant state spaces of one token."""

from __future__ import annotations

import torch
from torch import nn

from zoo.kernels.step_program import Value
from zoo.layers.ssm.s4 import S4, S4Kernel
from zoo.layers.ssm.s4d import S4D, S4DKernel
from zoo.layers.ssm.state_space import StateSpaceMixer, StateSpaceState
from zoo.layers.step.binders import Held, Recurrent
from zoo.layers.step.writer import Writer, describes


@describes(S4, S4D)
def _state_space(p: Writer, m: StateSpaceMixer, x: Value) -> Value:
    p.expect(m.kernel, S4Kernel, S4DKernel)
    p.expect(m.drop, nn.Dropout)
    with torch.no_grad():
        a, b, c, *feedback = m.kernel.recurrence()  # type: ignore[operator]
    low_rank = [part for part in feedback if part is not None]
    y, modes = p.modes(x, (a, b, c), low_rank, m.D, m.kernel.parameters())
    p.bind(Recurrent(p, StateSpaceState, Held("x", modes, 10)))
    value, gate = p.call(m.output_linear, p.glu(y, None, "gelu")).split(y.width, y.width)
    return p.glu(gate, value, "sigmoid")
