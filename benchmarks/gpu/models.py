"""Whole models on a GPU in bfloat16: forward, a training step, decoding, and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from zoo.benchmarks.gpu.timing import seconds
from zoo.language import LanguageModel

Found = Iterator[dict[str, Any]]


def language(name: str, device: str, batch: int, length: int, budget: float) -> Found:
    """Tokens a second: of a forward and a training step over (batch, length), and decoding by one step a token."""
    model: Any = zoo.create_model(name, device=device, dtype=torch.bfloat16)
    assert isinstance(model, LanguageModel)
    tokens = torch.randint(model.config.vocab_size, (batch, length), device=device)
    yield {"batch": batch, "length": length, "parameters": sum(p.numel() for p in model.parameters())}
    yield from _measured(model, tokens.numel(), partial(model, tokens, labels=tokens), device, budget, "tokens/s")
    model.eval()
    for rows in (1, 64 if device == "cuda" else 2):
        state = model.init_state(rows, 4096)
        token = tokens.new_zeros(rows, 1)
        with torch.no_grad():
            model(tokens[:1, : min(length, 512)].expand(rows, -1), state)
            step = seconds(partial(model, token, state), device, min(budget, 1.0))
        yield {f"decode, batch {rows}, tokens/s": rows / step}


def vision(name: str, device: str, batch: int, budget: float) -> Found:
    """Images a second: of a forward and a training step."""
    model: Any = zoo.create_model(name, device=device, dtype=torch.bfloat16)
    size = (batch, model.config.in_chans, *model.config.image_shape)
    images = torch.randn(size, device=device, dtype=torch.bfloat16)
    yield {"batch": batch, "pixels": list(size[2:]), "parameters": sum(p.numel() for p in model.parameters())}
    yield from _measured(model, batch, lambda: model(images).float().square().mean(), device, budget, "images/s")


def _measured(model: nn.Module, items: int, loss: Callable[[], Tensor], device: str, budget: float, unit: str) -> Found:
    def train() -> None:
        loss().backward()
        for parameter in model.parameters():
            parameter.grad = None

    with torch.no_grad():
        yield {f"forward, {unit}": items / seconds(loss, device, budget)}
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    yield {f"training step, {unit}": items / seconds(train, device, budget)}
    if device == "cuda":
        yield {"training step, peak bytes": torch.cuda.max_memory_allocated()}
