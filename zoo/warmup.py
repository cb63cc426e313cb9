"""Compiling a model's kernels before the first real input."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import nn

from zoo.language.base import LanguageModel
from zoo.layers.precision import computes_in


def warmup(model: nn.Module, shapes: Sequence[tuple[int, ...]], *, training: bool = False) -> dict[tuple, float]:
    """Run ``model`` once for each shape, so that no later call waits for a kernel to be compiled or loaded.

    Language models also decode one token from a state. Weights, gradients, buffers, mode and random state stay as they
    are. Kernels compiled here are cached on disk as far as their compilers do so.

    Args:
        model: a language model (shapes are (batch, length)) or an image model ((batch, channels, height, width)).
        shapes: the input shapes to expect.
        training: also compile the backward kernels.

    Returns:
        shape -> seconds its first run took.

    Raises:
        ValueError: for a shape of another rank than the model's inputs.
    """
    rank = 2 if isinstance(model, LanguageModel) else 4
    for shape in shapes:
        if len(shape) != rank:
            layout = "(batch, length)" if rank == 2 else "(batch, channels, height, width)"
            raise ValueError(f"warmup: shapes of {type(model).__name__} must be {layout}, got {tuple(shape)}")
    modes = {module: module.training for module in model.modules()}
    model.eval()  # running statistics stay as they are; the kernels are the same
    try:
        return {tuple(shape): _run(model, shape, training) for shape in shapes}
    finally:
        for module, mode in modes.items():
            module.training = mode


def _run(model: nn.Module, shape: tuple[int, ...], training: bool) -> float:
    weights = [p for p in model.parameters() if p.requires_grad]
    first = computes_in(model)
    before = time.perf_counter()
    if isinstance(model, LanguageModel):
        x = torch.zeros(shape, dtype=torch.long, device=first.device)
        with torch.inference_mode():
            state = model.init_state(shape[0], shape[1] + 1)
            model(x, state)
            model(x[:, :1], state)
    else:
        x = torch.zeros(shape, dtype=first.dtype, device=first.device)
        with torch.inference_mode():
            model(x)
    if training and weights:
        with torch.enable_grad():
            loss = model(x, labels=x) if isinstance(model, LanguageModel) else model(x).float().square().mean()
            torch.autograd.grad(loss, weights, allow_unused=True)
    if first.device.type == "cuda":
        torch.cuda.synchronize(first.device)
    return time.perf_counter() - before
