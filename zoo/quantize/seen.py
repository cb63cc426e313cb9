"""What a model was calibrated on, in a few numbers: enough to notice that it is scored on the same."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

SEEN = "seen"  # in what ``config.json`` says of the method
WINDOW = 32  # tokens that one number stands for
FIRST, MOST = 16, 512  # of so many numbers of a text one is kept, or fewer, so that there are no more
SHARE, LEAST = 0.1, 4  # of the numbers of either, and how many of them, that are no chance
BASE, SPREAD = 6364136223846793005, 1442695040888963407


def fingerprint(batches: Iterable[Tensor]) -> dict[str, Any]:
    """Numbers that tell whether other inputs are among these: {"every": one of how many, "numbers": in hexadecimals}.

    A number stands for 32 tokens in a row, wherever they begin, or for an image.
    """
    numbers = torch.cat([_numbers(batch) for batch in batches]).unique()
    every = 1 if len(numbers) <= LEAST * FIRST else FIRST
    while len(kept := numbers[numbers % every == 0]) > MOST:
        every *= 2
    return {"every": every, "numbers": "".join(f"{number & (1 << 64) - 1:016x}" for number in kept.tolist())}


def share_seen(known: Mapping[str, Any], numbers: Tensor) -> float:
    """How much of what is known of a calibration is among the numbers of other inputs, or the other way round, if that
    is more; 0 for what may be chance."""
    text = known["numbers"]
    held = {int(text[start : start + 16], 16) for start in range(0, len(text), 16)}
    found = {number & (1 << 64) - 1 for number in numbers[numbers % known["every"] == 0].unique().tolist()}
    both = len(held & found)
    return both / min(len(held), len(found)) if both >= min(LEAST, len(held)) > 0 else 0.0


@contextmanager
def held_out(model: nn.Module) -> Iterator[None]:
    """Within it a model is scored: warn at the end where its inputs are those that it was calibrated on."""
    known = getattr(model, "quantization", {}).get(SEEN)
    if known is None:
        yield
        return
    found: list[Tensor] = []

    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        found.extend(_numbers(x) for x in given[:1])

    handle = model.register_forward_pre_hook(see, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
    if found and (share := share_seen(known, torch.cat(found))) >= SHARE:
        warnings.warn(
            f"{share:.0%} of what the model is scored on, or of what it was calibrated on, is in both: the score is "
            "not that of unseen data. Quantise it with other data (zoo.quantize(..., calibration=)), or score others",
            stacklevel=3,
        )


def _numbers(batch: Tensor) -> Tensor:
    """(n,) int64: of tokens (..., T) one for each window in a row, of others one for each along the first axis."""
    batch = batch.detach().cpu()
    if batch.is_floating_point():
        bits = batch.float().contiguous().flatten(1).view(torch.int32).long()
        return _mixed((bits * _mixed(torch.arange(bits.shape[1]))).sum(1))
    rows = batch.long().reshape(-1, batch.shape[-1])
    count = max(0, rows.shape[1] - WINDOW + 1)
    found = rows.new_zeros(len(rows), count)
    for place in range(WINDOW if count else 0):
        found = found * BASE + rows[:, place : place + count] + 1
    return _mixed(found.flatten())


def _mixed(x: Tensor) -> Tensor:
    """As if drawn: every bit depends on all bits below."""
    for shift in (32, 29, 32):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * BASE + SPREAD
    return x ^ (x >> 32 & (1 << 32) - 1)
