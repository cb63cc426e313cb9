"""Any models, and the same models in other libraries: a forward pass, a training step, a decoded token.

    zoo bench mamba2_nano transformer_nano                      # beside each other, in turns
    zoo bench "*_nano" --apart --output benchmarks/results/models.json       # each for itself: the page's table
    zoo bench shvit_s1 --against timm --batches 1 16
    zoo bench mamba2_130m --against transformers llama_cpp --lengths 512 2048 --measures forward decode

Models that read the same are timed in turns at each batch and length (or image size), and so are peers with the same
weights, after their results have been compared: where they differ by more than --tolerance of the largest value, there
is an error and no time. A figure is the median of the runs after a warm-up, with its quartiles; a token takes what 33
take more than one, over 32. Peak memory is what torch's allocator sees, beside weights and inputs.

Every group runs in a process that its failure does not take others with, and is written as soon as it is done: a run
that was broken off goes on where it ended, of the same code. Without --output, nothing is written.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

import zoo
from zoo.benchmarks import peers
from zoo.benchmarks.common import (
    CommandLine,
    interleaved,
    machine,
    markdown,
    prompt_and_step,
    save,
    table,
    write_result,
)  # fmt: skip
from zoo.benchmarks.peers import LlamaCpp, Side
from zoo.benchmarks.report import figures
from zoo.benchmarks.report.results import Results
from zoo.benchmarks.runner import DONE, Step, run_steps, sources
from zoo.profile import ValuesDecideError, measure, profile
from zoo.profile.peaks import wait
from zoo.profile.sample import LENGTH, items, sample
from zoo.registry import lookup, natural_key, nearest

MEASURES = ("forward", "training", "decode")
PICTURES = ("image-classification", "image-generation", "segmentation", "multi-task")  # tasks that read them
ROOMS = ("kernels", "layers", "zoo", "checkpoints", "benchmarks")  # whose code makes the figures
STEPS = 32  # decoded tokens
COLUMNS = ("model, measure, batch, input", "side", "median", "quartiles", "items / s", "memory", "difference", "runs")


@dataclass(frozen=True)
class Plan:
    """What is measured of a group of models.

    Attributes:
        names: of models that read the same.
        sizes: tokens of a text, or pixels a side; None: images of the model's own size, texts of the usual length.
        against: peers of each.
    """

    names: tuple[str, ...]
    measures: tuple[str, ...]
    batches: tuple[int, ...]
    sizes: tuple[int | None, ...]
    against: tuple[str, ...]
    device: str
    dtype: str
    budget: float
    tolerance: float

    @property
    def digest(self) -> str:
        """Other digits, another plan."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]


def groups(names: Sequence[str], together: bool) -> list[tuple[str, ...]]:
    """Models that are timed in turns: those of a task, or each for itself."""
    if not together:
        return [(name,) for name in names]
    tasks: dict[str, list[str]] = {}
    for name in names:
        tasks.setdefault(lookup(name).task, []).append(name)
    return [tuple(group) for group in tasks.values()]


def measured(plan: Plan) -> Iterator[dict[str, Any]]:
    """The records of a plan, one at a time; in a process of its own."""
    for size in plan.sizes:
        _require_room(plan, size)
        with tempfile.TemporaryDirectory() as folder:
            sides = {(name, side): held for name in plan.names for side, held in _sides(name, plan, size, Path(folder))}
            for batch in plan.batches:
                yield from _at(sides, plan, batch, size)


def _require_room(plan: Plan, size: int | None) -> None:
    """Raise ValueError where what is predicted to be held at once does not fit the free memory."""
    weights = most = 0
    for name in plan.names:
        reads: dict[str, Any] = {"image_size" if lookup(name).task in PICTURES else "tokens": size}
        dtype, training = getattr(torch, plan.dtype), "training" in plan.measures
        try:
            found = profile(name, **reads, batch=max(plan.batches), device="meta", dtype=dtype, training=training)
        except ValuesDecideError:  # what it keeps is known when it runs
            weights += zoo.model_info(name).num_parameters * dtype.itemsize * (1 + len(plan.against))
            continue
        weights += found.weight_bytes * (1 + len(plan.against))
        most = max(most, *(phase.memory for phase in found.phases))
    if weights + most > (free := measure.free_memory(torch.device(plan.device))):
        raise ValueError(
            f"{(weights + most) / 2**30:.1f} GiB are needed and {plan.device} has {free / 2**30:.1f} GiB free: take a "
            "smaller batch, shorter inputs, fewer models at once (--apart), or leave out training"
        )


def _sides(name: str, plan: Plan, size: int | None, folder: Path) -> Iterator[tuple[str, Side | LlamaCpp]]:
    torch.manual_seed(0)
    options: dict[str, Any] = {"img_size": size} if lookup(name).task in PICTURES and size is not None else {}
    model: Any = zoo.create_model(name, **options).eval()
    home = folder / name / "zoo"
    if {"transformers", "fla"} & set(plan.against):
        zoo.save_model(model, home)
    if "llama_cpp" in plan.against:
        peers.with_tokenizer_of_bytes(model, home)
    found: list[tuple[str, Side | LlamaCpp]] = [("zoo", Side(model))]
    room = 2 * (size or LENGTH) + 4 * STEPS
    found += [(peer, peers.BUILDERS[peer](name, model, home, room)) for peer in plan.against]
    for _, side in found:
        if isinstance(side, Side):
            side.model.to(plan.device, getattr(torch, plan.dtype)).eval()
    yield from found


def _at(sides: Mapping[tuple[str, str], Side | LlamaCpp], plan: Plan, batch: int, size: int | None) -> Iterator[dict]:
    """The records of all sides at one batch and size."""
    torch.manual_seed(0)
    models = {name: held.model for (name, side), held in sides.items() if side == "zoo" and isinstance(held, Side)}
    inputs = {name: sample(model, batch, size) for name, model in models.items()}
    for kind in plan.measures:
        able = {key: held for key, held in sides.items() if _can(key[0], held, kind, batch)}
        differ = {key: _difference(sides[key[0], "zoo"], held, inputs[key[0]], kind) for key, held in able.items()}
        if wrong := {key: d for key, d in differ.items() if not d <= plan.tolerance}:
            raise ValueError(
                f"results differ, so nothing is timed: {wrong}, more than {plan.tolerance} of the largest value"
            )
        taken = _seconds(able, kind, inputs, plan)
        for name in dict.fromkeys(name for name, _ in able):
            own = {side: taken[f"{name} {side}"] for model, side in able if model == name}
            x = inputs[name]
            yield {
                f"{name} {kind} {tuple(x.shape)}": {
                    "model": name, "measure": kind, "batch": batch, "inputs": list(x.shape),
                    "items": batch if kind == "decode" else items(models[name], x), "dtype": plan.dtype,
                    "device": plan.device, "runs": own, "beside": [other for other in plan.names if other != name],
                    "apart": {side: differ[name, side] for side in own if side != "zoo"},
                    "bytes": {} if kind == "decode" else _memory(able, name, kind, x, plan.device),
                }
            }  # fmt: skip


def _can(name: str, held: Side | LlamaCpp, kind: str, batch: int) -> bool:
    if isinstance(held, LlamaCpp):
        return kind == "decode" and batch == 1
    return kind != "decode" or lookup(name).task == "language"


def _waited(call: Any, device: torch.device) -> Any:
    found = call()
    wait(device)
    return found


def _seconds(
    able: Mapping[tuple[str, str], Any], kind: str, inputs: Mapping[str, Tensor], plan: Plan
) -> dict[str, list[float]]:
    """ "name side" -> seconds of every run, in turns."""
    budget, method = plan.budget * len(able), "moments" if kind == "decode" else kind
    calls: dict[str, Any] = {
        " ".join(key): partial(getattr(held, method), inputs[key[0]]) for key, held in able.items()
    }
    if kind == "decode":
        taken = {key: steps for key, (_, steps) in prompt_and_step(calls, STEPS, budget).items()}
    else:
        calls = {key: partial(_waited, call, torch.device(plan.device)) for key, call in calls.items()}
        for call in calls.values():  # what is compiled or read once is no run's
            call()
        taken, _ = interleaved(calls, budget=budget, most=15, shortest=0.005)
    return {key: [float(f"{seconds:.4g}") for seconds in runs] for key, runs in taken.items()}


def _difference(ours: Side | LlamaCpp, held: Side | LlamaCpp, x: Tensor, kind: str) -> float:
    """Of a peer's result from ours."""
    if held is ours or not isinstance(ours, Side):
        return 0.0
    if isinstance(held, LlamaCpp):
        mine, theirs = (peers.top(side, x) for side in (ours, held))
        return max(
            (abs(mine[t] - theirs[t]) / abs(theirs[t]) for t in mine.keys() & theirs.keys()), default=float("nan")
        )
    return peers.apart(*(side.training(x) if kind == "training" else side.forward(x) for side in (ours, held)))


def _memory(sides: Mapping[tuple[str, str], Any], name: str, kind: str, x: Tensor, device: str) -> dict[str, int]:
    found = {}
    for (model, side), held in sides.items():
        if model == name:
            held.model.zero_grad(set_to_none=True)
            found[side] = measure.peak_memory(partial(getattr(held, kind), x), torch.device(device))
    return found


class Kept:
    """The file of results as ``run_steps`` fills it; what other runs have measured stays until it is measured again.

    Raises:
        ValueError: for a file of another schema.
    """

    def __init__(self, path: Path | None):
        self.path, self.machine, self.failed = path, machine(), dict[str, str]()
        self.code = sources(*ROOMS) if path is not None else ""
        results = Results(path.parent) if path is not None and path.exists() else None
        self.records = results.records(path.stem, "records", *PLACE) if results and path else []
        self.plans: dict[str, Any] = results.files[path.stem].get("plans", {}) if results and path else {}

    def read(self, step: Step) -> dict[str, Any]:
        """Done, where the same code has finished the same plan."""
        done = self.plans.get(step.arguments[0].digest) == self.code
        return {"status": DONE, "found": {}} if done else {}

    def write(self, step: Step, status: str, seconds: float, found: dict[str, Any], error: str | None = None) -> None:
        """Put records in the place of older ones of the same model, measure and input."""
        places = {_place(r) for r in found.values()}
        new = [r | {"commit": self.machine["commit"]} for r in found.values()]
        self.records = [r for r in self.records if _place(r) not in places] + new
        self.records.sort(key=lambda r: (natural_key(r["model"]), MEASURES.index(r["measure"]), r["inputs"]))
        if error:
            self.failed[step.name] = error.splitlines()[-1]
        if status == DONE:
            self.plans[step.arguments[0].digest] = self.code
        if self.path is not None and (found or status == DONE):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_result(self.path, self.content())

    def content(self) -> dict[str, Any]:
        """Of the file."""
        return {"machine": self.machine, "plans": self.plans, "records": self.records}


PLACE = ("model", "measure", "inputs", "dtype", "device")


def _place(record: Mapping[str, Any]) -> tuple:
    return tuple(str(record[key]) for key in PLACE)


def show(records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = []
    for r in records:
        for side, runs in r["runs"].items():
            median = statistics.median(runs)
            low, _, high = statistics.quantiles(runs, n=4) if len(runs) > 1 else (median,) * 3
            shape = " × ".join(map(str, r["inputs"][1:]))
            rows.append([
                f"{r['model']}, {r['measure']}, {r['batch']}, {shape}", side, figures.seconds(median),
                f"{figures.seconds(low)} – {figures.seconds(high)}", figures.scaled(r["items"] / median),
                figures.size(r["bytes"].get(side)), f"{r['apart'][side]:.0e}" if side in r["apart"] else "",
                str(len(runs)),
            ])  # fmt: skip
    return rows


def parser() -> argparse.ArgumentParser:
    found = CommandLine("zoo bench", __doc__)
    found.add_argument("names", nargs="+", metavar="NAME", help="models, or patterns of names")
    found.add_argument("--measures", nargs="+", default=list(MEASURES), choices=MEASURES)
    found.add_argument("--batches", nargs="+", type=int, default=[1])
    found.add_argument("--lengths", nargs="+", type=int, help="tokens of a text (256, or as many as it reads)")
    found.add_argument("--sizes", nargs="+", type=int, help="pixels a side of images; the model's own where not given")
    found.add_argument("--against", nargs="+", default=[], choices=tuple(peers.PACKAGES), metavar="PEER")
    found.add_argument("--apart", action="store_true", help="each model for itself, not in turns")
    found.add_argument("--device", default="cpu")
    found.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    found.add_argument("--budget", type=float, default=1.0, help="seconds of a measure of a side (1)")
    found.add_argument("--limit", type=float, default=600.0, help="seconds after which a group is given up (600)")
    found.add_argument("--tolerance", type=float, default=1e-3, help="of a peer's difference")
    found.add_argument("--output", type=Path, metavar="FILE", help="JSON that is written, and gone on with")
    return found


def plans(options: argparse.Namespace) -> list[Plan]:
    """One a group.

    Raises:
        ValueError: for an unknown name, or a peer or device that is not there.
    """
    names: dict[str, None] = {}
    for pattern in options.names:
        fitting = zoo.list_models(pattern)
        if not fitting:
            raise ValueError(
                f"no subject and no model fits {pattern!r}{nearest(pattern, zoo.list_models())}; `zoo list` shows all"
            )
        names |= dict.fromkeys(fitting)
    peers.require(options.against)
    measure.require_device(options.device)
    found, together = [], groups(list(names), not options.apart)
    peers.require_models(options.against, together)
    for group in together:
        pictures = lookup(group[0]).task in PICTURES
        sizes = tuple((options.sizes if pictures else options.lengths) or (None,))
        found.append(Plan(
            group, tuple(options.measures), tuple(options.batches), sizes, tuple(options.against), options.device,
            options.dtype, options.budget, options.tolerance,
        ))  # fmt: skip
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    reader = parser()
    options = reader.parse_args(arguments)
    try:
        wanted = plans(options)
        kept = Kept(options.output)
    except (ValueError, OSError) as error:
        reader.error(str(error))
    steps = [Step(", ".join(plan.names), measured, (plan,), options.limit) for plan in wanted]
    say = partial(Console(stderr=True).print, highlight=False, markup=False)
    run_steps(steps, kept, seconds=math.inf, processes=1, say=say)
    names = {name for plan in wanted for name in plan.names}
    shown = [r for r in kept.records if r["model"] in names and r["measure"] in options.measures]
    if shown:
        Console(width=max(140, Console().width)).print(table("Models", COLUMNS, show(shown)))
    if options.output is not None and kept.records:
        save(
            options.output.stem, kept.content(), markdown("Models", COLUMNS, show(kept.records)), options.output.parent
        )
    return 1 if kept.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
