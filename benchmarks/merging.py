"""What merging tokens and averaging keys save: MAELRE beside the same encoder without either, over length.

    zoo bench merging                                    # writes benchmarks/results/merging.{json,md}
    zoo bench merging --lengths 512 2048 --no-save

One row of tokens through the nano's encoder, of random weights, in float32. FLOPs are those of matrix products and
attention, as torch counts them; seconds are taken in turns, of a pass without gradients; peak memory above weights and
input is that of a training step, in a process of its own. Expectation, from the layers: with merging all three grow
linearly, without it FLOPs and seconds tend to the square of the length; memory does not in either, since torch's
attention keeps no matrix of scores.

The paper (arXiv 2507.19409) is known by its abstract alone: nothing here is compared with its figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import zoo
from zoo.benchmarks.common import (
    MIB,
    command_line,
    each,
    fitted_exponent,
    forward,
    fresh_peak,
    interleaved,
    medians,
    peak_memory,
    publish,
)

LENGTHS = (512, 1024, 2048, 4096, 8192)
SIDES: dict[str, dict[str, Any]] = {"plain": {"merge_rate": 0.0, "max_keys": None}, "merging": {}}


def build(side: str, device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    return zoo.create_model("maelre_nano", device=device, **SIDES[side]).eval()


def tokens(length: int, device: str = "cpu") -> Tensor:
    return (torch.arange(length, device=device) * 7 % 15)[None]


def flops(side: str, length: int) -> int:
    """Of one pass, counted without computing it."""
    with FlopCounterMode(display=False) as counter:
        forward(build(side, "meta"), tokens(length, "meta"))
    return counter.get_total_flops()


def step(model: nn.Module, read: Tensor) -> None:
    model(read).square().mean().backward()


def memory(side: str, length: int) -> int:
    """Peak bytes of a training step, in a process that has made a shorter one."""
    model = build(side).train()
    step(model, tokens(64))
    return peak_memory(partial(step, model, tokens(length)))


def measure(length: int, budget: float) -> dict[str, Any]:
    runs, _ = interleaved({side: partial(forward, build(side), tokens(length)) for side in SIDES}, budget=budget)
    return {
        "length": length,
        "flops": {side: flops(side, length) for side in SIDES},
        "seconds": medians(runs),
        "bytes": {side: fresh_peak(memory, side, length) for side in SIDES},
    }


UNITS = {"flops": ("MFLOP", 1e6), "seconds": ("ms", 1e-3), "bytes": ("MiB", MIB)}


def show(records: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Every measure of both sides, and the exponents over the lengths in the last row."""
    columns = ["tokens", *(f"{side}, {unit}" for unit, _ in UNITS.values() for side in SIDES)]
    rows = [
        [str(r["length"]), *(f"{r[what][side] / unit:,.1f}" for what, (_, unit) in UNITS.items() for side in SIDES)]
        for r in records
    ]
    if len(records) > 1:
        lengths = [r["length"] for r in records]
        grown = [[r[what][side] for r in records] for what in UNITS for side in SIDES]
        rows.append(["exponent", *(f"{fitted_exponent(lengths, values):.2f}" for values in grown)])
    return columns, rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("merging", __doc__, budget=5.0)
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    options = parser.parse_args(arguments)
    records = [measure(n, options.budget) for n in each(options.lengths)]
    title = "One row through maelre_nano, float32: FLOPs and time of a pass, memory of a training step"
    publish("merging", options, {"records": records}, (title, *show(records)))
