"""Images of a next-scale model from fewer keys between its scales (ScaleKV), and by a large and a small model (CoDe).

    zoo bench scales                    # writes benchmarks/results/scales.{json,md,png}
    zoo bench scales --shares 0.5 --drafted 4 5 --no-save

The bundled next_scale_shapes_nano, of six layers and maps of 1, 2, 3, 4, 6 and 8 tokens a side, with a share of the 66
tokens before the last map kept in the mean of its layers: of equal budgets, which is SnapKV with a window spread over
the map, and of drafters and refiners that ten images of the validation set have told apart. Bits are those an index of
test images, each map from the keys kept of the true ones before. Distances are of images from the same classes and the
same random numbers as all keys and values make: equal indices, and PSNR of what the tokenizer makes of them. Bytes are
of an image in float32, kept between two scales at most, and at the peak, which the last map is part of.

Expected (arXiv 2505.19602, of Infinity-8B): at the same bytes drafters and refiners stay nearer to the images of all
keys than equal budgets, at a tenth of the keys by 2.65 dB of PSNR, and images are as good as those of all keys.
"""  # of a large and a small model: benchmarks/collaborative.py

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from zoo.benchmarks import collaborative
from zoo.benchmarks.common import command_line, each, last_paragraph, publish
from zoo.benchmarks.tables import Verdict, show_verdicts
from zoo.generative import ScaleKV, picture, pixels, psnr
from zoo.generative.adaptive import Past
from zoo.train.data import FiguresDataModule, FigureTokensDataModule

NAME, CALIBRATED = "next_scale_shapes_nano", 10
WAYS = ("equal budgets", "ScaleKV")
SAME = 100.0  # decibels of what is the same
MORE = 0.01  # bits an index, as a share, that still count as as likely


def images_of(split: str, count: int) -> tuple[Tensor, Tensor]:
    """Tokens and kinds of the first figures of a split."""
    data = FigureTokensDataModule()
    data.setup()
    return data.sources[split].fetch(torch.arange(count), 0)


def cache(model: Any, way: str, share: float) -> ScaleKV:
    """What a way keeps."""
    if way == WAYS[0]:
        return ScaleKV.uniform(model.config, share)
    return ScaleKV.calibrated(model, *images_of("val", CALIBRATED), share)


@torch.no_grad()
def bits(model: Any, tokens: Tensor, kinds: Tensor, kept: ScaleKV | None = None) -> tuple[float, int]:
    """Bits an index of tokens (B, groups, tokens), and bytes an image at the peak."""
    pasts: Sequence[Past] = [Past() for _ in model.blocks] if kept is None else kept.pasts(model)
    maps: Iterator[Tensor] = iter(tokens.split(model.config.sizes, 2))
    nats = []

    def given(logits: Tensor) -> Tensor:
        part = next(maps)
        nats.append(F.cross_entropy(logits.movedim(-1, 1), part, reduction="sum").item())
        return part

    model.decode(len(tokens), given, classes=kinds, pasts=pasts)
    return sum(nats) / tokens.numel() / math.log(2), sum(past.peak for past in pasts) // len(tokens)


def made(model: Any, count: int, seed: int, kept: ScaleKV | None = None) -> Tensor:
    """Tokens of figures of all kinds in turn."""
    generator = torch.Generator().manual_seed(seed)
    return model.sample(count, classes=torch.arange(count) % 10, cache=kept, generator=generator)


def measured(shares: Sequence[float], count: int, seed: int) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """A record of all keys and of each way and share, and the images of each."""
    model: Any = zoo.create_model(NAME, pretrained=True).eval()
    tokenizer: Any = zoo.create_model(model.config.tokenizer, pretrained=True).eval()
    tokens, kinds = images_of("test", count)
    plain, (value, peak) = made(model, count, seed), bits(model, tokens, kinds)
    images = [pixels(tokenizer, tokenizer.decode(plain.mT))]
    whole = 8 * model.config.depth * model.config.dim * sum(model.config.sizes[:-1])
    records: list[dict[str, Any]] = [
        {"way": "all", "share": 1.0, "bits": value, "bytes": whole, "peak": peak, "equal": 1.0, "psnr": SAME}
    ]
    for way, share in each([(way, share) for share in shares for way in WAYS]):
        kept = cache(model, way, share)
        value, peak = bits(model, tokens, kinds, kept)
        drawn = made(model, count, seed, kept)
        images.append(pixels(tokenizer, tokenizer.decode(drawn.mT)))
        squares = (images[-1] - images[0]).square().mean().item()
        records.append({
            "way": way, "share": share, "bits": value, "bytes": 4 * kept.numbers(model.config), "peak": peak,
            "equal": (drawn == plain).float().mean().item(), "psnr": min(SAME, -10 * math.log10(squares + 1e-20)),
            "psnr of an image": psnr(images[-1], images[0]).clamp(max=SAME).median().item(), "budgets": kept.budgets,
        })  # fmt: skip
    return records, images


def verdicts(records: Sequence[dict[str, Any]]) -> list[Verdict]:
    """What was expected of each share, and found."""
    found = {(r["way"], r["share"]): r for r in records}
    plain, lines = records[0], []
    for share in dict.fromkeys(r["share"] for r in records[1:]):
        equal, ours = (found[way, share] for way in WAYS)
        gain, more = ours["psnr"] - equal["psnr"], ours["bits"] / plain["bits"] - 1
        lines += [
            Verdict(f"{share:.0%} of the tokens: nearer than equal budgets (table 1: by 2.65 dB at a tenth)",
                    f"{gain:+.2f} dB by {ours['bytes']:,} and {equal['bytes']:,} bytes", gain > 0),
            Verdict(f"{share:.0%} of the tokens: as good (GenEval 0.790 of 0.792): at most {MORE:.0%} more bits",
                    f"{more:+.1%}", more <= MORE),
        ]  # fmt: skip
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("scales", __doc__, budget=60.0)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.75, 0.5, 0.35, 0.25], help="of the tokens kept")
    parser.add_argument(
        "--drafted", nargs="+", type=int, choices=range(1, 6), default=[5, 4, 3, 2, 1], metavar="MAPS",
        help="by the large model of two, of 6 (1 to 5)",
    )  # fmt: skip
    parser.add_argument("--images", type=int, default=200, help="that are made, and scored")
    parser.add_argument("--seed", type=int, default=0, help="of the images")
    options = parser.parse_args(arguments)
    records, images = measured(options.shares, options.images, options.seed)
    rows = [
        [r["way"], f"{r['share']:.0%}", f"{r['bytes']:,}", f"{r['peak']:,}", f"{r['bits']:.4f}", f"{r['equal']:.1%}",
         f"{r['psnr']:.2f}"]
        for r in records
    ]  # fmt: skip
    columns = ["kept", "share", "bytes between", "bytes at the peak", "bits an index", "equal indices", "PSNR, dB"]
    figures = FiguresDataModule()
    figures.setup()
    real = figures.sources["test"].fetch(torch.arange(options.images), 0)[0]
    together, drawn = collaborative.measured(
        options.drafted, *images_of("test", options.images), real, options.seed, options.budget
    )

    def plot(path: Path) -> None:
        picture(torch.cat([row[:20] for row in [*images, *drawn[1:]]]), min(20, options.images), 3).save(path)

    order = [f"{r['way']} {r['share']:.0%}" for r in records] + ["the small model alone"]
    order += [f"the first {count} by the large model" for count in options.drafted]
    record = {"images": options.images, "seed": options.seed, "records": records, "collaboration": together}
    publish(
        "scales",
        options,
        record,
        show_verdicts(verdicts(records) + collaborative.verdicts(together)),
        (f"{options.images} figures by {NAME}", columns, rows),
        *collaborative.shown(together),
        before=last_paragraph(__doc__) + "\n\n" + last_paragraph(collaborative.__doc__) + "\n\n",
        plot=plot,
        after=f"![figures](scales.png)\n\nRows from the top: {', '.join(order)}.\n",
    )
