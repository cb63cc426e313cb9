"""Experts in several widths (D2MoE): what a bit of mean width costs, what is read for a token, and in which order.

    zoo bench widths                       # writes benchmarks/results/widths.{json,md}
    zoo bench widths --epochs 1 --no-save

moe_nano with its bundled weights has its experts in 2 to 4 bits (`zoo.quantize(model, "d2moe")`, calibrated on 32
windows of 128 bytes of the training documents), all tokens in one width or each in that of a second router, which was
taught that a bit is worth so many nats (alpha). Scored in bits per byte of test documents. Then it decodes from files
(`zoo.offload`, policy "d2moe") with room for half of the planes: bytes that are read for a token, and their share by
plane. Last, what the routers asked for in 32 prompts of 64 bytes is put on a line of time, planes loaded one after
another from disks that take as long for an expert's 4 bits as 16 and as 64 tokens to compute, in both orders.

Expected (arXiv 2504.15299): routers lose less than one width for all tokens of the same mean, between two of which the
line is straight (section on dual routing); fewer bits are fewer bytes; and the hottest expert's bits first end sooner
than expert after expert (HEBF).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

import zoo
from zoo.benchmarks.common import command_line, publish
from zoo.benchmarks.exits import text
from zoo.benchmarks.quant import calibration, scored
from zoo.offload import D2MoE
from zoo.offload.hebf import ORDERS, Plane, needs, timeline
from zoo.offload.offload import stays
from zoo.quantize.d2moe import routers

MODEL, BASE, BITS = "moe_nano", 2, 4
ALPHAS = (0.002, 0.01, 0.03)  # nats a bit
REQUESTS, LENGTH, TOKENS, DISKS = 32, 64, 32, (16, 64)
COLUMNS = (
    "widths", "mean bits", "bits per byte", "to one width", "kB a token", "by plane",
    *(f"{order}, disk {disk}" for disk in DISKS for order in ("one by one", "hottest first")),
)  # fmt: skip


def fixed(model: Any, width: int) -> Any:
    """All tokens in one width."""
    for router in routers(model):
        torch.nn.init.zeros_(router.weight)  # type: ignore[arg-type]
        router.bias.data[:] = torch.nn.functional.one_hot(torch.tensor(width - BASE), BITS - BASE + 1)  # type: ignore[operator]
    return model


def models(epochs: int) -> dict[str, Any]:
    """Name -> model."""
    trained: Any = zoo.create_model(MODEL, pretrained=True).eval()
    options: dict[str, Any] = {"bits": BITS, "base_bits": BASE, "calibration": calibration(MODEL)}
    plain = zoo.quantize(copy.deepcopy(trained), "d2moe", epochs=0, **options)
    found = {f"all {width}": fixed(copy.deepcopy(plain), width) for width in range(BASE, BITS + 1)}
    for alpha in ALPHAS:
        model = copy.deepcopy(trained)
        found[f"alpha {alpha}"] = zoo.quantize(model, "d2moe", epochs=epochs, spending=alpha, lr=0.05, **options)
    return found


Asked = list[dict[Plane, int]]  # of each call of a layer how many tokens of an expert take a width, by its last plane


@contextmanager
def noted(model: Any) -> Iterator[Asked]:
    """What the routers of widths say within."""
    seen: Asked = []

    def noting(router: Any, tokens: Any, routing: Any) -> Any:
        found = list(type(router).routings(router, tokens, routing))
        seen.append({})
        for width, part in found:
            chosen, counts = part.experts[part.experts < len(router.weight)].unique(return_counts=True)
            seen[-1] |= {(e, width - BASE): n for e, n in zip(chosen.tolist(), counts.tolist(), strict=True)}
        return iter(found)

    held: list[Any] = list(routers(model))
    for router in held:
        router.routings = partial(noting, router)
    try:
        yield seen
    finally:
        for router in held:
            del router.routings


@torch.inference_mode()
def quality(model: Any) -> dict[str, float]:
    """Bits per byte, and the mean width over all tokens, experts and layers."""
    with noted(model) as seen:
        score = scored(model, text("test", windows=96))
    total = sum(sum(asked.values()) for asked in seen)
    bits = sum((BASE + level) * count for asked in seen for (_, level), count in asked.items())
    return {"score": score, "bits": bits / total}


def read(model: Any) -> dict[str, Any]:
    """Bytes for a token with room for half of the planes, and their share by plane."""
    policy = D2MoE()
    parts = policy.parts(model)
    room = max(policy.least(parts), policy.slot(parts) * len(parts) // 2)
    small: Any = zoo.offload(copy.deepcopy(model), memory=stays(model, parts) + room, policy=policy)
    held, planes = small.offloaded, small.offloaded.leaves.__self__
    zoo.generate(small, [list(b"The import statement")], TOKENS, temperature=0)
    held.wait()
    shares = [0] * (BITS - BASE + 1)
    for number, count in held.loads.items():
        shares[planes.level(number)] += count * held.units[number].nbytes
    return {"read": held.traffic.bytes / TOKENS, "shares": [share / max(1, sum(shares)) for share in shares]}


@torch.inference_mode()
def ends(model: Any) -> dict[str, float]:
    """Order and disk -> the mean time of a layer over prompts, in which a token takes 1."""
    size = [model.experts[0].w1.nbytes_at(width) for width in range(BASE, BITS + 1)]
    shares = [(now - before) / size[-1] for before, now in zip([0, *size], size, strict=False)]
    prompts = torch.cat([inputs for inputs, _ in text("test", windows=REQUESTS)])[:, :LENGTH]
    with noted(model) as seen:
        for prompt in prompts:
            model(prompt[None])
    found = {f"{name} {disk}": 0.0 for disk in DISKS for name in ORDERS}
    for asked in seen:
        for name, order in ORDERS.items():
            planes = order(needs(asked, BITS - BASE + 1))
            for disk in DISKS:
                load = [disk * share for share in shares]
                found[f"{name} {disk}"] += timeline(planes, asked, load, 1.0).end / len(seen)
    return found


def on_the_line(records: Sequence[Mapping[str, Any]], bits: float) -> float:
    """Bits per byte of one width for all, between the two next to a mean."""
    known = sorted((r["bits"], r["score"]) for r in records if r["widths"].startswith("all"))
    for (low, first), (high, last) in itertools.pairwise(known):
        if bits <= high:
            return first + (last - first) * (bits - low) / (high - low)
    return known[-1][1]


def show(records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row a model."""
    rows = []
    for r in records:
        gain = "" if r["widths"].startswith("all") else f"{r['score'] - on_the_line(records, r['bits']):+.3f}"
        rows.append([
            r["widths"], f"{r['bits']:.2f}", f"{r['score']:.3f}", gain, f"{r['read'] / 1e3:.0f}",
            " / ".join(f"{share:.0%}" for share in r["shares"]),
            *(f"{r['ends'][f'{order} {disk}']:.1f}" for disk in DISKS for order in ("one_by_one", "hottest_first")),
        ])  # fmt: skip
    return rows


def verdicts(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was expected, and what came."""
    own = [r for r in records if not r["widths"].startswith("all")]
    by_bits = sorted(records, key=lambda r: r["bits"])
    found = {
        "Routers lose less than one width of the same mean": all(
            r["score"] < on_the_line(records, r["bits"]) for r in own
        ),
        "Fewer bits are fewer bytes": all(a["read"] <= b["read"] for a, b in itertools.pairwise(by_bits)),
    }
    for disk in DISKS:
        sooner = [r["ends"][f"hottest_first {disk}"] < r["ends"][f"one_by_one {disk}"] for r in records]
        found[f"The hottest first end sooner, disk {disk}"] = all(sooner)
    return [f"{said}: {'met' if met else 'missed'}." for said, met in found.items()]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("widths", __doc__)
    parser.add_argument("--epochs", type=int, default=5, help="passes in which the routers learn")
    options = parser.parse_args(arguments)
    records: list[dict[str, Any]] = []
    for name, model in models(options.epochs).items():
        records.append({"widths": name, **quality(model), **read(model), "ends": ends(model)})
    shown = f"{MODEL}, experts in {BASE} to {BITS} bits", COLUMNS, show(records)
    publish("widths", options, {"records": records}, shown, after="\n\n".join(verdicts(records)) + "\n")
