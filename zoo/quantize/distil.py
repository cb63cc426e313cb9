"""What is learnt of a rounded model by comparing what it says with what the float model said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from zoo.quantize.blocks import as_weight
from zoo.quantize.calibration import Calibration, said

Values = Mapping[str, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


def first_names(model: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """Name of a weight -> the first name of the same weight; tied ones have several."""
    first = {id(model.get_parameter(name)): name for name in reversed(names)}
    return {name: first[id(model.get_parameter(name))] for name in names}


def learnt(
    model: nn.Module,
    calibration: Calibration,
    start: Values,
    rounded: Callable[[Values], Values],
    loss: Loss,
    *,
    epochs: int,
    lr: float,
    judge: Loss | None = None,
) -> dict[str, Tensor]:
    """The values of the least divergence from the model on the calibration, among all passes of Adam over it and the
    start.

    Args:
        model: what it says now is what is to be said; it is left as it is.
        calibration: inputs, whose outputs are logits (..., V).
        start: values before the first pass.
        rounded: values -> matrices (..., N, C) by the name of the weight, with a gradient.
        loss: of log-probabilities (..., V) of the rounded and of the float model, a scalar, which Adam lowers.
        epochs: passes; 0 gives the start.
        lr: of Adam.
        judge: what is compared between passes; None: ``loss``.

    Raises:
        ValueError: for a calibration of more than inputs, as diffusion models have it: they say no logits.
    """
    if any(not isinstance(batch, Tensor) for batch in calibration.batches):
        raise ValueError(f"what logits say is learnt, {type(model).__name__} makes none: take q_diffusion")
    values = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
    taught = [output.detach().log_softmax(-1) for output in calibration.outputs(model)]
    device = next(model.parameters()).device
    pairs = list(zip(calibration.inputs, taught, strict=True))

    def says(batch: Tensor) -> Tensor:
        given = {name: as_weight(model, name, matrix) for name, matrix in rounded(values).items()}
        return said(functional_call(model, given, (batch.to(device),))).log_softmax(-1)

    best, least, optimizer = dict(start), torch.inf, torch.optim.Adam(values.values(), lr=lr)
    for epoch in range(epochs + 1):
        for batch, teacher in pairs if epoch else ():
            with torch.enable_grad():
                loss(says(batch), teacher).backward(inputs=list(values.values()))
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            found = sum((judge or loss)(says(batch), teacher).item() for batch, teacher in pairs)
        if found < least:
            best, least = {name: value.detach().clone() for name, value in values.items()}, found
    return best
