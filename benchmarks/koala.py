"""What a smaller U-Net should learn of a larger one: the same student by each of KOALA's features, in equal steps.

    zoo bench koala                     # writes benchmarks/results/koala.{json,md,png}
    zoo bench koala --steps 150 --seeds 4 --no-save

The teacher is the bundled unet_nano; the student has half of its transformer blocks and no middle, and begins with the
teacher's blocks (but where it says fresh). Each learns the velocities of the digits' path, of the teacher as well, and
what modules of one kind make, in the same batches, times and noise. Errors and distances are mean squares of velocities
on test digits: from the path's, and from the teacher's. A pass is of ten digits, its time the least of
many in turns.

Expected (arXiv 2312.04005, of SDXL's U-Net): students of 54 and 69 % fewer numbers, and a loss of what self-attention
makes teaches the most, more than of cross-attention, feed-forward layers, residual blocks or the last features.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import zoo
from zoo.benchmarks.common import command_line, each, forward, interleaved, last_paragraph, publish
from zoo.benchmarks.exits import digits
from zoo.benchmarks.learning import learn
from zoo.benchmarks.tables import Verdict, show_verdicts
from zoo.generative import draw, picture
from zoo.generative.koala import SITES
from zoo.kernels.flops import flop_counter
from zoo.train.data import DigitsDataModule
from zoo.train.tasks import UNetDistillation
from zoo.train.tasks.diffusion import velocity_errors

STUDENT = {"depths": (0, 1), "mid_depth": None}
SELF = "self attention"
TESTED = 120  # test digits
TIMES = (0.125, 0.375, 0.625, 0.875)  # at which a student is compared with the teacher
# name -> arguments of the task
WAYS: dict[str, dict[str, Any]] = {
    "fresh, task alone": {"features": None, "output_weight": 0.0, "inherits": False},
    "task alone": {"features": None, "output_weight": 0.0},
    "outputs": {"features": None},
    **{f"outputs, {site.replace('_', ' ')}": {"features": site} for site in SITES},
}


def taught(way: str, steps: int, seed: int) -> Any:
    """A student after so many steps."""
    torch.manual_seed(seed)
    task = UNetDistillation("unet_nano", STUDENT, **WAYS[way])
    task.configure_model()
    task.asking = True  # nothing is logged
    data = DigitsDataModule(augment=False, seed=seed)
    data.setup()
    batches = [batch for epoch in range(1 + steps // 20) for batch in _epoch(data, epoch)]
    optimizer = torch.optim.AdamW(task.trained.parameters(), lr=2e-3, weight_decay=0.0)
    torch.manual_seed(seed)
    warmup = max(1, min(40, steps // 5))
    learn(task.trained, optimizer, lambda step: task.training_step(batches[step], step), steps, warmup=warmup)
    return task.trained.eval()


def _epoch(data: DigitsDataModule, epoch: int) -> list[Any]:
    loader = data.train_dataloader()
    loader.set_epoch(epoch)
    return list(loader)


@torch.no_grad()
def apart(model: Any, teacher: Any | None = None) -> float:
    """Mean squared error of the velocity on test digits; with a teacher, its distance from that one's."""
    images, classes = digits("test")[0]
    images, classes = images[:TESTED], classes[:TESTED]
    if teacher is None:
        return velocity_errors(model, images, classes).mean().item()
    generator, found = torch.Generator().manual_seed(0), []
    for t in TIMES:
        noise = torch.randn(images.shape, generator=generator)
        x, times = model.path.at(images, noise, torch.full((TESTED,), t))[0], torch.full((TESTED,), t)
        found.append((model(x, times, classes) - teacher(x, times, classes)).square().mean().item())
    return statistics.fmean(found)


def costs_of(models: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Numbers of each, FLOPs a digit, and milliseconds of the fastest pass of ten digits, in turns."""
    inputs = torch.randn(10, *models["teacher"].config.input_shape), torch.full((10,), 0.5), torch.arange(10)
    runs, _ = interleaved({name: partial(forward, model, *inputs) for name, model in models.items()}, budget=5.0)
    costs: dict[str, dict[str, float]] = {}
    for name, model in models.items():
        with torch.no_grad(), flop_counter(display=False) as counter:
            model(*inputs)
        costs[name] = {
            "parameters": sum(p.numel() for p in model.parameters()), "flops": counter.get_total_flops() // 10,
            "milliseconds": 1e3 * min(runs[name]),
        }  # fmt: skip
    return costs


def verdicts(costs: dict[str, dict[str, float]], records: dict[str, dict[str, list[float]]]) -> list[Verdict]:
    """What was expected, and found."""
    mean = {way: statistics.fmean(runs["errors"]) for way, runs in records.items()}
    saved, quicker = (1 - costs["student"][key] / costs["teacher"][key] for key in ("parameters", "milliseconds"))
    lines = [
        Verdict("a student saves at least 54 % of the numbers (abstract)", f"{saved:.0%}", saved >= 0.54),
        Verdict("a student is faster", f"{quicker:.0%} of a pass's time saved", quicker > 0),
    ]
    ours, others = f"outputs, {SELF}", [way for way in mean if way.startswith("outputs,") and SELF not in way]
    if ours in mean and others:
        best = min(others, key=mean.__getitem__)
        lines.append(Verdict("self-attention teaches the most of all features",
                             f"{mean[ours]:.4f}, of {best.removeprefix('outputs, ')} {mean[best]:.4f}",
                             mean[ours] < mean[best]))  # fmt: skip
    if ours in mean and "task alone" in mean:
        lines.append(Verdict("and more than the task alone", f"{mean[ours]:.4f}, {mean['task alone']:.4f}",
                             mean[ours] < mean["task alone"]))  # fmt: skip
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("koala", __doc__)
    parser.add_argument("--steps", type=int, default=50, help="of each student, 64 digits each")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    options = parser.parse_args(arguments)
    teacher: Any = zoo.create_model("unet_nano", pretrained=True).eval()
    records: dict[str, dict[str, list[float]]] = {"teacher": {"errors": [apart(teacher)], "distances": [0.0]}}
    shown: dict[str, Any] = {"teacher": teacher}
    for way, seed in each([(way, seed) for way in options.ways for seed in range(options.seeds)], "teaching"):
        model = taught(way, options.steps, seed)
        record = records.setdefault(way, {"errors": [], "distances": []})
        record["errors"].append(apart(model))
        record["distances"].append(apart(model, teacher))
        shown.setdefault(way, model)
    costs = costs_of({"teacher": teacher, "student": shown[options.ways[0]]})
    rows = [
        [name, f"{statistics.fmean(runs['errors']):.4f}", f"{statistics.pstdev(runs['errors']):.4f}",
         f"{statistics.fmean(runs['distances']):.5f}"]
        for name, runs in records.items()
    ]  # fmt: skip
    sizes = [
        [name, f"{found['parameters']:,}", f"{found['flops'] / 1e6:.1f}", f"{found['milliseconds']:.1f}"]
        for name, found in costs.items()
    ]

    def plot(path: Path) -> None:
        classes = torch.arange(10)
        made = [
            draw(model, 10, classes=classes, guidance=1.0, generator=torch.Generator().manual_seed(0))
            for model in shown.values()
        ]
        picture(torch.cat(made), 10, 6).save(path)

    publish(
        "koala", options, {"steps": options.steps, "seeds": options.seeds, "costs": costs, "records": records},
        show_verdicts(verdicts(costs, records)),
        ("What a pass takes", ["", "parameters", "MFLOPs a digit", "ms a pass, least"], sizes),
        (f"After {options.steps} steps", ["learns of", "error", "deviation of seeds", "from the teacher"], rows),
        before=last_paragraph(__doc__) + "\n\n",
        after=f"![digits](koala.png)\n\nTen digits a row, of the same noise, from the top: {'; '.join(shown)}.\n",
        plot=plot,
    )  # fmt: skip
