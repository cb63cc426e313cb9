"""Mamba and Mamba-2 on this CPU: ours beside transformers' module, same configuration, same weights, one run.

    zoo bench layers                  # writes benchmarks/results/layers.json and layers.md
    zoo bench layers --layers mamba2 --lengths 2048 --no-save

For each layer and length: one forward, one training step (forward and backward) and one decode step, timed in turns;
the peak memory of a forward and of a training step, each in a process of its own; the first call, with nothing cached
on disk; how far the outputs and the gradients of the two differ; and the exponent of time over length.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from multiprocessing import TimeoutError
from typing import Any

import torch
from torch import Tensor, nn

from zoo.benchmarks.common import (
    MIB,
    command_line,
    fitted_exponent,
    forward,
    in_fresh_process,
    interleaved,
    medians,
    over_length,
    peak_memory,
    publish,
    telling,
)
from zoo.benchmarks.peers import apart

DIM = 768
SWEEP = (512, 1024, 2048, 4096, 8192)
STEPS = 50  # decode steps timed together
PEER, OURS = "transformers", "zoo"
# measure -> least ratio transformers / zoo that the project asks for
TARGETS = {
    "mamba": {"forward": 4.0, "training step": 10.0, "decode step": 1.0, "memory": 1.0},
    "mamba2": {"forward": 3.0, "training step": 2.0, "decode step": 1.0, "memory": 1.0},
}
FIRST_CALL_LIMIT, EXPONENT_LIMIT = 10.0, 1.1
LIMIT = 300.0  # seconds a single call may take; the backward of transformers' Mamba grows with the square of T


def peer_config(layer: str) -> Any:
    """transformers' configuration of one block at the size of the published 130M models."""
    if layer == "mamba":
        from transformers import MambaConfig

        return MambaConfig(hidden_size=DIM, num_hidden_layers=1, state_size=16, conv_kernel=4, expand=2)
    from transformers import Mamba2Config

    return Mamba2Config(hidden_size=DIM, num_hidden_layers=1, state_size=128, num_heads=24, head_dim=64, n_groups=1)


def build(layer: str, side: str) -> nn.Module:
    """The layer of one side; both sides hold the same weights."""
    from transformers import logging
    from transformers.models.mamba.modeling_mamba import MambaMixer
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    logging.set_verbosity_error()  # it warns at every forward that its CUDA kernels are not installed
    torch.manual_seed(0)
    peer = (MambaMixer if layer == "mamba" else Mamba2Mixer)(peer_config(layer), layer_idx=0)
    if side == PEER:
        return peer

    from zoo.layers.ssm import Mamba, Mamba2

    ours = (Mamba if layer == "mamba" else Mamba2)(DIM)
    ours.load_state_dict(peer.state_dict())
    return ours


def sequence(length: int) -> Tensor:
    return torch.randn(1, length, DIM, generator=torch.Generator().manual_seed(length))


def training_step(module: nn.Module, x: Tensor) -> Tensor:
    """Forward and backward; returns the gradient of the input."""
    module.zero_grad(set_to_none=True)
    x = x.detach().requires_grad_()
    module(x).square().mean().backward()
    assert x.grad is not None
    return x.grad


MEASURES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {"forward": forward, "training step": training_step}


def decode_step(layer: str, side: str, module: nn.Module) -> Callable[[], Tensor]:
    """A call that advances the side's own state by one token; the state already holds a short prefix."""
    prefix, token = sequence(16), sequence(1)
    if side == OURS:
        state: Any = module.init_state(1, max_length=None)  # pyright: ignore[reportCallIssue]
        forward(with_state(module, state), prefix)
        return partial(forward, with_state(module, state), token)

    from transformers import DynamicCache

    cache = DynamicCache(config=peer_config(layer))
    with torch.no_grad():
        module(prefix, cache_params=cache)

    def step() -> Tensor:
        with torch.no_grad():
            return module(token, cache_params=cache)

    return step


def with_state(module: nn.Module, state: Any) -> Any:
    return lambda x: module(x, state)


def timed_first_call(layer: str, side: str) -> dict[str, float]:
    """Seconds of the first forward and the first training step in a process; imports and building are not in it."""
    module, x = build(layer, side), sequence(256)
    seconds = {}
    for name, call in MEASURES.items():
        before = time.perf_counter()
        call(module, x)
        seconds[name] = time.perf_counter() - before
    return seconds


def once(layer: str, side: str, length: int, measure: str) -> dict[str, Any]:
    """One call in a fresh process: its seconds, its peak bytes above the weights and the input, and its result."""
    module, x, call = build(layer, side), sequence(length), MEASURES[measure]
    call(module, sequence(32))  # what a process loads once is not the call's
    found: dict[str, Any] = {}

    def timed() -> None:
        before = time.perf_counter()
        found["result"] = call(module, x).detach().numpy()
        found["seconds"] = time.perf_counter() - before

    found["bytes"] = peak_memory(timed)
    return found


def limited(layer: str, side: str, length: int, measure: str) -> dict[str, Any]:
    """``once``, ended after LIMIT seconds: then only the seconds are known, as a lower bound."""
    try:
        return in_fresh_process(once, layer, side, length, measure, timeout=LIMIT)
    except TimeoutError:
        return {"seconds": LIMIT}


def compare(layer: str, lengths: list[int], sides: list[str], budget: float, tick: Callable[[str], None]) -> list[dict]:
    """One record per length and measure: each side's figure."""
    modules = {side: build(layer, side) for side in sides}
    records = []
    for length in lengths:
        for measure, call in MEASURES.items():
            tick(f"{layer} T {length}: {measure}")
            first = {side: limited(layer, side, length, measure) for side in sides}
            quick = [side for side in sides if first[side]["seconds"] < 3 * budget]
            runs, results = interleaved({s: partial(call, modules[s], sequence(length)) for s in quick}, budget=budget)
            for side in set(sides) - set(quick):  # one call takes minutes: the one in the fresh process is all there is
                runs[side] = [first[side]["seconds"]]
                if "result" in first[side]:
                    results[side] = torch.from_numpy(first[side]["result"])
            record = {"layer": layer, "length": length, "ended": [s for s in sides if "result" not in first[s]]}
            records.append(record | {"measure": measure, "runs": runs, "apart": difference(results)})
            if not record["ended"]:
                peaks = {side: first[side]["bytes"] for side in sides}
                records.append(record | {"measure": f"{measure} memory", "bytes": peaks})
    tick(f"{layer}: decode step")
    steps = {side: decode_step(layer, side, module) for side, module in modules.items()}
    runs, results = interleaved({side: partial(repeat, step, STEPS) for side, step in steps.items()}, budget=budget)
    runs, apart = {side: [t / STEPS for t in taken] for side, taken in runs.items()}, difference(results)
    records.append({"layer": layer, "length": 1, "measure": "decode step", "runs": runs, "apart": apart})
    return records


def repeat(call: Callable[[], Tensor], times: int) -> Tensor:
    """The last of several results."""
    for _ in range(times - 1):
        call()
    return call()


def difference(results: dict[str, Tensor]) -> float:
    """Largest difference between the sides, as a share of the peer's largest value."""
    peer = results.get(PEER, next(iter(results.values())))
    return max(apart(other, peer) for other in results.values())


def sweep(layer: str, sides: list[str], budget: float, tick: Callable[[str], None]) -> list[dict]:
    """Time over length, and its exponent: the forward of both sides, the training step of ours."""
    modules, records = {side: build(layer, side) for side in sides}, []
    for measure, call in MEASURES.items():
        who = [side for side in sides if measure == "forward" or side == OURS]
        curves: dict[str, list[float]] = {side: [] for side in who}
        for length in SWEEP:
            tick(f"{layer} T {length}: {measure} over length")
            runs, _ = interleaved({s: partial(call, modules[s], sequence(length)) for s in who}, budget=budget / 2)
            for side in who:
                curves[side].append(statistics.median(runs[side]))
        for side, curve in curves.items():
            exponent = fitted_exponent(SWEEP, curve)
            records.append(
                {"layer": layer, "side": side, "measure": measure, "lengths": SWEEP, "seconds": curve, "p": exponent}
            )
    return records


def show_comparison(records: list[dict], sides: list[str]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for r in records:
        unit, scale = ("ms", 1e3) if "runs" in r else ("MiB", 1 / MIB)
        values = r["bytes"] if "bytes" in r else medians(r["runs"])
        target = TARGETS[r["layer"]]["memory" if "bytes" in r else r["measure"]]
        ratio = values[PEER] / values[OURS] if len(sides) == 2 else float("nan")
        over = {side: "over " if side in r.get("ended", ()) else "" for side in sides}  # the call was ended at LIMIT
        rows.append(
            [
                f"{r['layer']} {r['measure']}" + (f", T {r['length']}" if r["length"] > 1 else "") + f" ({unit})",
                *(f"{over[side]}{values[side] * scale:,.1f}" for side in sides),
                f"{over.get(PEER, '')}{ratio:.2f}x",
                f"{target:g}x",
                "yes" if ratio >= target else "no",
                str(min(map(len, r["runs"].values()))) if "runs" in r else "1",
                f"{r['apart']:.1e}" if "apart" in r else "",
            ]
        )
    return ["measure", *sides, "ratio", "target", "met", "runs", "difference"], rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("layers", __doc__, budget=10.0)
    parser.add_argument("--layers", nargs="+", default=["mamba2", "mamba"], choices=["mamba", "mamba2"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 2048])
    parser.add_argument("--sides", nargs="+", default=[PEER, OURS], choices=[PEER, OURS])
    parser.add_argument("--no-sweep", action="store_true", help="leave out time over length")
    options = parser.parse_args(arguments)
    if PEER in options.sides:
        import_module("transformers")  # told before anything is measured

    compared, swept, first = [], [], []
    with telling() as say:
        for layer in options.layers:
            say(f"{layer}: first call")
            for side in options.sides:
                with tempfile.TemporaryDirectory() as cache:
                    seconds = in_fresh_process(timed_first_call, layer, side, environment={"ZOO_CACHE": cache})
                    first.append({"layer": layer, "side": side, "seconds": seconds})
            compared += compare(layer, options.lengths, options.sides, options.budget, say)
            if not options.no_sweep:
                swept += sweep(layer, options.sides, options.budget, say)

    curves = {f"{r['layer']} {r['side']}, {r['measure']}": r["seconds"] for r in swept}
    tables = [
        (f"Layers, dim {DIM}, batch 1, float32", *show_comparison(compared, options.sides)),
        (
            "First call in a process, nothing cached on disk",
            ["layer", "forward", "training step", "limit"],
            [
                [f"{r['layer']} {r['side']}", *(f"{s:.2f} s" for s in r["seconds"].values()), f"{FIRST_CALL_LIMIT:g} s"]
                for r in first
            ],
        ),
        over_length("layer", SWEEP, curves, EXPONENT_LIMIT),
    ]
    found = {"comparison": compared, "first_call": first, "over_length": swept}
    publish("layers", options, found, *tables)
