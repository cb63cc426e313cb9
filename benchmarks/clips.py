"""Clips in fewer steps, with fewer tokens and in less memory (On-device Sora, Streamlined Inference).

    zoo bench clips                     # writes benchmarks/results/clips.{json,md,png}
    zoo bench clips --steps 12 --clips 4 --no-save

The bundled video_dit_nano, in 30 steps from the same noise. Passes are steps in which the model runs, tokens those that
attention reads, FLOPs those of torch's counter. PSNR is of all pixels, from the clips that all steps make; beside it
the energy distance of pixels from 128 test clips, and the jerk, the mean second difference of the light's middle, in
pixels. Bytes are those of all tensors that live at once in one pass, besides weights and inputs, counted operation by
operation, at clips of a larger model (32 x 32 pixels, 16 frames, width 128, two pairs of blocks), which is not trained:
slices change no number but by rounding.

Expected: fewer passes at no visible loss where velocities stop turning, and half the tokens in the first half of the
steps (arXiv 2502.04363: up to 1.9 times as fast); attention of the step before is nearly that of this one, and peaks
fall by 40 to 74 % (arXiv 2411.01171: 39.5 to 23.4 GB and 42 to 11 GB), lower where operations are grouped
than where each is sliced by itself. What is hardly seen is 30 dB, a line of ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import zoo
from zoo.benchmarks.common import command_line, each, last_paragraph, publish
from zoo.benchmarks.living import peak
from zoo.benchmarks.tables import Verdict, show_verdicts
from zoo.generative import OnDeviceSora, Shortcut, StepRehash, picture, sliced
from zoo.generative.adaptive import Attention
from zoo.kernels.flops import flop_counter
from zoo.train.data import MovingFiguresDataModule
from zoo.train.data.figures import MEAN, STD

NAME, STEPS = "video_dit_nano", 30
CLOSE = 30.0  # dB from the clips of all steps that are hardly seen
# name -> shortcut, of so many steps
WAYS: dict[str, Callable[[int], Shortcut | None]] = {
    "all steps": lambda steps: None,
    "half the steps": lambda steps: None,
    "leap, by the cosine": lambda steps: OnDeviceSora(watch=steps * 14 // STEPS),
    "leap at half": lambda steps: OnDeviceSora(leap=steps // 2 - 1),
    "merged, first half": lambda steps: OnDeviceSora(watch=None, merged=steps // 2),
    "leap and merged": lambda steps: OnDeviceSora(leap=steps // 2 - 1, merged=steps // 2),
    "rehash, every 2nd": lambda steps: StepRehash(every=2, first=2),
    "rehash, every 3rd": lambda steps: StepRehash(every=3, first=2),
}
SLICES = (1, 2, 4, 8)


def distance(clips: Tensor, others: Tensor) -> float:
    """Energy distance of two sets of clips in [0, 1], of lengths per pixel: 0 where they are distributed alike."""

    def mean(a: Tensor, b: Tensor) -> float:
        between = torch.cdist(a.flatten(1), b.flatten(1)) / a[0].numel() ** 0.5
        return between.sum().item() / (between.numel() - (len(a) if a is b else 0))

    return 2 * mean(clips, others) - mean(clips, clips) - mean(others, others)


def jerk(clips: Tensor) -> float:
    """How unevenly the light's middle moves: mean length of its second difference over time, in pixels, of clips
    (B, C, frames, H, W) in [0, 1]."""
    light = clips.sum(1)
    whole = light.sum((2, 3)) + 1e-9
    height, width = (torch.arange(float(side)) for side in light.shape[2:])
    middle = torch.stack([(light.sum(3) * height).sum(2), (light.sum(2) * width).sum(2)], -1) / whole[..., None]
    return middle.diff(n=2, dim=1).norm(dim=-1).mean().item()


def shown(clips: Tensor) -> Tensor:
    """Normalised clips in [0, 1]."""
    return (clips * STD + MEAN).clamp(0, 1)


def held_out(count: int = 128) -> Tensor:
    """Of moving figures, normalised."""
    return MovingFiguresDataModule().build()["test"].fetch(torch.arange(count), 0)[0]


def sampled(model: Any, way: str, steps: int, clips: int) -> tuple[Tensor, dict[str, Any]]:
    """Clips (B, C, frames, H, W) by a way, and what it took."""
    found, tokens, passes = WAYS[way](steps), [], []
    layers = [module for module in model.modules() if isinstance(module, Attention)]

    def count(module: Any, inputs: Any, made: Any) -> None:
        tokens.append(inputs[0].shape[:2].numel())

    hooks = [layer.qkv.register_forward_hook(count) for layer in layers]
    hooks.append(model.head.register_forward_hook(lambda *args: passes.append(1)))
    try:
        with flop_counter(display=False) as counter:
            made = model.sample(
                clips, classes=torch.arange(clips) % 10, steps=steps // 2 if way == "half the steps" else steps,
                shortcut=found, generator=torch.Generator().manual_seed(0),
            )  # fmt: skip
    finally:
        for hook in hooks:
            hook.remove()
    return made, {"passes": len(passes), "tokens": sum(tokens) // clips, "flops": counter.get_total_flops() // clips}


def steps_saved(steps: int, clips: int) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """A record of each way, and its clips in [0, 1]."""
    model: Any = zoo.create_model(NAME, pretrained=True).eval()
    real = shown(held_out())
    records, made = [], []
    for way in each(WAYS, "sampling"):
        x, record = sampled(model, way, steps, clips)
        made.append(shown(x))
        error = (made[-1] - made[0]).square().mean().item()
        records.append({
            "way": way, **record, "psnr": min(100.0, -10 * math.log10(error + 1e-20)),
            "distance": distance(made[-1], real), "jerk": jerk(made[-1]),
        })  # fmt: skip
    return records, made


def memory_saved() -> list[dict[str, Any]]:
    """A record of each number of slices, by operations and by groups of them."""
    torch.manual_seed(0)
    model: Any = zoo.create_model(NAME, img_size=32, frames=16, dim=128, depth=2).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    x, t = torch.randn(1, *model.config.input_shape), torch.full((1,), 0.5)
    with torch.no_grad():
        plain = model(x, t)
    records = []
    for count in SLICES:
        for grouped in (True, False) if count > 1 else (True,):
            with sliced(model, count, count, grouped=grouped) if count > 1 else nullcontext():
                with torch.no_grad():
                    apart = (model(x, t) - plain).abs().max().item()
                records.append({
                    "slices": count, "grouped": grouped, "bytes": peak(lambda: model(x, t)), "apart": apart,
                })  # fmt: skip
    return records


def verdicts(ways: Sequence[dict[str, Any]], slices: Sequence[dict[str, Any]]) -> list[Verdict]:
    """What was expected, and found."""
    found, whole = {r["way"]: r for r in ways}, slices[0]["bytes"]
    plain, both, half = (found[way] for way in ("all steps", "leap and merged", "half the steps"))
    leap, fixed, rehash = (found[way] for way in ("leap, by the cosine", "leap at half", "rehash, every 2nd"))
    least = {grouped: min(r["bytes"] for r in slices if r["grouped"] is grouped) for grouped in (True, False)}
    speed = plain["flops"] / both["flops"]
    merged = 1 - found["merged, first half"]["flops"] / plain["flops"]
    return [
        Verdict("On-device Sora: a leap by the cosine needs fewer passes", f"{leap['passes']} of {plain['passes']}",
                leap["passes"] < plain["passes"]),
        Verdict(f"... to no visible loss, at least {CLOSE:.0f} dB", f"{leap['psnr']:.1f} dB", leap["psnr"] >= CLOSE),
        Verdict("... a leap at half is nearer than as few even steps",
                f"{fixed['psnr']:.1f} dB in {fixed['passes']} passes, {half['psnr']:.1f} dB in {half['passes']}",
                fixed["psnr"] > half["psnr"]),
        Verdict("... merging, half the tokens in half the steps, saves FLOPs", f"{merged:.0%}", merged > 0),
        Verdict("... leap and merging: up to 1.9 times as fast", f"{speed:.2f} times fewer FLOPs", speed >= 1.9),
        Verdict(f"... to no visible loss, at least {CLOSE:.0f} dB", f"{both['psnr']:.1f} dB", both["psnr"] >= CLOSE),
        Verdict(f"Streamlined: attention of every 2nd step again, at least {CLOSE:.0f} dB",
                f"{rehash['psnr']:.1f} dB, {1 - rehash['flops'] / plain['flops']:.0%} of the FLOPs saved",
                rehash["psnr"] >= CLOSE),
        Verdict("... slices leave at most 60 % of the peak (39.5 to 23.4 GB)", f"{least[True] / whole:.0%}",
                least[True] <= 0.6 * whole),
        Verdict("... and less when operations are grouped", f"each sliced by itself {least[False] / whole:.0%}",
                least[True] < least[False]),
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("clips", __doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help="of the sampler")
    parser.add_argument("--clips", type=int, default=40, help="that are made")
    options = parser.parse_args(arguments)
    ways, made = steps_saved(options.steps, options.clips)
    slices = memory_saved()
    rows = [
        [r["way"], f"{r['passes']}", f"{r['tokens']:,}", f"{r['flops'] / 1e9:.3f}", f"{r['psnr']:.2f}",
         f"{100 * r['distance']:.2f}", f"{r['jerk']:.3f}"]
        for r in ways
    ]  # fmt: skip
    held = [
        [f"{r['slices']}", ("blocks" if r["grouped"] else "attention, MLP") if r["slices"] > 1 else "none",
         f"{r['bytes'] / 2**20:.2f}", f"{r['bytes'] / slices[0]['bytes']:.0%}", f"{r['apart']:.0e}"]
        for r in slices
    ]  # fmt: skip

    def plot(path: Path) -> None:
        clips = [0, min(2, options.clips - 1)]
        rows = torch.cat([part[clips].transpose(1, 2).flatten(0, 1) for part in made])
        picture(rows, len(clips) * made[0].shape[2], 3).save(path)

    publish(
        "clips", options, {"steps": options.steps, "clips": options.clips, "ways": ways, "slices": slices},
        show_verdicts(verdicts(ways, slices)),
        (f"A clip of {NAME}", ["", "passes", "tokens", "GFLOPs", "PSNR, dB", "100 x to test clips", "jerk"], rows),
        ("One pass of a larger model", ["slices", "sliced", "MiB", "of the whole", "largest difference"], held),
        before=last_paragraph(__doc__) + "\n\n",
        after=f"![clips](clips.png)\n\nTwo clips a row, from the top: {'; '.join(WAYS)}.\n",
        plot=plot,
    )  # fmt: skip
