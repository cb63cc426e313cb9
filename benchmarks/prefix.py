"""What do N continuations of one prompt cost, with the prompt's keys kept once and with a copy a row?

    zoo bench prefix                    # writes benchmarks/results/prefix.{json,md}
    zoo bench prefix --prompts 1024 --samples 16 --no-save

A transformer of four blocks, width 512, eight heads on two of keys, float32, random weights; a step of all rows after
the prompt, in turns, and the bytes of the state. Both give the same logits to within rounding, which is checked.

Expected, before it was measured (Hydragen, arXiv 2402.05099: up to 32 times the throughput on GPUs, growing with rows
and prompt): nothing for few rows or a short prompt, where the matrices of the blocks are what is read; twice the speed
at 4096 tokens and 64 rows; and a state smaller by nearly N at any length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import zoo
from zoo.benchmarks.common import MIB, command_line, interleaved, last_paragraph, medians, publish
from zoo.layers import ModelState
from zoo.layers.attention.shared_prefix import fan_out

SIZES: dict[str, Any] = {"dim": 512, "depth": 4, "num_heads": 8, "num_kv_heads": 2, "mlp_dim": 1024}


@torch.inference_mode()
def measured(model: Any, prompt: int, samples: int, budget: float) -> dict[str, Any]:
    """Milliseconds a step, the median, and MiB of the state, both ways."""
    tokens = torch.randint(256, (1, prompt))
    copied, shared = (model.init_state(1, prompt + 1) for _ in range(2))
    for state in (copied, shared):
        model(tokens, state, logits_to_keep=1)
    copied.reorder(torch.zeros(samples, dtype=torch.int64))
    states = {"copied": copied, "shared": fan_out(shared, samples)}
    new = torch.randint(256, (samples, 1))

    def step(state: ModelState) -> Tensor:
        logits = model(new, state)
        state.crop(-1)
        return logits

    seconds, logits = interleaved({name: lambda s=state: step(s) for name, state in states.items()}, budget=budget)
    torch.testing.assert_close(logits["shared"], logits["copied"], atol=1e-4, rtol=1e-4)
    return {
        "prompt": prompt,
        "samples": samples,
        "milliseconds": {name: 1e3 * median for name, median in medians(seconds).items()},
        "mib": {name: state.nbytes / MIB for name, state in states.items()},
        "runs": len(seconds["shared"]),
    }


def rows(records: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row a setting."""
    return [
        [
            f"{one['prompt']} tokens, {one['samples']} rows",
            *(f"{one['milliseconds'][name]:.1f}" for name in ("copied", "shared")),
            f"{one['milliseconds']['copied'] / one['milliseconds']['shared']:.2f}",
            *(f"{one['mib'][name]:.1f}" for name in ("copied", "shared")),
        ]
        for one in records
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("prefix", __doc__, budget=3.0)
    parser.add_argument("--prompts", nargs="+", type=int, default=[256, 1024, 4096])
    parser.add_argument("--samples", nargs="+", type=int, default=[4, 16, 64])
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    model = zoo.create_model("transformer_nano", **SIZES).eval()
    records = [measured(model, p, n, options.budget) for p in options.prompts for n in options.samples]
    columns = ["one prompt", "copied, ms a step", "shared", "times as fast", "copied, MiB", "shared"]
    text = f"# Shared prompts\n\n{last_paragraph(__doc__)}\n\n"
    shown = "N continuations of one prompt", columns, rows(records)
    publish("prefix", options, {"sizes": SIZES, "records": records}, shown, before=text)
