"""Tensors without memory that stand for a CPU's: what a call would make there is told of them, without computing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_standing = ContextVar("standing", default=False)


@contextmanager
def as_on_cpu() -> Iterator[None]:
    """A block in which tensors on the meta device go every way that a CPU's go, also those that count no operations:
    small inputs by torch's functions, a step of decoding straight to C."""
    token = _standing.set(True)
    try:
        yield
    finally:
        _standing.reset(token)


def on_cpu(device: torch.device) -> bool:
    """Whether it is a CPU, or stands for one."""
    return device.type == "cpu" or (device.type == "meta" and _standing.get())
