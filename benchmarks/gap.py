"""The efficiency gap of every vision family: latency = operations / (peak x efficiency), of models and layers.

    zoo bench gap                           # writes benchmarks/results/gap.json, gap.md and gap.png; two minutes
    zoo bench gap --models vit_nano convfirst_tiny --no-save

One image of each model's own size, float32, fused for inference, beside the ConvNeXt and EfficientNet of timm that the
paper compares with. The ideal latency is that of the operations at the peak of a large matrix product, the waterline
that of the operations one after the other, each at its roofline; ideal over measured is the efficiency, ideal over
waterline the ceiling that only block fusion can raise. The plots are the paper's two: measured over ideal latency of
models, and layer by layer the share of the peak that its bytes allow, as wide as its share of the operations, with the
model's ceiling and what was measured.

Then ConvFirst's block fusion in tiles. Expectation (arXiv 2404.03617): operations a byte rise by up to (4 + 2 r) / 2
for blocks widened r times and the workspace falls to a tile's. The paper's fourfold speed over ConvNeXt is that of one
kernel a block on a GPU; tiles of torch's calls on a CPU, whose waterline lies near the peak already, are expected to
save memory and no time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from zoo.benchmarks.common import (
    MIB,
    command_line,
    forward,
    fresh_peak,
    in_processes,
    interleaved,
    medians,
    peak_memory,
    publish,
)
from zoo.profile import profile
from zoo.profile.gap import Gap, gap, gap_by_layer
from zoo.profile.peaks import peaks
from zoo.vision import block_traffic, fuse_blocks

# the smallest published size of each family, and the nanos of three whose published sizes take minutes or gibibytes
MODELS = (
    "convfirst_tiny", "vim_tiny", "vit_tiny_patch16_224", "shvit_s1", "efficientvit_m0", "m3vit_tiny",
    "pcdarts_imagenet", "simplenetv1_small_m1_05", "lightcnn_cifar", "longconv_pixel_scifar",
    "seqboat_pixel_lra_image", "mcunet_in2", "vovnet27_slim", "mambavision_t", "vanilla_vmamba_tiny", "axial_nano",
    "revunet3d_nano", "s4_pixel_nano", "spiking_resnet18",
)  # fmt: skip
PEERS = ("convnext_atto", "efficientnet_b0")  # of timm
FUSED, TILES = "convfirst_tiny", (64, 32, 16)


class Peer(nn.Module):
    """A model of timm for images of 224 pixels."""

    def __init__(self, name: str):
        import timm

        super().__init__()
        self.model = timm.create_model(name)
        self.config_name = f"timm's {name}"
        self.config = SimpleNamespace(image_shape=(224, 224), in_chans=3, num_classes=1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def build(name: str) -> Any:
    torch.manual_seed(0)
    if name in PEERS:
        return Peer(name).eval()
    model: Any = zoo.create_model(name).eval()
    return model.fuse() if hasattr(model, "fuse") else model


def measure(name: str, runs: int) -> dict[str, Any]:
    found = profile(build(name), training=False, runs=runs)
    layers = {layer.name: layer.bytes for layer in found.layers}
    return {
        "model": found.name if name in PEERS else name,
        "parameters": found.parameters,
        "inputs": found.inputs,
        **of(gap(found)),
        "layers": [{"name": part.name, **of(part), "bytes": layers[part.name]} for part in gap_by_layer(found)],
    }


def of(part: Gap) -> dict[str, float]:
    names = ("ideal", "waterline", "latency", "efficiency", "ceiling")
    return {"flops": part.flops} | {name: float(f"{getattr(part, name):.4g}") for name in names}


def tiled(tile: int | None) -> Any:
    torch.manual_seed(0)
    model: Any = zoo.create_model(FUSED).eval()
    return model.fuse() if tile is None else fuse_blocks(model, tile)


def image() -> Tensor:
    side = zoo.model_info(FUSED).config["img_size"]
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))


def tile_memory(tile: int | None) -> int:
    model, x = tiled(tile), image()
    forward(model, x[..., :64, :64])
    return peak_memory(partial(forward, model, x))


def measure_tiles(budget: float) -> list[dict[str, Any]]:
    plain: Any = tiled(None)
    x, whole = image(), max(plain.config.image_shape)
    runs, results = interleaved({str(tile): partial(forward, tiled(tile), x) for tile in (None, *TILES)}, budget=budget)
    seconds, records = medians(runs), []
    for tile in (None, *TILES):
        costs = block_traffic(plain, tile or whole)
        records.append(
            {
                "tile": tile,
                "macs": sum(c.macs if tile is None else c.tiled_macs for c in costs),
                "bytes": sum(c.bytes if tile is None else c.tiled_bytes for c in costs),
                "workspace": max(c.workspace if tile is None else c.tiled_workspace for c in costs),
                "seconds": seconds[str(tile)],
                "peak": fresh_peak(tile_memory, tile),
                "apart": ((results[str(tile)] - results["None"]).abs().max() / results["None"].abs().max()).item(),
            }
        )
    return records


def show(records: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            r["model"], f"{r['parameters'] / 1e6:.2f}", f"{r['flops'] / 1e6:,.1f}", f"{r['ideal'] * 1e3:.2f}",
            f"{r['waterline'] * 1e3:.2f}", f"{r['latency'] * 1e3:.2f}", f"{r['efficiency']:.1%}", f"{r['ceiling']:.1%}",
        ]
        for r in sorted(records, key=lambda r: r["flops"])
    ]  # fmt: skip
    columns = ["model", "M parameters", "MFLOP", "ideal, ms", "waterline, ms", "measured, ms", "efficiency", "ceiling"]
    return columns, rows


def show_layers(record: dict[str, Any], most: int = 8) -> tuple[list[str], list[list[str]]]:
    """Those that take the longest."""
    slowest = sorted(record["layers"], key=lambda r: -r["latency"])[:most]
    rows = [
        [
            r["name"], f"{r['flops'] / 1e6:,.1f}", f"{r['flops'] / r['bytes']:.1f}", f"{r['latency'] * 1e3:.2f}",
            f"{r['efficiency']:.1%}", f"{r['ceiling']:.1%}",
        ]
        for r in slowest
    ]  # fmt: skip
    return ["layer", "MFLOP", "FLOP/byte", "measured, ms", "efficiency", "ceiling"], rows


def show_tiles(records: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            "plain" if r["tile"] is None else f"tiles of {r['tile']}", f"{r['macs'] / 1e6:,.1f}",
            f"{r['bytes'] / MIB:.1f}", f"{2 * r['macs'] / r['bytes']:.1f}", f"{r['workspace'] / MIB:.2f}",
            f"{r['peak'] / MIB:.1f}", f"{r['seconds'] * 1e3:.1f}", f"{r['apart']:.0e}",
        ]
        for r in records
    ]  # fmt: skip
    columns = ["blocks", "M MACs", "MiB moved", "FLOP/byte", "MiB between layers", "measured peak, MiB", "ms"]
    return [*columns, "difference"], rows


def plot(records: Sequence[dict[str, Any]], ridge: float, path: Path) -> None:
    """The gap of all models above, the waterline of each below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    across = 5
    rows = -(-len(records) // across)
    figure = pyplot.figure(figsize=(18, 7 + 2.4 * rows), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(7, 2.4 * rows))
    above, below = halves
    axis = above.subplots()
    ends = [min(r["ideal"] for r in records) * 500, max(r["ideal"] for r in records) * 2000]
    for share in (1.0, 0.1, 0.01, 0.001):
        axis.plot(ends, [end / share for end in ends], color="0.8", linewidth=1, zorder=0)
        axis.annotate(f"{share:.1%}", (ends[1], ends[1] / share), color="0.5", fontsize=8)
    for r in records:
        x, y, best = (1e3 * r[key] for key in ("ideal", "latency", "waterline"))
        axis.plot([x, x], [best, y], color="C0", linewidth=1, alpha=0.5)
        axis.plot(x, y, "o", color="C0")
        axis.plot(x, best, "_", color="C3", markersize=10)
        axis.annotate(r["model"], (x, y), fontsize=8, xytext=(5, 3), textcoords="offset points")
    axis.set(
        xscale="log", yscale="log", xlabel="ideal latency, ms: operations at the peak", ylabel="latency, ms",
        title="efficiency gap: measured (points), at the waterline (bars), lines of equal efficiency",
    )  # fmt: skip
    grid = below.subplots(rows, across, squeeze=False)
    for place, r in zip(grid.flat, records, strict=False):
        start, total = 0.0, sum(layer["flops"] for layer in r["layers"])
        for layer in r["layers"]:
            width = layer["flops"] / total
            place.bar(
                start, min(1.0, layer["flops"] / layer["bytes"] / ridge), width, align="edge", color="C0", alpha=0.5
            )
            place.hlines(min(1.0, layer["efficiency"]), start, start + width, color="C2", linewidth=1)
            start += width
        place.axhline(r["ceiling"], color="C3", linewidth=1.2)
        place.axhline(r["efficiency"], color="k", linewidth=1.2, linestyle="--")
        place.set(ylim=(0, 1), xlim=(0, 1), xticks=[])
        place.set_title(r["model"], fontsize=8)
    for place in list(grid.flat)[len(records) :]:
        place.axis("off")
    below.suptitle(
        "waterline: roofline of each layer (bars, as wide as its share of the operations), of the model (red); "
        "measured of each layer (green), of the model (dashed)", fontsize=10,
    )  # fmt: skip
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_line("gap", __doc__, budget=8.0, models=[*MODELS, *PEERS], besides=PEERS)
    parser.add_argument("--runs", type=int, default=9, help="times are the median of so many")
    options = parser.parse_args(arguments)

    before = peaks(fresh=True)
    records, failed = in_processes(measure, {name: (name, options.runs) for name in options.models})
    if not records:
        return 1
    after = peaks(fresh=True)  # what else runs takes its share: one far from the other says that the figures are rough
    tables = [("Efficiency gap, one image, float32", *show(records))]
    tiles: list[dict[str, Any]] = []
    for first in (r for r in records if r["model"] == FUSED):
        tiles = measure_tiles(options.budget)
        tables += [
            (f"{FUSED}: the slowest layers", *show_layers(first)),
            (f"{FUSED}: blocks in tiles", *show_tiles(tiles)),
        ]
    at = {"flops": before.flops, "bandwidth": before.bandwidth}
    at |= {"flops_after": after.flops, "bandwidth_after": after.bandwidth}
    text = f"Peaks: {before.flops / 1e9:.1f} GFLOP/s, {before.bandwidth / 1e9:.1f} GB/s; afterwards "
    text += f"{after.flops / 1e9:.1f} GFLOP/s, {after.bandwidth / 1e9:.1f} GB/s.\n"
    found = {"peaks": at, "records": records, "tiles": tiles, "failed": failed}
    publish("gap", options, found, *tables, after=text, plot=partial(plot, records, before.ridge))
    return 1 if failed else 0
