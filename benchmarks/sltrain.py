"""Memory of training with sparse plus low-rank matrices (SLTrain) beside dense ones, on this machine.

    zoo bench sltrain                     # writes benchmarks/results/sltrain.{json,md}
    zoo bench sltrain --size 130m --no-save

A LLaMA of the paper's shapes is built and takes two steps of AdamW in float32, in a process of its own, dense and with
the paper's rank, density and alpha; what is measured is by how much that raises the process's peak resident memory.
Expectation: weights, gradients and two moments are 16 bytes a parameter, and the support 4 bytes a number of S, so the
peak falls by about the difference of these sums. Activations are those of the dense model, and the time is longer:
every matrix is made twice a step, from r (in + out) numbers.

Paper: Han et al., "SLTrain", arXiv 2406.02214, table 2 and figure 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import zoo
from zoo.benchmarks.common import MIB, command_line, fresh_peak, peak_memory, publish
from zoo.sltrain import SLTrain

WORDS = 32000
SIZES: dict[str, tuple[dict[str, Any], SLTrain]] = {
    "60m": ({"dim": 512, "depth": 8, "num_heads": 8, "mlp_dim": 1376}, SLTrain(rank=128, alpha=32.0)),
    "130m": ({"dim": 768, "depth": 12, "num_heads": 12, "mlp_dim": 2048}, SLTrain(rank=256)),
    "350m": ({"dim": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 2736}, SLTrain(rank=256)),
}
COLUMNS = ["matrices", "parameters", "weights, gradients, moments, support", "peak of a step"]


def build(size: str, sparse: bool, device: str | None = None) -> Any:
    """The model of a size, dense or not."""
    sizes, change = SIZES[size]
    options = {"vocab_size": WORDS, "num_kv_heads": None, "tie_embeddings": False, "device": device}
    return zoo.create_model("transformer_nano", changes=[change] if sparse else (), **options, **sizes)


def measure(size: str, sparse: bool, batch: int, length: int) -> dict[str, Any]:
    """The record of one kind; call it in a fresh process."""

    def train() -> None:
        model = build(size, sparse)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False)
        for _ in range(2):
            tokens = torch.randint(0, WORDS, (batch, length))
            optimizer.zero_grad()
            model(tokens, labels=tokens).backward()
            optimizer.step()

    warm: Any = zoo.create_model("transformer_nano")  # what a process loads once is not the model's
    warm(torch.zeros(1, 8, dtype=torch.int64), labels=torch.zeros(1, 8, dtype=torch.int64)).backward()
    torch.optim.AdamW(warm.parameters()).step()
    peak, model = peak_memory(train), build(size, sparse, "meta")
    parameters = sum(p.numel() for p in model.parameters())
    support = sum(buffer.nbytes for name, buffer in model.named_buffers() if name.endswith("support"))
    kind = "sparse plus low-rank" if sparse else "dense"
    return {"matrices": kind, "parameters": parameters, "held": 16 * parameters + support, "peak": peak}


def show(records: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [
        [r["matrices"], f"{r['parameters'] / 1e6:.1f} M", f"{r['held'] / MIB:,.0f} MiB", f"{r['peak'] / MIB:,.0f} MiB"]
        for r in records
    ]


def verdict(records: Sequence[dict[str, Any]]) -> str:
    """Whether the peak fell as it should."""
    dense, sparse = records
    expected, found = ((dense[name] - sparse[name]) / MIB for name in ("held", "peak"))
    met = "met" if found > 0.9 * expected else "missed"
    return f"Expected to save {expected:,.0f} MiB, saved {found:,.0f} MiB: {met}."


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("sltrain", __doc__)
    parser.add_argument("--size", default="60m", choices=list(SIZES), help="of the paper's models")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    options = parser.parse_args(arguments)

    size, *shape = options.size, options.batch_size, options.length
    records = [fresh_peak(measure, size, sparse, *shape) for sparse in (False, True)]
    title = f"LLaMA {size} of {WORDS:,} words, {shape[0]} sequences of {shape[1]} tokens, float32, AdamW"
    found = {"settings": vars(options), "records": records}
    publish("sltrain", options, found, (title, COLUMNS, show(records)), after=f"{verdict(records)}\n")
