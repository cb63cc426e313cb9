"""Every adapter beside training all weights: what learns, memory and time of a step, and what a small task gains.

    zoo bench adapters                # writes benchmarks/results/adapters.{json,md}
    zoo bench adapters --steps 20 --no-save

Memory and time are those of a training step, AdamW's first included, in float32, of four blocks of width 512 on 1,024
tokens of one byte each; a peak is that of a fresh process, above the model. Of IST it is the mean over the layer that
learns. MobileTL's are those of the last three blocks of MobileNetV2 alone (mbv2_w035, 32 images of 224 pixels), beside
the same blocks trained whole; of all weights of that network they are a step of the whole.

Scores: bits per byte of held-out modules of Python's library by the bundled transformer_nano or mamba2_nano, which have
learnt documentation, after some steps; where attention is kept to groups on 512 bytes, twice what it was trained on;
and of the model in 3 bits, beside one that was tuned by LoRA first and rounded then. Images: accuracy of mcunet_nano,
which knows digits, on digits that are turned by a quarter and in negative. Stream: accuracy of vit_nano over ten
classes of such digits, two of them in each of five tasks, after the last.

Expectations are the papers' own, of large models on GPUs, or what their abstracts say of LoRA or of training all
weights; papers are by their numbers at arXiv.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import zoo
from zoo.benchmarks.adapter_ways import (
    ALL_IMAGES,
    ALONE,
    BITS,
    CODE,
    DYNAMIC,
    FULL,
    GROUPS,
    HEAD,
    IMAGES,
    IST,
    L4Q,
    LONG,
    LORA,
    LST,
    MAMBA,
    MAMBA_FULL,
    MOBILE,
    NANO,
    PACA,
    PAPERS,
    PEQA,
    ROUNDED,
    SAME,
    SINK,
    SKETCH,
    STATIC,
    STORE,
    STREAM,
    TEXT,
    WHOLE,
    measure,
)
from zoo.benchmarks.common import MIB, command_line, medians, publish, telling

COLUMNS = [
    "method", "paper", "task", "learns", "peak (MiB)", "of all weights", "time (ms)", "of all weights", "score",
    "expected (found)", "met",
]  # fmt: skip
BEFORE = """\
Two models stand in a row. Peak and time are of a training step of four blocks of width 512 ({large:,} numbers), of
images of the last blocks of MobileNetV2, and so is what learns of texts; scores are what the bundled nanos come to
({nano:,} numbers, of images {images:,}), and what learns of images and of the stream is of these. The ladder is 8
times as narrow as the model in the step, and 4 times in the score.

"""
REASONS = """\
What is not met is as measured. A peak is above the model, so that weights in 3 bits (PEQA, L4Q, SketchTune) save
nothing of it, and of 1,024 tokens it is made of activations, which these keep as LoRA does. DoRA, of which no
saving is expected, keeps more of them: each layer's output before it is scaled. Of these shapes PaCA computes
1.5 % fewer operations than LoRA (78.4 and 79.6 GFLOPs, counted); the paper's 22 % are of GPUs, where each of
LoRA's small products is a launch. IST lets one of the nano's three layers learn in a step, so that each has a
third of LoRA's steps. L4Q's gradient of a whole matrix lives for a moment, which is little of a model of 7
billion numbers and much of four blocks. The figures of LoRA on recurrences are of half precision on a GPU.
"""
WHAT_ALL = {ALL_IMAGES: ALL_IMAGES, SAME: ALL_IMAGES, MOBILE: ALL_IMAGES, MAMBA_FULL: MAMBA_FULL, MAMBA: MAMBA_FULL}


def expected(found: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Method -> what its paper says, what was found, and whether that is met."""
    size, score = found["bytes"], found["score"]
    seconds = medians(found["runs"])

    def less(of: dict[str, float], name: str, beside: str) -> float:
        return 1 - of[name] / of[beside]

    memory, faster = less(size, PACA, LORA), less(seconds, PACA, LORA)
    gain = {name: score[f"before: {LONG}"] - score[name] for name in (WHOLE, SINK, GROUPS)}
    sink, groups = (gain[name] / (gain[WHOLE] or float("nan")) for name in (SINK, GROUPS))
    mamba, tokens = less(size, MAMBA, MAMBA_FULL), seconds[MAMBA_FULL] / seconds[MAMBA]
    mobile, lost = less(size, MOBILE, SAME), score[SAME] - score[MOBILE]
    apart, together, share = found["store"]
    return {
        "DoRA": ("score not above LoRA's", score["DoRA"] <= score[LORA]),
        PACA: (
            f"16 % less memory and 22 % less time than LoRA ({memory:.0%}, {faster:.0%})",
            memory >= 0.16 and faster >= 0.22,
        ),
        LST: (f"69 % less memory than all weights ({less(size, LST, FULL):.0%})", less(size, LST, FULL) >= 0.69),
        IST: (
            f"less memory than LoRA ({less(size, IST, LORA):.0%}), score not above its",
            size[IST] < size[LORA] and score[IST] <= score[LORA],
        ),
        SINK: (
            f"92 % of the gain of whole attention ({sink:.0%}), LongLoRA's groups 39 % ({groups:.0%})", sink >= 0.92
        ),
        PEQA: (
            f"score below that of LoRA, then rounded; less memory than all weights ({less(size, PEQA, FULL):.0%})",
            score[PEQA] < score[ROUNDED] and size[PEQA] < size[FULL],
        ),
        L4Q: (
            f"score below that of LoRA, then rounded; 1.2 % more memory than LoRA ({-less(size, L4Q, LORA):.0%})",
            score[L4Q] < score[ROUNDED] and size[L4Q] <= 1.012 * size[LORA],
        ),
        SKETCH: (
            f"score below that of LoRA, then rounded; less memory and time than LoRA ({less(size, SKETCH, LORA):.0%}, "
            f"{less(seconds, SKETCH, LORA):.0%})",
            score[SKETCH] < score[ROUNDED] and size[SKETCH] < size[LORA] and seconds[SKETCH] < seconds[LORA],
        ),
        MAMBA: (
            f"up to 65.5 % less memory than all weights ({mamba:.0%}) and 2.15 times the speed ({tokens:.2f})",
            mamba >= 0.655 and tokens >= 2.15,
        ),
        MOBILE: (
            f"46.3 % less memory than the blocks trained whole ({mobile:.0%}), 0.6 points of accuracy less at most "
            f"({100 * lost:.1f})",
            mobile >= 0.463 and lost <= 0.006,
        ),
        STATIC: ("5 points above adapters alone", score[STATIC] >= score[ALONE] + 0.05),
        DYNAMIC: ("5 points above adapters alone", score[DYNAMIC] >= score[ALONE] + 0.05),
        STORE: (
            f"what LoRA tunes shares its base ({share:.0%}); {together / 1e6:.2f} of {apart / 1e6:.2f} MB", share == 1
        ),
    }  # fmt: skip


def rows_of(found: dict[str, Any]) -> list[list[str]]:
    """The one table."""
    size, score, learns = found["bytes"], found["score"], found["learns"]
    seconds = medians(found["runs"])
    said = expected(found)
    before = {CODE: CODE, LONG: LONG, BITS: BITS}
    order = [
        *TEXT, ROUNDED, HEAD, ALL_IMAGES, SAME, MOBILE, ALONE, STATIC, DYNAMIC, STORE,
    ]  # fmt: skip

    def task_of(name: str) -> str:
        if name in TEXT:
            return TEXT[name].on
        return {ROUNDED: BITS, ALONE: STREAM, STATIC: STREAM, DYNAMIC: STREAM}.get(name, IMAGES)

    def shown(name: str) -> list[str]:
        if name == STORE:
            return [name, PAPERS[name], "", "", "", "", "", "", ""]
        whole = WHAT_ALL.get(name, FULL)
        figure = score[name]
        return [
            name, TEXT[name].paper if name in TEXT else PAPERS.get(name, ""), task_of(name),
            f"{learns[name]:,}" if name in learns else "",
            f"{size[name] / MIB:,.1f}" if name in size else "",
            f"{size[name] / size[whole]:.2f}" if name in size else "",
            f"{seconds[name] * 1e3:,.0f}" if name in seconds else "",
            f"{seconds[name] / seconds[whole]:.2f}" if name in seconds else "",
            f"{figure:.1%}" if task_of(name) in (IMAGES, STREAM) else f"{figure:.3f}",
        ]  # fmt: skip

    rows = [[*shown(name), said.get(name, ("", True))[0], verdict(said, name)] for name in order]
    for name, task in before.items():
        rows.append(["as it was", "", task, "0", "", "", "", "", f"{score[f'before: {name}']:.3f}", "", ""])
    rows.append(["as it was, in tables", "", BITS, "0", "", "", "", "", f"{score['before: tables']:.3f}", "", ""])
    rows.append(["Mamba-2 as it was", "", CODE, "0", "", "", "", "", f"{score['before: mamba']:.3f}", "", ""])
    return rows


def before(found: dict[str, Any]) -> str:
    """What the figures of a row are of."""
    named = (("nano", NANO), ("images", "mcunet_nano"))
    nanos = {name: zoo.model_info(model).num_parameters for name, model in named}
    return BEFORE.format(large=found["learns"][FULL], **nanos)


def verdict(said: dict[str, tuple[str, bool]], name: str) -> str:
    return "" if name not in said else "yes" if said[name][1] else "no"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("adapters", __doc__, budget=8.0)
    parser.add_argument("--steps", type=int, default=60, help="of tuning")
    options = parser.parse_args(arguments)
    with telling() as say:
        found = measure(options.steps, options.budget, say)
    title = f"Ways to tune few numbers, {options.steps} steps"
    publish("adapters", options, found, (title, COLUMNS, rows_of(found)), before=before(found), after=REASONS)
