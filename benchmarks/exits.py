"""Early exits: accuracy on digits and bits per byte of text against mean FLOPs, at several budgets.

    zoo bench exits                     # trains both models (six minutes), writes benchmarks/results/exits.{json,md}
    zoo bench exits --runs runs         # those that `zoo train RECIPE --output runs/RECIPE` left there, if any
    zoo bench exits --only digits --no-save

Thresholds come from the validation split, scores from the test split; FLOPs are counted, those spent on looking at the
exits included. Beside the budgets stand all items leaving at one exit, where nothing has to be looked at.

Expected, before it was measured (DeeR-VLA, arXiv 2411.02359, table 2, spends a third of the FLOPs at an equal rate of
success): 60 % of the FLOPs cost less than 1 point of accuracy and, as a text of bytes has few easy ones and reading an
exit costs a sixth of a block, less than 0.1 bits per byte; and adaptive exits are better than fixed ones of their cost.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from zoo.benchmarks.common import command_line, last_paragraph, publish
from zoo.cli import recipe_path
from zoo.exits import counted
from zoo.layers.depth.exits import CLOSED, OPEN
from zoo.train.data import DigitsDataModule, DocumentationDataModule

BUDGETS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the FLOPs of the end
MEASURES = ("mean", "doubt")


class Miniature(NamedTuple):
    """A recipe, its data by split as (inputs, targets) batches, and the score of a model's outputs, summed."""

    recipe: str
    metric: str
    data: Callable[[str], list[tuple[Tensor, Tensor]]]
    score: Callable[[Tensor, Tensor], tuple[float, int]]  # sum and number of items
    scale: float
    own_heads: bool


def digits(split: str) -> list[tuple[Tensor, Tensor]]:
    """All of the split at once."""
    data = DigitsDataModule(augment=False)
    data.setup()
    source = data.sources[split]
    return [source.fetch(torch.arange(len(source)), 0)]


def text(split: str, windows: int = 128, length: int = 256) -> list[tuple[Tensor, Tensor]]:
    """Windows spread over the split's documents, 16 at a time."""
    data = DocumentationDataModule(seq_len=length, batch_size=1)
    data.setup()
    source = data.sources[split]
    chosen = torch.linspace(0, len(source) - 1, min(windows, len(source))).long()
    return [source.fetch(part, 0) for part in chosen.split(16)]


def correct(logits: Tensor, labels: Tensor) -> tuple[float, int]:
    """How many images are classified right."""
    return (logits.argmax(1) == labels).sum().item(), len(labels)


def nats(logits: Tensor, labels: Tensor) -> tuple[float, int]:
    """Cross-entropy of the next bytes."""
    answers = labels[:, 1:]
    total = F.cross_entropy(logits[:, :-1].mT, answers, reduction="sum").item()  # -100 adds nothing
    return total, int((answers != -100).sum())


MINIATURES = {
    "digits": Miniature("digits_vit_exits", "accuracy, %", digits, correct, 100.0, True),
    "text": Miniature("docs_transformer_exits", "bits per byte", text, nats, 1 / math.log(2), False),
}


@torch.inference_mode()
def scored(model: Any, mini: Miniature, batches: Sequence[tuple[Tensor, Tensor]], costs: Sequence[float]) -> dict:
    """The score and mean FLOPs of a model at its present thresholds."""
    total, items, left = 0.0, 0, torch.zeros(len(costs))
    for inputs, targets in batches:
        value, count = mini.score(model(inputs), targets)
        total, items = total + value, items + count
        if bool((model.exits.thresholds >= 0).any()):
            left += model.exits.activity["left"]
    shares = (left / left.sum()).tolist() if left.any() else [0.0] * (len(costs) - 1) + [1.0]
    flops = sum(share * cost for share, cost in zip(shares, costs, strict=True))
    return {"score": mini.scale * total / items, "flops": flops, "shares": shares}


def measured(name: str, run: Path) -> list[dict[str, Any]]:
    """A record a setting: all exits closed, all items leaving at one, and each measure at each budget."""
    mini = MINIATURES[name]
    if not (run / "model" / "config.json").exists():
        from zoo.train.command import TrainingRun

        TrainingRun(recipe_path(mini.recipe), ["--trainer.enable_progress_bar=false"], run).fit()
    model: Any = zoo.create_model(f"local-dir:{run / 'model'}").eval()
    calibration, test = [inputs for inputs, _ in mini.data("val")], mini.data("test")
    costs = zoo.exit_costs(model, test[0][0][:16])
    settings: list[dict[str, Any]] = []

    def add(setting: str, costs: Sequence[float], measure: str = "", **more: Any) -> None:
        settings.append(
            {"of": name, "setting": setting, "measure": measure, **scored(model, mini, test, costs), **more}
        )

    model.exits.thresholds.fill_(CLOSED)
    plain = _plain(model, test[0][0][:16])
    add("closed", [*costs[:-1], plain])
    look = (costs[-1] - plain) / (len(model.exits.after) + 1)  # the stream before the first exit is looked at, too
    for exit, block in enumerate(model.exits.after):
        model.exits.thresholds.fill_(CLOSED)
        model.exits.thresholds[exit] = OPEN
        looks = exit + 2 - mini.own_heads  # but an image leaves by the head of its exit
        add(f"all after block {block}", [cost - looks * look for cost in costs])
    for model.exits.measure in MEASURES:
        costs = zoo.exit_costs(model, test[0][0][:16])
        for budget in BUDGETS:
            if costs[0] < budget * costs[-1]:
                found = zoo.calibrate_exits(model, calibration, budget=budget * costs[-1])
                add(f"budget {budget:.0%}", costs, model.exits.measure, calibrated=found._asdict())
    return settings


def _plain(model: Any, inputs: Tensor) -> float:
    """FLOPs of an item when no exit is looked at."""
    exits, model.exits = model.exits, None
    try:
        return counted(model, inputs)
    finally:
        model.exits = exits


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("exits", __doc__)
    parser.add_argument("--only", nargs="+", choices=list(MINIATURES), default=list(MINIATURES))
    parser.add_argument("--runs", type=Path, help="folder of trained runs, each named after its recipe")
    options = parser.parse_args(arguments)
    records, shown, text = [], [], f"# Early exits\n\n{last_paragraph(__doc__)}\n\n"
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.only:
            mini = MINIATURES[name]
            found = measured(name, (options.runs or Path(scratch)) / mini.recipe)
            columns = ["setting", mini.metric, "FLOPs an item", "of all", "left at each exit and the end, %"]
            shown.append((f"{mini.recipe}, test split", columns, rows(found)))
            records += found
    publish("exits", options, {"records": records}, *shown, before=text)


def rows(records: list[dict[str, Any]]) -> list[list[str]]:
    """A row a setting."""
    whole = records[0]["flops"]
    return [
        [
            f"{one['setting']}, {one['measure']}".removesuffix(", "),
            f"{one['score']:.4g}",
            f"{one['flops']:,.0f}",
            f"{one['flops'] / whole:.0%}",
            " ".join(f"{100 * share:.0f}" for share in one["shares"]),
        ]
        for one in records
    ]
