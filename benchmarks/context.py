"""Does Mamba read further than it was trained to, and does LongMamba help? Bits per byte of windows of growing length.

    zoo bench context                       # writes benchmarks/results/context.{json,md}
    zoo bench context --lengths 256 1024 --no-save

The bundled nano models were trained on windows of 256 bytes of Python's documentation. Test documents are scored in
windows of each length, read in one call: as the model is, and after ``zoo.extend_context`` on training windows of 256
bytes. All bytes of a window count but the first; and its last 256 alone, which have the most behind them.

Expectation (Ye et al., "LongMamba", arXiv 2504.16053): the plain model gets worse beyond the trained length, and the
extended one is better there; up to the trained length both are the same.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from zoo.benchmarks.common import command_line, each, last_paragraph, publish
from zoo.train.data import DocumentationDataModule

MODELS = ("mamba_nano", "mamba2_nano")
TRAINED = 256
LENGTHS = (256, 512, 1024, 2048, 4096)
TEXTS = 100  # that thresholds are made of, as the authors


def windows(split: str, length: int, count: int) -> Tensor:
    """So many windows (count, length) spread over the documents."""
    text = DocumentationDataModule(seq_len=length, batch_size=1)
    text.setup()
    source = (text.train_dataloader() if split == "train" else text.test_dataloader()).source
    return source.fetch(torch.linspace(0, len(source) - 1, count).long(), 0)[0]


@torch.inference_mode()
def bits(model: Any, tokens: Tensor) -> tuple[float, float]:
    """Bits per byte of windows (n, L) after their first byte, and of their last ``TRAINED`` bytes."""
    nats = torch.stack([
        F.cross_entropy(model(row[None])[0, :-1].float(), row[1:], reduction="none") for row in tokens
    ])  # fmt: skip
    return nats.mean().item() / math.log(2), nats[:, -TRAINED:].mean().item() / math.log(2)


def measure(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The records of one model, plain and extended, at each length."""
    models: Any = [zoo.create_model(name, pretrained=True).eval() for _ in range(2)]
    plain, extended = models
    zoo.extend_context(extended, windows("train", TRAINED, TEXTS), memory=options.memory, clamp=options.clamp)
    mixers = [mixer.step_rule.threshold[-1] > 0 for mixer in extended.mixers]
    found = []
    for length in each(options.lengths, name):
        tokens = windows("test", length, max(2, options.bytes // length))
        for kind, model in (("plain", plain), ("longmamba", extended)):
            whole, last = bits(model, tokens)
            found.append({"model": name, "kind": kind, "length": length, "bits": whole, "last": last})
    share = torch.cat(mixers).float().mean().item()
    return [record | {"global_channels": share} for record in found]


def show(records: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A row a length: both models on all bytes, then on the last."""
    by = {(r["kind"], r["length"]): r for r in records}
    rows = []
    for length in dict.fromkeys(r["length"] for r in records):
        plain, long = by["plain", length], by["longmamba", length]
        verdict = (
            "the same" if plain == long | {"kind": "plain"} else "met" if long["bits"] < plain["bits"] else "missed"
        )
        rows.append([f"{length:,}", *(f"{r[key]:.4f}" for key in ("bits", "last") for r in (plain, long)), verdict])
    return ["length", "plain", "LongMamba", "plain, last 256", "LongMamba, last 256", "better"], rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("context", __doc__, models=MODELS)
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--bytes", type=int, default=16384, help="of test documents at each length, in whole windows")
    parser.add_argument("--memory", type=float, default=0.05, help="see zoo.extend_context")
    parser.add_argument("--clamp", type=float, default=0.0, help="see zoo.extend_context")
    options = parser.parse_args(arguments)
    records = [record for name in options.models for record in measure(name, options)]
    shown = []
    for name in options.models:
        own = [r for r in records if r["model"] == name]
        share = f"{100 * own[0]['global_channels']:.0f} % of the channels are global"
        shown.append((f"{name}, trained on {TRAINED} bytes; {share}", *show(own)))
    found, text = {"settings": vars(options), "records": records}, f"{last_paragraph(__doc__)}\n\n"
    after = f"Bits per byte of about {options.bytes:,} bytes of test documents. "
    publish("context", options, found, *shown, before=text, after=after)
