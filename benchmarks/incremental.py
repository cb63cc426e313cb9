"""Classes a task at a time: MEMO, a whole model a task, and kept images alone, under one budget of bytes.

    zoo bench incremental                    # writes benchmarks/results/incremental.{json,md}
    zoo bench incremental --seeds 1 --no-save

scikit-learn's digits at 32 x 32 pixels (a byte each) in five tasks of two classes, by a ViT of four blocks; the budget
is of kept images and of the layers that the second task and later ones add. Accuracy is on test images of all classes
after the last task.

Expectation (Zhou et al., "A Model or 603 Exemplars", arXiv 2205.13218, figure 1): of the same bytes last layers a task
are better spent than whole models, and no worse than images alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from zoo.benchmarks.common import command_line, publish
from zoo.train.data import DigitsDataModule
from zoo.train.incremental import IncrementalClassifier

SIZES: dict[str, Any] = {"img_size": 32, "patch_size": 8, "dim": 32, "depth": 4, "num_heads": 4, "num_classes": 10}
WAYS = {"MEMO": 1, "DER": 4, "replay": 0}  # last layers a task
TASKS, BUDGET, STEPS = 5, 900_000, 150


def digits() -> dict[str, tuple[Tensor, Tensor]]:
    """Of both splits images (N, 1, 32, 32) and classes."""
    data = DigitsDataModule(augment=False, val_fraction=0.0)
    data.setup()
    found = {}
    for split in ("train", "test"):
        images, classes = data.sources[split].fetch(torch.arange(len(data.sources[split])), 0)
        found[split] = F.interpolate(images, size=(32, 32), mode="bilinear"), classes
    return found


def accuracy(way: str, seed: int) -> float:
    """After the last task."""
    torch.manual_seed(seed)
    splits, model = digits(), zoo.create_model("vit_nano", **SIZES)
    learner = IncrementalClassifier(model, special=WAYS[way], budget=BUDGET, steps=STEPS, seed=seed)  # pyright: ignore
    images, classes = splits["train"]
    for task in range(TASKS):
        own = classes // (10 // TASKS) == task
        learner.learn(images[own], classes[own])
    images, classes = splits["test"]
    with torch.no_grad():
        return (learner(images).argmax(1) == classes).float().mean().item()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("incremental", __doc__)
    parser.add_argument("--seeds", type=int, default=3, help="so many of them, from 0 on")
    options = parser.parse_args(arguments)
    found = {way: [accuracy(way, seed) for seed in range(options.seeds)] for way in WAYS}
    means = {way: statistics.mean(scores) for way, scores in found.items()}
    rows = [[way, str(WAYS[way]), f"{means[way]:.1%}", " ".join(f"{one:.1%}" for one in found[way])] for way in WAYS]
    columns = ["method", "layers a task", "accuracy", "by seed"]
    said = [
        f"- MEMO above DER: {100 * (means['MEMO'] - means['DER']):+.1f} points, "
        f"{_verdict(means['MEMO'] > means['DER'])}.",
        f"- MEMO no worse than images alone: {100 * (means['MEMO'] - means['replay']):+.1f} points, "
        f"{_verdict(means['MEMO'] >= means['replay'])}.",
    ]
    record = {"settings": {"budget": BUDGET, "tasks": TASKS, "steps": STEPS}, "accuracy": found}
    before = "Expectation" + str(__doc__).partition("Expectation")[2] + "\n"
    shown = (f"digits in {TASKS} tasks under {BUDGET:,} bytes", columns, rows)
    publish("incremental", options, record, shown, before=before, after="\n".join(said) + "\n")


def _verdict(met: bool) -> str:
    return "met" if met else "missed"


if __name__ == "__main__":
    main()
