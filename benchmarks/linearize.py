"""What does each part of linear attention give? A transformer made linear, whole and without one part at a time.

    zoo bench linearize                      # writes benchmarks/results/linearize.{json,md}; resumes what is there
    zoo bench linearize --models "whole" "no gate" --steps 40 --no-save

transformer_nano with its bundled weights is made linear with a window of 32 steps and learns by the recipe
docs_lizard_nano in as many optimiser steps for every variant, half of them in each stage where there are two. Scored in
bits per byte of the test documents; the state is that of one text of 4,096 bytes.

Expectation (Nguyen et al., "Lizard", arXiv 2507.09025, whose 61.2 % of MMLU fall to 39.7 without the window, 42.2
without gates and 50.8 without the first stage): whole, it stays within 0.05 bits per byte of the transformer with a
state that does not grow; without any one part it is worse.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import torch

import zoo
from zoo.benchmarks.common import RESULTS, command_line, last_paragraph, machine, publish, write_result
from zoo.cli import recipe_path

TEACHER, LENGTH = "transformer_nano", 4096


class Variant(NamedTuple):
    """How attention is made linear, and which share of the steps is the first stage."""

    options: dict[str, Any]
    transfer: float = 0.5


VARIANTS = {
    "whole": Variant({}),
    "no window": Variant({"window": None}),
    "no linear attention": Variant({"linear": False}),
    "no gate": Variant({"gate": False}),
    "no meta tokens": Variant({"meta_tokens": 0}),
    "no first stage": Variant({}, 0.0),
    "no second stage": Variant({}, 1.0),
    "softmax in one block of three": Variant({"softmax_blocks": [1]}),
}


def score(model: str) -> float:
    """Bits per byte of the test documents."""
    from lightning import Trainer

    from zoo.train.data import DocumentationDataModule
    from zoo.train.tasks import LanguageModeling

    data = DocumentationDataModule(seq_len=256, batch_size=32)
    task = LanguageModeling(model, {} if ":" in model else {"pretrained": True})
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    return trainer.test(task, data, verbose=False)[0]["test/bits_per_byte"]


@torch.no_grad()
def state_bytes(model: Any) -> int:
    """Memory of a text's state after ``LENGTH`` bytes."""
    state = model.eval().init_state(1, max_length=LENGTH)
    model(torch.zeros(1, LENGTH, dtype=torch.int64), state)
    return state.nbytes


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train one variant: its record."""
    from zoo.train.command import TrainingRun

    variant = VARIANTS[name]
    change = {"kind": "linearized", "window": 32, **variant.options}
    overrides = [
        f"--model.model={TEACHER}", f"--model.model_args={json.dumps({'changes': [change]})}",
        f"--model.transfer={variant.transfer}", f"--trainer.max_steps={options.steps}",
        "--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        TrainingRun(recipe_path("docs_lizard_nano"), overrides, Path(folder)).fit()
        saved = f"local-dir:{Path(folder) / 'model'}"
        found = {"bits": score(saved), "state_bytes": state_bytes(zoo.create_model(saved))}
    return {"variant": name, **found}


def show(records: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A row a variant, beside the transformer and the whole."""
    bits = {record["variant"]: record["bits"] for record in records}
    rows = []
    for record in records:
        name, loss = record["variant"], record["bits"] - bits[TEACHER]
        expected = {TEACHER: "", "whole": "met" if loss <= 0.05 else "missed"}
        worse = "" if "whole" not in bits else "met" if record["bits"] > bits["whole"] else "missed"
        figures = [f"{record['bits']:.3f}", f"{loss:+.3f}", f"{record['state_bytes']:,}"]
        rows.append([name, *figures, expected.get(name, worse)])
    return ["", "bits per byte", "to the transformer", "state, bytes", "expectation"], rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("linearize", __doc__, patterns=VARIANTS, goes_on=True)
    parser.add_argument("--steps", type=int, default=120, help="optimiser steps of a variant")
    parser.add_argument("--fresh", action="store_true", help="measure again what the results hold")
    options = parser.parse_args(arguments)
    path, settings = RESULTS / "linearize.json", {"steps": options.steps}
    before = json.loads(path.read_text()) if path.exists() and not options.fresh else {"settings": None}
    records = before["records"] if before["settings"] == settings else []
    if not records:
        records = [{"variant": TEACHER, "bits": score(TEACHER), "state_bytes": state_bytes(zoo.create_model(TEACHER))}]
    for name in VARIANTS:
        if any(fnmatch(name, one) for one in options.models) and name not in {r["variant"] for r in records}:
            records.append(measure(name, options))
            if not options.no_save:
                write_result(path, {"machine": machine(), "settings": settings, "records": records})
    shown = f"{TEACHER} made linear, {options.steps} steps", *show(records)
    found = {"settings": settings, "records": records}
    publish("linearize", options, found, shown, before=f"{last_paragraph(__doc__)}\n\n")
