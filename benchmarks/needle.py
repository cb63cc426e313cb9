"""What lies further back than a window: recall at four times the trained length, with a memory and without.

    zoo bench needle                  # writes benchmarks/results/needle.{json,md}
    zoo bench needle --no-save        # only prints

Titans' MAC, whose attention sees segments of ``WINDOW`` tokens, and attention over a window of as many learn to look up
key-value pairs (MQAR, with queries as likely at any distance) in sequences of ``TRAINED`` tokens, as in ``zoo bench
recall``, and are asked in longer ones, where most queries are further away than any in training.

Expected, of Titans (arXiv 2501.00663, section 5.3, where MAC finds needles in 16,000 tokens): at four times the length
MAC answers 90 % and the window does not.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch

from zoo.benchmarks.common import RESULTS, command_line, natural, publish
from zoo.benchmarks.recall import SIZES, TEST, Subject, accuracy, state_bytes, train
from zoo.train.data import MQAR

TRAINED, TIMES, WINDOW, EXPECTED = 32, (1, 2, 4), 8, 0.9
ASKED = 1000  # sequences of each length
TASKS = {
    times: MQAR(seq_len=times * TRAINED, vocab_size=130, num_kv_pairs=4, power_a=1.0, random_non_queries=False)
    for times in TIMES
}
LEARNING_RATE = 6e-3
# one matrix a head, whose steps may be as long as the error: half a dozen pairs are to be kept after one sight
MEMORY = {"memory_chunk": WINDOW, "memory_depth": 1, "max_rate": 1.0}
MODELS = {
    f"MAC, segments of {WINDOW}": Subject("Titans", "titans_mac_nano", {"mlp_dim": 128, **MEMORY}),
    f"attention, window {WINDOW}": Subject(
        "attention", "transformer_nano", {"num_heads": 2, "num_kv_heads": 2, "mlp_dim": 128, "window": WINDOW}
    ),
}


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train one model, and its accuracy at each length."""
    started = time.perf_counter()
    model, done = train(MODELS[name], TASKS[1], LEARNING_RATE, options)
    return {
        "model": name, "updates": done, "parameters": sum(p.numel() for p in model.parameters()),
        "state_bytes": state_bytes(model, TASKS[TIMES[-1]].length),
        "accuracy": {n: accuracy(model, *task.generate(torch.arange(ASKED), TEST)) for n, task in TASKS.items()},
        "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip


def verdict(records: Sequence[dict[str, Any]]) -> str:
    """Whether what was expected came."""
    memory, window = (record["accuracy"][TIMES[-1]] for record in records)
    return "met" if memory >= EXPECTED > window else "missed"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("needle", __doc__)
    parser.add_argument("--updates", type=int, default=500, help="most training steps of a model")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=natural, default=0, help="of the weights")
    options = parser.parse_args(arguments)

    records = [measure(name, options) for name in MODELS]
    columns = ["model", *(f"T {task.length}, %" for task in TASKS.values()), "state, bytes", "parameters", "updates"]
    rows = [
        [r["model"], *(f"{100 * right:.1f}" for right in r["accuracy"].values()), f"{r['state_bytes']:,}",
         f"{r['parameters']:,}", str(r["updates"])]
        for r in records
    ]  # fmt: skip
    title = f"Recall beyond the trained length of {TRAINED}, width {SIZES['dim']}, depth {SIZES['depth']}"
    said = f"Expected: MAC at least {EXPECTED:.0%} at {TIMES[-1]} times the trained length, the window less. "
    said += f"{verdict(records).capitalize()}."
    said += f" {TASKS[1]!r} and longer; learning rate {LEARNING_RATE:g}, at most {options.updates} updates of "
    said += f"{options.batch_size} sequences, seed {options.seed}. "
    found = {"records": records, "verdict": verdict(records)}
    publish("needle", options, found, (title, columns, rows), after=said, folder=RESULTS)
