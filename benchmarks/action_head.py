"""EfficientVLA's action head, for ``zoo bench vision_language``: attention and MLPs of some steps alone.

There is no bundled model that draws actions. The bundled dit_nano draws digits that it is asked for, in as many steps;
an image is right where the bundled vit_nano reads the digit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import zoo
from zoo.generative import FeatureReuse

HEAD, JUDGE = "dit_nano", "vit_nano"
STEPS, DRAWN = 10, 200
RUNS = ((STEPS, None), (STEPS, 1), (STEPS, 2), (STEPS, 3), (STEPS, 5), (STEPS, 10), (2, None))
"""Steps, and of how many one computes everything; None for the plain sampler."""
LEAST, COMPUTED = 74.2 / 74.8, 5  # the paper's share of successes, and the steps of which one computes everything


@torch.no_grad()
def measured(count: int = DRAWN) -> list[dict[str, Any]]:
    """A record a run, of so many images."""
    head: Any = zoo.create_model(HEAD, pretrained=True).eval()
    judge = zoo.create_model(JUDGE, pretrained=True).eval()
    classes, plain, records = torch.arange(count) % 10, None, []
    for steps, every in RUNS:
        shortcut = None if every is None else FeatureReuse(every=every)
        with FlopCounterMode(display=False) as counter:
            images = head.sample(
                count, classes=classes, steps=steps, shortcut=shortcut, generator=torch.Generator().manual_seed(0)
            )
        plain = images if plain is None else plain
        records.append(
            {
                "steps": steps, "every": every, "computed": steps if every is None else -(-steps // every),
                "flops": counter.get_total_flops() / count,
                "right": (judge(images).argmax(-1) == classes).double().mean().item(),
                "off": ((images - plain).square().sum() / plain.square().sum()).item(),
                "same": None if every is None else torch.equal(images, plain),
            }
        )  # fmt: skip
    return records


def show(records: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A row a record."""
    columns = ["", "computed", "MFLOP", "digits right", "off, %", "bits as of all"]
    rows = [
        [
            f"{r['steps']} steps, " + ("plain" if r["every"] is None else f"every {r['every']}"), str(r["computed"]),
            f"{r['flops'] / 1e6:.2f}", f"{r['right']:.1%}", f"{100 * r['off']:.2f}",
            "yes" if r["same"] else "NO" if r["every"] == 1 else "",
        ]
        for r in records
    ]  # fmt: skip
    return columns, rows


def show_expected(records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows of what was expected, and what was found."""
    found = {(record["steps"], record["every"]): record for record in records}
    whole, reused, few = (found[run] for run in ((STEPS, None), (STEPS, COMPUTED), (STEPS // COMPUTED, None)))
    share = reused["right"] / max(whole["right"], 1e-9)
    flops, same = reused["flops"] / whole["flops"], found[STEPS, 1]["same"]
    steps = STEPS // COMPUTED
    return [
        [
            f"action head, one step of {COMPUTED}: 99 % of the right (2506.10100, with all else); at least {LEAST:.3f}",
            f"{share:.3f} {'met' if share >= LEAST else 'missed'}",
        ],
        [
            f"action head, one step of {COMPUTED}: {steps} steps' FLOPs of {STEPS}, and a tenth beside them (ours); "
            f"at most {steps / STEPS + 0.1:.3f}",
            f"{flops:.3f} {'met' if flops <= steps / STEPS + 0.1 else 'missed'}",
        ],
        [
            f"action head, one step of {COMPUTED}: nearer to all steps' images than {steps} plain steps (ours); "
            "off over theirs, at most 1",
            f"{reused['off'] / few['off']:.3f} {'met' if reused['off'] <= few['off'] else 'missed'}",
        ],
        ["action head, every step: the plain sampler's images, bit for bit", "met" if same else "missed"],
    ]
