"""Does squashing the kernels help? Learned long convolutions on few sequential digits, with it and without.

    zoo bench squash                # writes benchmarks/results/squash.{json,md}
    zoo bench squash --train 100 --seeds 3 --no-save

The 8 x 8 digits of scikit-learn, upsampled to 16 x 16 and read pixel by pixel: 256 steps, and kernels of 256 taps in
every channel. A small classifier of two ``LongConv`` blocks learns from few images and is scored on those it never saw
(a fixed fifth of the data). A seed draws the training images and the weights; the settings of one seed share both. No
setting was chosen by its score: the thresholds are those of the authors' configurations.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.benchmarks.common import command_line, each, publish
from zoo.benchmarks.learning import learn
from zoo.layers import RMSNorm
from zoo.layers.conv import LongConv, decaying_kernel, random_kernel
from zoo.train.data import DigitsDataModule

SETTINGS: dict[str, dict[str, Any]] = {
    "none": {"lam": 0.0},
    "squash 0.001": {"lam": 0.001},
    "squash 0.003": {"lam": 0.003},
    "smooth 7": {"lam": 0.0, "smooth_window": 7},
    "smooth 7, squash 0.001": {"lam": 0.001, "smooth_window": 7},
    "kernel dropout 0.2": {"lam": 0.0, "kernel_dropout": 0.2},
}
INITS = {"random": random_kernel, "double_exp": decaying_kernel}


class Block(nn.Module):
    """x + GLU(W gelu(conv(norm(x)))), the paper's block for classification."""

    def __init__(self, dim: int, length: int, **regularisation: Any):
        super().__init__()
        self.norm, self.conv = RMSNorm(dim), LongConv(dim, length, **regularisation)
        self.out_proj = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.glu(self.out_proj(F.gelu(self.conv(self.norm(x)).output)))


class Classifier(nn.Module):
    """Pixels (B, T) to logits (B, 10): blocks, then the mean over time."""

    def __init__(self, dim: int, depth: int, length: int, **regularisation: Any):
        super().__init__()
        self.embedding = nn.Linear(1, dim)
        self.blocks = nn.Sequential(*(Block(dim, length, **regularisation) for _ in range(depth)))
        self.head = nn.Linear(dim, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.blocks(self.embedding(pixels[..., None])).mean(1))


def digits(side: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Sequences (N, side^2) and labels (N,): those that may be trained on, and the held-out fifth."""
    sources = DigitsDataModule(augment=False, val_fraction=0.0).build()
    found = []
    for split in ("train", "test"):
        images, labels = sources[split].fetch(torch.arange(len(sources[split])), 0)
        found.append((F.interpolate(images, (side, side), mode="bilinear").flatten(1), labels))
    return found[0], found[1]


def accuracy(setting: dict[str, Any], count: int, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Held-out and training accuracy after training on ``count`` images, and the share of taps that are 0."""
    (images, labels), (unseen, answers) = digits(options.side)
    torch.manual_seed(seed)
    chosen = torch.randperm(len(images))[:count]
    images, labels = images[chosen], labels[chosen]
    model = Classifier(options.dim, options.depth, options.side**2, **setting)
    kernels = [m.kernel for m in model.modules() if isinstance(m, LongConv)]
    others = [p for p in model.parameters() if all(p is not kernel for kernel in kernels)]
    groups = [{"params": kernels, "lr": options.kernel_lr, "weight_decay": 0.0}, {"params": others}]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, weight_decay=0.05)

    def loss(step: int) -> Tensor:
        batch = torch.randint(0, count, (min(options.batch_size, count),))
        return F.cross_entropy(model(images[batch]), labels[batch])

    learn(model, optimizer, loss, options.updates, warmup=20, clip=None)
    model.eval()
    with torch.no_grad():
        held_out, seen = (
            (model(x).argmax(1) == y).float().mean().item() for x, y in ((unseen, answers), (images, labels))
        )
        taps = torch.stack([m.taps() for m in model.modules() if isinstance(m, LongConv)])
    return {"accuracy": 100 * held_out, "training": 100 * seen, "zero_taps": 100 * (taps == 0).float().mean().item()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("squash", __doc__)
    parser.add_argument("--train", nargs="+", type=int, default=[100, 400], help="training images")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--updates", type=int, default=1200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--kernel-lr", type=float, default=1e-3)
    parser.add_argument("--side", type=int, default=16, help="of the upsampled images")
    options = parser.parse_args(arguments)

    jobs = [
        (count, init, setting, seed)
        for count in options.train for init in INITS for setting in options.settings for seed in range(options.seeds)
    ]  # fmt: skip
    records = [
        {"train": count, "init": init, "setting": setting, "seed": seed}
        | accuracy(SETTINGS[setting] | {"init": INITS[init]}, count, seed, options)
        for count, init, setting, seed in each(jobs, "training")
    ]

    columns = [
        "kernel, regularisation",
        "held-out accuracy %",
        "over none",
        "seeds better",
        "training %",
        "zero taps %",
    ]
    tables = [
        (f"{count} training images", columns, summary([record for record in records if record["train"] == count]))
        for count in options.train
    ]
    title = f"# Squash on sequential digits, {options.side**2} steps, {options.seeds} seeds: mean (standard deviation)"
    publish("squash", options, {"options": vars(options), "records": records}, *tables, before=f"{title}\n\n")


def summary(records: list[dict[str, Any]]) -> list[list[str]]:
    """A row an initial kernel and setting; differences to no regularisation are between equal seeds."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        runs.setdefault((record["init"], record["setting"]), []).append(record)
    rows = []
    for (init, setting), found in runs.items():
        scores = [record["accuracy"] for record in found]
        gains = [a - b["accuracy"] for a, b in zip(scores, runs.get((init, "none"), []), strict=False)]
        compared = setting != "none" and bool(gains)
        rows.append([
            f"{init}, {setting}",
            f"{statistics.fmean(scores):.1f} ({statistics.pstdev(scores):.1f})",
            f"{statistics.fmean(gains):+.1f}" if compared else "-",
            f"{sum(gain > 0 for gain in gains)} of {len(gains)}" if compared else "-",
            f"{statistics.fmean(record['training'] for record in found):.1f}",
            f"{statistics.fmean(record['zero_taps'] for record in found):.0f}",
        ])  # fmt: skip
    return rows
