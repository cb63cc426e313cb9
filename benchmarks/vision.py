"""Hierarchical vision models on this CPU: ours beside timm's eager model with the same weights, one run.

    zoo bench vision                  # writes benchmarks/results/vision.json, vision.md and vision.png
    zoo bench vision --models shvit_s1 --batches 1 --no-save

For each model and batch size: the forward pass of timm's model and of ours, each as built and in channels_last, and of
ours with ``deploy=True``, timed in turns on the same images; how far their logits differ; and the peak memory of one
pass, each in a process of its own. All are in eval mode, without gradients, in float32. (timm can fuse its SHViT, and
none of the other models here; that is not measured.) MambaVision and VMamba, which timm does not have and whose
authors' code needs a GPU, are ours alone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import zoo
from zoo.benchmarks.common import (
    MIB,
    command_line,
    forward,
    fresh_peak,
    interleaved,
    medians,
    peak_memory,
    publish,
    telling,
)
from zoo.benchmarks.peers import apart, random_statistics
from zoo.benchmarks.tables import panels

SIZE = 224  # pixels
PASSES = 8  # images of a timed run, at least
MODELS = (
    "shvit_s1", "shvit_s4", "efficientvit_m2", "efficientvit_m5", "ese_vovnet19b_dw", "ese_vovnet39b", "mambavision_t",
    "vmamba_tiny_s1l8",
)  # fmt: skip
PEER, OURS, DEPLOYED = "timm", "zoo", "zoo deploy"
LAST = " channels_last"
SIDES = (PEER, PEER + LAST, OURS, OURS + LAST, DEPLOYED)


def sides(name: str) -> tuple[str, ...]:
    """Those of a model: ours alone where timm has none."""
    import timm

    return SIDES if timm.is_model(name) else SIDES[2:]


def build(name: str, side: str) -> nn.Module:
    """The model of one side in eval mode; all sides hold the same weights, with statistics as after training."""
    import timm

    torch.manual_seed(0)
    shared = PEER in sides(name)
    model = random_statistics(timm.create_model(name) if shared else zoo.create_model(name, img_size=SIZE))
    if shared and not side.startswith(PEER):
        peer, model = model, zoo.create_model(name, img_size=SIZE)
        zoo.load_weights(model, peer.state_dict(), "timm's model")
    if side == DEPLOYED:
        model = model.fuse()  # pyright: ignore[reportCallIssue]
    if side == DEPLOYED or side.endswith(LAST):
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return model.eval()


def images(batch: int, side: str = PEER) -> Tensor:
    x = torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(batch))
    return x if side in (PEER, OURS) else x.to(memory_format=torch.channels_last)


def passes(model: nn.Module, x: Tensor, times: int) -> Tensor:
    """The last of several results."""
    for _ in range(times - 1):
        forward(model, x)
    return forward(model, x)


def memory(name: str, side: str, batch: int) -> int:
    """Peak bytes of one pass above the weights and the images, in a process that has run the model on a small image."""
    model, x = build(name, side), images(batch, side)
    forward(model, images(1, side)[:, :, :64, :64])
    return peak_memory(partial(forward, model, x))


def cost(name: str) -> dict[str, int]:
    """Parameters, and multiply-accumulates of one image in convolutions and matrix products."""
    model = zoo.create_model(name, device="meta").eval()
    with FlopCounterMode(display=False) as counter:
        forward(model, torch.empty(1, 3, SIZE, SIZE, device="meta"))
    return {"parameters": sum(p.numel() for p in model.parameters()), "macs": counter.get_total_flops() // 2}


def measure(name: str, batches: Sequence[int], budget: float, peaks: bool, tick: Callable[[str], None]) -> list[dict]:
    """One record a batch size: seconds of a pass in every run, difference from timm, peak bytes of each side."""
    models, price, records = {side: build(name, side) for side in sides(name)}, cost(name), []
    for batch in batches:
        tick(f"{name}, batch {batch}")
        times = max(1, PASSES // batch)
        calls = {side: partial(passes, model, images(batch, side), times) for side, model in models.items()}
        taken, logits = interleaved(calls, budget=budget)
        runs = {side: [seconds / times for seconds in found] for side, found in taken.items()}
        record = {"model": name, "batch": batch, **price, "runs": runs, "apart": difference(logits)}
        if peaks:
            record["bytes"] = {side: fresh_peak(memory, name, side, batch) for side in models}
        records.append(record)
    return records


def difference(logits: dict[str, Tensor]) -> float:
    """Largest difference from the first side's logits, timm's where it has the model, as a share of the largest."""
    first, *others = logits.values()
    return max(apart(other, first) for other in others)


def show_speed(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for r in records:
        seconds = medians(r["runs"])
        best, peers = seconds[DEPLOYED], [seconds[side] for side in (PEER, PEER + LAST) if side in seconds]
        rows.append(
            [
                f"{r['model']}, batch {r['batch']}",
                f"{r['parameters'] / 1e6:.2f}",
                f"{r['macs'] / 1e6:,.0f}",
                *(f"{seconds[side] * 1e3:,.1f}" if side in seconds else "" for side in SIDES),
                f"{r['batch'] / best:,.1f}",
                *(f"{pick(peers) / best:.2f}x" if peers else "" for pick in (operator.itemgetter(0), min)),
                str(min(map(len, r["runs"].values()))),
                f"{r['apart']:.1e}",
            ]
        )
    columns = ["model", "M params", "M MACs", *(f"{side}, ms" for side in SIDES), "deploy, images/s"]
    return [*columns, "deploy over timm", "over timm's best", "runs", "difference"], rows


def show_memory(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    rows = [[f"{r['model']}, batch {r['batch']}", *_mebibytes(r["bytes"])] for r in records if "bytes" in r]
    return ["model", *(f"{side}, MiB" for side in SIDES)], rows


def _mebibytes(taken: dict[str, int]) -> list[str]:
    return [f"{taken[side] / MIB:,.1f}" if side in taken else "" for side in SIDES]


def plot(records: list[dict], path: Path) -> None:
    """Images a second of every side, one panel a batch size."""
    batches = list(dict.fromkeys(r["batch"] for r in records))
    with panels(path, 1, len(batches), (7 * len(batches), 5)) as axes:
        for axis, batch in zip(axes.flat, batches, strict=True):
            shown = [r for r in records if r["batch"] == batch]
            for index, side in enumerate(SIDES):
                rates = {place: batch / medians(r["runs"])[side] for place, r in enumerate(shown) if side in r["runs"]}
                axis.bar([place + (index - 2) * 0.16 for place in rates], list(rates.values()), width=0.15, label=side)
            axis.set_xticks(range(len(shown)), [r["model"] for r in shown], rotation=30, ha="right")
            axis.set(title=f"batch {batch}, {SIZE} pixels", ylabel="images / s")
            axis.legend(fontsize=8)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("vision", __doc__, budget=10.0, models=MODELS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    options = parser.parse_args(arguments)

    records: list[dict[str, Any]] = []
    with telling(len(options.models) * len(options.batches)) as say:
        for name in options.models:
            records += measure(name, options.batches, options.budget, not options.no_memory, say)
    tables = [
        (f"Forward pass at {SIZE} pixels, float32", *show_speed(records)),
        ("Peak memory of a forward pass, above weights and images", *show_memory(records)),
    ]
    publish("vision", options, {"records": records}, *tables, plot=partial(plot, records))
