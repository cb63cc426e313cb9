"""What a computation depends on besides its inputs, so that it can be repeated: autocast and random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor


def autocast_mode(device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Makes the present autocast mode, without its cache of cast weights: one filled without gradients has none."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind):
        return nullcontext
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return partial(torch.autocast, kind, dtype=dtype, enabled=enabled, cache_enabled=False)


def random_state(device: torch.device) -> list[Tensor]:
    """States of the generators that a computation on ``device`` may draw from."""
    states = [torch.get_rng_state()]
    if device.type not in ("cpu", "meta"):
        states.append(torch.get_device_module(device).get_rng_state(*_which(device)))
    return states


def if_drawn(before: list[Tensor], device: torch.device) -> list[Tensor] | None:
    """``before``, from ``random_state``, where a computation has drawn since; else None, as for ``replayed``."""
    drawn = any(not torch.equal(a, b) for a, b in zip(before, random_state(device), strict=True))
    return before if drawn else None


@contextmanager
def replayed(states: list[Tensor] | None, device: torch.device) -> Iterator[None]:
    """Within it the generators are in ``states``, if any; afterwards as they were."""
    if states is None:
        yield
        return
    present = random_state(device)
    try:
        _set_random_state(states, device)
        yield
    finally:
        _set_random_state(present, device)


def _set_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.get_device_module(device).set_rng_state(states[1], *_which(device))


def _which(device: torch.device) -> tuple[torch.device, ...]:
    """The argument that names a device to its module; that of mps knows one device and takes none."""
    return () if device.type == "mps" else (device,)
