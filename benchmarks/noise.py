"""Does training with the noise of few bits help once weights have few bits? The same training with and without it.

    zoo bench noise                          # writes benchmarks/results/noise.{json,md}; goes on with what is there
    zoo bench noise --steps 40 --seeds 0 --no-save

transformer_nano is trained from the start by the recipe docs_transformer_gaussws, with the same data, order, steps and
initial weights for every variant of a seed: plainly, with GaussWS's noise of some bits, and with weights that are
rounded to as many while they learn. Then each is scored in bits per byte of the test documents as it is, without noise,
and rounded to nearest in groups of 32 to 4, 3 and 2 bits, and to FP4 (E2M1).

Expectation (arXiv "Gaussian Weight Sampling for Scalable, Efficient and Stable Pseudo-Quantization Training", abstract:
close to or better than the bfloat16 baseline, with weights down to FP6): noise costs at most 0.02 bits per byte before
rounding; and rounded to the bits of its noise, a model is better than the plain one in as many.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import zoo
from zoo.benchmarks.common import RESULTS, command_line, last_paragraph, machine, natural, publish, write_result
from zoo.benchmarks.exits import text
from zoo.benchmarks.quant import scored
from zoo.cli import recipe_path

PLAIN, CLOSE = "plain", 0.02  # bits per byte
VARIANTS: dict[str, list[dict[str, Any]]] = {
    PLAIN: [],
    "noise, 4 bits": [{"kind": "noisy_weights", "start": 6, "target": 4}],
    "noise, 3 bits": [{"kind": "noisy_weights", "start": 4, "target": 3}],
    "noise, 2 bits": [{"kind": "noisy_weights", "start": 4, "target": 2}],
    "rounded, 3 bits": [{"kind": "rounded_weights", "bits": 3}],
    "rounded, 2 bits": [{"kind": "rounded_weights", "bits": 2}],
}
FORMS: dict[str, dict[str, Any]] = {
    "float32": {}, "4 bits": {"bits": 4}, "3 bits": {"bits": 3}, "2 bits": {"bits": 2}, "FP4": {"layout": "e2m1"},
}  # fmt: skip


def measure(name: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one variant, and score it in every form: its record."""
    from zoo.train.command import TrainingRun

    overrides = [
        f"--model.model_args={json.dumps({'changes': VARIANTS[name]})}", f"--trainer.max_steps={steps}",
        f"--seed_everything={seed}", f"--data.seed={seed}", "--trainer.max_epochs=-1",
        "--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        TrainingRun(recipe_path("docs_transformer_gaussws"), overrides, Path(folder)).fit()
        trained: Any = zoo.settle(zoo.create_model(f"local-dir:{Path(folder) / 'model'}")).eval()
    return {"variant": name, "seed": seed, "bits": scores(trained)}


def scores(trained: Any) -> dict[str, float]:
    """Bits per byte of the test documents in every form."""
    test, found = text("test", windows=96), {}
    for form, options in FORMS.items():
        model = copy.deepcopy(trained)
        found[form] = scored(zoo.quantize(model, **options) if options else model, test)
    return found


def means(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Variant -> form -> the mean over the seeds that all variants have."""
    seeds = set.intersection(*({r["seed"] for r in records if r["variant"] == v["variant"]} for v in records))
    return {
        variant: {form: statistics.fmean(r["bits"][form] for r in held) for form in FORMS}
        for variant in VARIANTS
        if (held := [r for r in records if r["variant"] == variant and r["seed"] in seeds])
    }


def show(records: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A row a variant: the mean, over the seeds, in every form, and both expectations of noise."""
    found, rows = means(records), []
    for variant, bits in found.items():
        verdicts = ["", ""]
        if variant.startswith("noise") and PLAIN in found:
            own = variant.partition(", ")[2]
            cost, gain = bits["float32"] - found[PLAIN]["float32"], bits[own] - found[PLAIN][own]
            verdicts = [f"{cost:+.3f} {_met(cost <= CLOSE)}", f"{gain:+.3f} {_met(gain < 0)}"]
        rows.append([variant, *(f"{bits[form]:.3f}" for form in FORMS), *verdicts])
    return ["trained", *FORMS, "float32 to plain", "its bits to plain"], rows


def _met(holds: bool) -> str:
    return "met" if holds else "missed"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("noise", __doc__, patterns=VARIANTS, goes_on=True)
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps of 8 windows of 256 bytes")
    parser.add_argument("--seeds", type=natural, nargs="+", default=[0, 1], metavar="SEED")
    parser.add_argument("--fresh", action="store_true", help="measure again what the results hold")
    options: argparse.Namespace = parser.parse_args(arguments)
    path, settings = RESULTS / "noise.json", {"steps": options.steps}
    before = json.loads(path.read_text()) if path.exists() and not options.fresh else {"settings": None, "records": []}
    records: list[dict[str, Any]] = before["records"] if before["settings"] == settings else []
    done = {(r["variant"], r["seed"]) for r in records}
    wanted = [name for name in VARIANTS if any(fnmatch(name, one) for one in options.models)]
    for seed in options.seeds:
        for name in wanted:
            if (name, seed) not in done:
                records.append(measure(name, seed, options.steps))
                if not options.no_save:
                    write_result(path, {"machine": machine(), "settings": settings, "records": records})
    seeds = len({r["seed"] for r in records})
    title = f"Bits per byte of test documents after {options.steps} steps, the mean of {seeds} seeds"
    found = {"settings": settings, "records": records}
    publish("noise", options, found, (title, *show(records)), before=f"{last_paragraph(__doc__)}\n\n")
