"""Two next-scale models for one image (CoDe), as ``zoo bench scales`` measures them.

The bundled next_scale_shapes_nano says the coarse maps, next_scale_shapes_small_nano, of a seventh of its numbers, the
fine ones; with the roles swapped too. Bits are those an index of test images. Distances are from the images that the
large model alone makes of the same random numbers, by PSNR, and from its distribution: the divergence
KL(both | large), in bits an image, of what both make. Beside them the energy distance of pixels from test figures.
Milliseconds are those of an image, in batches of 64 that take turns; keys are held at most, an image in float32.

Expected of CoDe (arXiv 2411.17787, of a VAR of 2 billion numbers and one of 0.3, without further training): fine maps
need fewer numbers than coarse ones, so that the small model lacks less there; with 62, 23 and 13 % of the tokens
drafted 1.2, 2.3 and 2.9 times as fast, a FID of 1.99, 2.26 and 2.42 beside 1.95; half the memory; no good of swapped
roles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from zoo.benchmarks.clips import distance
from zoo.benchmarks.common import each, interleaved, medians
from zoo.benchmarks.tables import Shown, Verdict
from zoo.generative import Collaboration, NextScale, pixels
from zoo.generative.collaborative import keys_of
from zoo.kernels.flops import flop_counter

LARGE, SMALL = "next_scale_shapes_nano", "next_scale_shapes_small_nano"
BATCH = 64  # images that are made at once, of which time is taken
SAME = 100.0  # decibels of what is the same
MORE = 0.01  # bits an index, as a share, that still count as as likely
# maps drafted here -> with CoDe's nearest share of the tokens: that share, how many times as fast, and FID
PUBLISHED = {5: (0.62, 1.2, 1.99), 4: (0.23, 2.3, 2.26), 3: (0.13, 2.9, 2.42)}


class Way(NamedTuple):
    """Who says the first ``drafted`` maps and who the rest: "large" or "small"."""

    coarse: str
    fine: str
    drafted: int

    @property
    def name(self) -> str:
        """For a table."""
        return self.coarse if self.coarse == self.fine else f"{self.coarse}, then {self.fine}"


Models = Mapping[str, NextScale]


def ways(drafted: Sequence[int], scales: int) -> list[Way]:
    """Both models alone and together, in both roles."""
    together = [Way(*roles, count) for roles in (("large", "small"), ("small", "large")) for count in drafted]
    return [Way("large", "large", scales), Way("small", "small", 0), *together]


@torch.no_grad()
def bits(model: NextScale, tokens: Tensor, kinds: Tensor) -> Tensor:
    """Mean bits (scales,) of all indices of a map, each given the true maps before."""
    nats = F.cross_entropy(model(tokens, classes=kinds).movedim(-1, 1), tokens, reduction="none")
    return torch.stack([part.sum((1, 2)).mean() for part in nats.split(model.config.sizes, 2)]) / math.log(2)


def bits_of(way: Way, models: Models, tokens: Tensor, kinds: Tensor) -> float:
    """Bits of an image by two models, as both say it."""
    coarse, fine = (bits(models[role], tokens, kinds) for role in (way.coarse, way.fine))
    return (coarse[: way.drafted].sum() + fine[way.drafted :].sum()).item()


def made(way: Way, models: Models, kinds: Tensor, seed: int) -> Tensor:
    """Tokens of figures of these kinds."""
    sampler: Any = models[way.coarse]
    if way.coarse != way.fine:
        sampler = Collaboration(models[way.coarse], models[way.fine], way.drafted)
    return sampler.sample(len(kinds), classes=kinds, generator=torch.Generator().manual_seed(seed))


def cost(way: Way, models: Models) -> dict[str, int]:
    """FLOPs of an image, and bytes of keys and values that are held at most."""
    with flop_counter(display=False) as counter:
        made(way, models, torch.zeros(1, dtype=torch.int64), 0)
    if way.coarse == way.fine:
        held = keys_of(models[way.coarse], sum(models[way.coarse].config.sizes))
    else:
        held = Collaboration(models[way.coarse], models[way.fine], way.drafted).keys
    return {"flops": counter.get_total_flops(), "key bytes": 4 * held}


def measured(
    drafted: Sequence[int], tokens: Tensor, kinds: Tensor, real: Tensor, seed: int, budget: float
) -> tuple[dict[str, Any], list[Tensor]]:
    """Bits of each map, a record of each way, and the images of all ways but the swapped ones.

    Args:
        drafted: how many maps, of each way.
        tokens, kinds: of test figures, which are scored; as many are made.
        real: test figures, normalised.
        budget: seconds of taking times.
    """
    models: dict[str, Any] = {
        role: zoo.create_model(name, pretrained=True).eval() for role, name in (("large", LARGE), ("small", SMALL))
    }
    config = models["large"].config
    tokenizer: Any = zoo.create_model(config.tokenizer, pretrained=True).eval()
    all_ways, asked = ways(drafted, len(config.sizes)), torch.arange(len(kinds)) % config.num_classes
    true, records, images = pixels(tokenizer, real), list[dict[str, Any]](), list[Tensor]()
    for way in each(all_ways, "drawing"):
        drawn = made(way, models, asked, seed)
        shown = pixels(tokenizer, tokenizer.decode(drawn.mT))
        if way.coarse == "large" or way.fine == "small":
            images.append(shown)
        if not records:
            plain, first = drawn, shown
        squares = (shown - first).square().mean().item()
        records.append({
            **way._asdict(), "share": sum(config.sizes[: way.drafted]) / sum(config.sizes),
            "bits": bits_of(way, models, tokens, kinds) / tokens[0].numel(),
            "divergence": bits_of(all_ways[0], models, drawn, asked) - bits_of(way, models, drawn, asked),
            "equal": (drawn == plain).float().mean().item(), "psnr": min(SAME, -10 * math.log10(squares + 1e-20)),
            "distance": distance(shown, true), **cost(way, models),
        })  # fmt: skip
    batch = torch.arange(BATCH) % config.num_classes
    calls: dict[str, Callable[[], Any]] = {str(way): partial(made, way, models, batch, seed) for way in all_ways}
    taken = medians(interleaved(calls, budget=budget)[0])
    for way, record in zip(all_ways, records, strict=True):
        record["milliseconds"] = 1e3 * taken[str(way)] / BATCH
    indices = config.groups * torch.tensor(config.sizes)
    maps = {role: (bits(model, tokens, kinds) / indices).tolist() for role, model in models.items()}
    return {"maps": maps, "sides": config.scales, "records": records}, images


def verdicts(found: Mapping[str, Any]) -> list[Verdict]:
    """What was expected, and found."""
    by_way = {(r["coarse"], r["fine"], r["drafted"]): r for r in found["records"]}
    plain, lacks = found["records"][0], [s - p for p, s in zip(*found["maps"].values(), strict=True)]
    ours = {n: by_way["large", "small", n] for n in PUBLISHED if ("large", "small", n) in by_way}
    lines = [
        Verdict("CoDe: the small model lacks fewer bits an index of the last map than of any other",
                ", ".join(f"{gap:.3f}" for gap in lacks), lacks[-1] < min(lacks[:-1])),
    ]  # fmt: skip
    for n, one in ours.items():
        share, speed, _ = PUBLISHED[n]
        times, flops = (plain[key] / one[key] for key in ("milliseconds", "flops"))
        drafted = f"{n} maps, {one['share']:.0%} of the tokens, drafted"
        lines.append(
            Verdict(f"... {drafted}: {speed} times as fast (CoDe: of {share:.0%})",
                    f"{times:.2f} times, {flops:.2f} times fewer FLOPs", times >= speed)
        )  # fmt: skip
    if 5 in ours:
        more = ours[5]["bits"] / plain["bits"] - 1
        lines.append(
            Verdict(f"... 5 maps drafted: as good (FID 1.99 of 1.95), at most {MORE:.0%} more bits", f"{more:+.1%}",
                    more <= MORE)
        )  # fmt: skip
    if len(ours) > 1:
        order = sorted(ours, reverse=True)
        far = [ours[n]["divergence"] for n in order]
        lines.append(
            Verdict(f"... {', '.join(map(str, order))} maps drafted: further from the large model with each that is not"
                    f" (FID {', '.join(str(PUBLISHED[n][2]) for n in order)})",
                    ", ".join(f"{one:.1f}" for one in far) + " bits an image",
                    far == sorted(far) and len(set(far)) == len(far))
        )  # fmt: skip
    if 4 in ours:
        held, swapped = ours[4]["key bytes"] / plain["key bytes"], by_way["small", "large", 4]
        lines += [
            Verdict("... 4 maps drafted: half the memory", f"{held:.0%} of the keys", held <= 0.5),
            Verdict("... nearer to the large model's images than with the roles swapped",
                    f"{ours[4]['psnr']:.2f} and {swapped['psnr']:.2f} dB", ours[4]["psnr"] > swapped["psnr"]),
        ]  # fmt: skip
    return lines


def shown(found: Mapping[str, Any]) -> list[Shown]:
    """A table of ways and one of maps."""
    rows = [
        [Way(r["coarse"], r["fine"], r["drafted"]).name, f"{r['drafted']}", f"{r['share']:.0%}", f"{r['bits']:.4f}",
         f"{r['divergence']:.1f}", f"{r['equal']:.1%}", f"{r['psnr']:.2f}", f"{100 * r['distance']:.2f}",
         f"{r['flops'] / 1e6:.1f}", f"{r['milliseconds']:.3f}", f"{r['key bytes']:,}"]
        for r in found["records"]
    ]  # fmt: skip
    columns = [
        "who", "maps by the first", "tokens", "bits an index", "KL, bits an image", "equal indices", "PSNR, dB",
        "100 x to test figures", "MFLOPs", "ms", "bytes of keys",
    ]  # fmt: skip
    maps = [[f"{role} model", *(f"{value:.3f}" for value in values)] for role, values in found["maps"].items()]
    sides = [f"{side} x {side}" for side in found["sides"]]
    return [("A large and a small model (CoDe)", columns, rows), ("Bits an index of each map", ["", *sides], maps)]
