"""Fine-tuning by SPT beside LoRA and beside training everything: peak memory and time of a training step.

    zoo bench sparse_tuning                       # writes benchmarks/results/sparse_tuning.{json,md}
    zoo bench sparse_tuning --lengths 512 --no-save

Two blocks of width 768 with 12 heads and SwiGLU, float32, batch 1, adapters of rank 16. SPT keeps an eighth of the keys
and half of the feed-forward layer, as its authors do. Their baseline writes the attention's weights out; torch's fused
attention does not, so both stand here. A peak is that of a fresh process, above weights and tokens.

Expectation (arXiv 2312.10365, abstract): memory down by up to 50 %, up to 2.2 times as fast as LoRA. Here: at most half
the memory of LoRA with attention written out, from T 1024 on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from zoo.benchmarks.common import MIB, command_line, fresh_peak, interleaved, medians, peak_memory, publish, telling
from zoo.layers import CausalAttention
from zoo.layers.attention.keys import masked

SHAPE: dict[str, Any] = {
    "vocab_size": 256,
    "dim": 768,
    "depth": 2,
    "num_heads": 12,
    "num_kv_heads": 12,
    "mlp_dim": 2560,
}
SPT, WRITTEN = "SPT", "LoRA, attention written out"
SIDES = (SPT, "LoRA", WRITTEN, "all weights")
LEAST, FROM = 2.0, 1024  # times less memory than with attention written out, from this length on


def written_out(attention: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, heads: Any = None) -> Tensor:
    """softmax(q k^T) v, each factor a tensor."""
    return attention.mixed(attention.weights(masked(attention.logits(q, k, v), mask)), v)


def build(side: str, length: int) -> nn.Module:
    """The model as a side trains it."""
    torch.manual_seed(0)
    model: Any = zoo.create_model("transformer_130m", **SHAPE)
    if side == SPT:
        return zoo.sparse_tuning(model, keys=length // 8)
    if side != "all weights":
        zoo.sparse_tuning(model, keys=None, active_blocks=4)
    if side == WRITTEN:
        for module in model.modules():
            if isinstance(module, CausalAttention):
                module.attend = partial(written_out, module)
    return model


def training_step(model: nn.Module, tokens: Tensor) -> Tensor:
    """The gradient of what learns, and the loss."""
    model.zero_grad()
    loss = model(tokens, labels=tokens) + sum(zoo.auxiliary_losses(model).values())
    loss.backward()
    return loss.detach()


def tokens(length: int) -> Tensor:
    return torch.randint(0, 256, (1, length), generator=torch.Generator().manual_seed(length))


def peak(side: str, length: int) -> int:
    """Bytes of a training step in this process, which must be fresh."""
    model = build(side, length)
    training_step(model, tokens(64))
    model.zero_grad()
    return peak_memory(lambda: training_step(model, tokens(length)))


def measure(lengths: Sequence[int], budget: float, tick: Callable[[str], None]) -> list[dict[str, Any]]:
    """A record a length: bytes and seconds of each side."""
    records = []
    for length in lengths:
        tick(f"T {length}: memory")
        peaks = {side: fresh_peak(peak, side, length) for side in SIDES}
        tick(f"T {length}: time")
        calls = {side: partial(training_step, build(side, length), tokens(length)) for side in SIDES}
        runs, _ = interleaved(calls, budget=budget)
        records.append({"length": length, "bytes": peaks, "runs": runs})
    return records


def rows_of(records: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for record in records:
        peaks, least = record["bytes"], LEAST if record["length"] >= FROM else None
        ratio = peaks[WRITTEN] / peaks[SPT]
        verdict = "" if least is None else "yes" if ratio >= least else "no"
        rows.append(
            [f"memory, T {record['length']} (MiB)", *(f"{peaks[s] / MIB:,.1f}" for s in SIDES), f"{ratio:.2f}x",
             "" if least is None else f"{least:g}x", verdict]
        )  # fmt: skip
        times = medians(record["runs"])
        rows.append(
            [f"time, T {record['length']} (ms)", *(f"{times[s] * 1e3:,.0f}" for s in SIDES),
             f"{times[WRITTEN] / times[SPT]:.2f}x", "", ""]
        )  # fmt: skip
    return ["training step", *SIDES, f"{WRITTEN} over {SPT}", "expected", "met"], rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("sparse_tuning", __doc__, budget=10.0)
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 1024, 2048])
    options = parser.parse_args(arguments)
    with telling() as say:
        records = measure(options.lengths, options.budget, say)
    publish("sparse_tuning", options, {"records": records}, ("Fine-tuning", *rows_of(records)))
