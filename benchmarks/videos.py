"""Fewer tokens of a clip: what is kept, FLOPs, and how many questions about several frames are answered.

    zoo bench videos                        # writes benchmarks/results/videos.{json,md,png}
    zoo bench videos --ways 'VideoScan*' --clips 60 --no-save

A llava_nano of 16 patches a frame answers questions about generated test clips of four frames, greedily, each right or
not, to the letter: a digit or a shape moves, then another; "first? " and "last? " ask for them, "way? " where the first
one went. All tokens of all frames are 64. What is learnt comes with the package (``python -m
zoo.benchmarks.video_training``): "all frames" learnt to read them and the last frame alone; VideoScan under the mask of
its second stage, LongVLM with merged segments, both after it. "Untrained" ways read by the weights of "all frames".
Kept is what layers hold of a clip; FLOPs are torch's count of the products, encoder included, of a clip with its
question and of a token after it. LongVLM with all tokens has no class tokens, and is compared bit by bit.

Expected, of models with thousands of times the parameters: VideoScan answers 87 % of what all frames do with a token a
frame (arXiv 2503.09387: 55.1 of 63.3 on VideoMME, memory 128), 98 % of that with half the memory (54.0), and no fewer
than one frame alone, which is a line of ours. For LongVLM (arXiv 2404.03384) we know no such figure: segments
keep the order of events, so that two answer no fewer than one merge of all frames to as many tokens, and no fewer than
one frame alone; lines of ours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from zoo.benchmarks.common import command_line, last_paragraph, publish, telling
from zoo.benchmarks.tables import Shown, Verdict, panels, show_verdicts
from zoo.benchmarks.video_training import (
    FRAMES,
    MERGED,
    PATCHES,
    QUESTIONS,
    clips,
    entered,
    long_vlm,
    taught,
)
from zoo.layers import ModelState
from zoo.train.data.pictures import DOCUMENT
from zoo.vision_language import LongVLM, VideoScan

PLAIN, ALONE, EVERY = "all frames", "one frame", FRAMES * PATCHES
CLIPS, ANSWER = 150, 8  # questions; tokens whose FLOPs are counted


class Read(NamedTuple):
    """What was read of clips and questions."""

    state: ModelState
    logits: Tensor
    """(B, V), of what follows."""
    kept: float
    """Tokens of a clip that layers hold."""


class Way(NamedTuple):
    """How a clip is read, (B, F, C, H, W) and a question (B, T), and by the weights of which lesson."""

    read: Callable[[Any, Tensor, Tensor], Read]
    lesson: str
    batch: int = 50


def together(reduction: LongVLM | None, model: Any, images: Tensor, asked: Tensor) -> Read:
    """All frames stand before the question, or what is left of them."""
    count = model.tokens_of_image(reduction) * (images.shape[1] if reduction is None else 1)
    state = model.init_state(len(asked))
    tokens = entered(model, count, asked)
    logits = model(images.flatten(0, 1), tokens, state, logits_to_keep=1, reduction=reduction)[:, -1]
    return Read(state, logits, count)


def alone(model: Any, images: Tensor, asked: Tensor) -> Read:
    """The last frame."""
    return together(None, model, images[:, -1:], asked)


def carried(memory: int, model: Any, images: Tensor, asked: Tensor) -> Read:
    """Frame after frame, of one clip."""
    scan = VideoScan(model, memory=memory, prompt=[DOCUMENT])
    for frame in images[0]:
        scan.add(frame)
    kept = scan.held - 1
    return Read(scan.state, model.language(asked, scan.state, logits_to_keep=1)[:, -1], kept)


def merged(kept: int, lesson: str, **options: int) -> Way:
    return Way(partial(together, long_vlm(kept, **options)), lesson)


WAYS: dict[str, Way] = {
    PLAIN: Way(partial(together, None), "all"),
    ALONE: Way(alone, "all"),
    **{f"VideoScan, memory {m}": Way(partial(carried, m), "video_scan", 1) for m in (4, 2, 1)},
    "VideoScan, untrained": Way(partial(carried, 4), "all", 1),
    "LongVLM, all kept": merged(EVERY // 2, "all", classes=0),
    **{f"LongVLM, 2 x {n}": merged(n, "longvlm") for n in MERGED},
    **{f"LongVLM, untrained, 2 x {n}": merged(n, "all", classes=0) for n in (16, 8)},
    **{f"one merge, untrained, {n}": merged(n, "all", segments=1, classes=0) for n in (32, 16)},
}
EXACT = "LongVLM, all kept"
BOUNDS = (
    ("VideoScan, memory 4", PLAIN, 55.1 / 63.3, "87 % of all frames' right answers (2503.09387)"),
    ("VideoScan, memory 2", "VideoScan, memory 4", 54.0 / 55.1, "98 % of twice the memory's (2503.09387)"),
    ("VideoScan, memory 4", ALONE, 1.0, "no fewer than one frame alone (ours)"),
    ("LongVLM, 2 x 8", ALONE, 1.0, "no fewer than one frame alone (ours)"),
    ("LongVLM, untrained, 2 x 16", "one merge, untrained, 32", 1.0, "no fewer than one merge (ours)"),
    ("LongVLM, untrained, 2 x 8", "one merge, untrained, 16", 1.0, "no fewer than one merge (ours)"),
)


def said(model: Any, read: Read, length: int) -> Tensor:
    """The logits (B, length, V) of the likeliest text."""
    logits = [read.logits]
    while len(logits) < length:
        logits.append(model.language(logits[-1].argmax(-1, keepdim=True), read.state)[:, -1])
    return torch.stack(logits, 1)


class Subject:
    """Test clips, and what the plain model said."""

    def __init__(self, count: int):
        self.drawn, self.plain = clips(torch.arange(count), "test"), dict[tuple[int, int], Tensor]()

    @torch.no_grad()
    def measured(self, name: str) -> dict[str, Any]:
        """The record of a way."""
        way, right, kept, same = WAYS[name], defaultdict[str, list[bool]](list), 0.0, True if name == EXACT else None
        model = taught(way.lesson)
        for kind, question in enumerate(QUESTIONS):
            rows = range(kind, len(self.drawn.asked), len(QUESTIONS))
            for begin in range(0, len(rows), way.batch):
                part = rows[begin : begin + way.batch]
                asked = torch.tensor([[*question.encode()]] * len(part))
                answers = [[*self.drawn.answers[row].encode(), DOCUMENT] for row in part]
                read = way.read(model, self.drawn.images[list(part)], asked)
                logits, kept = said(model, read, max(map(len, answers))), read.kept
                if name == PLAIN:
                    self.plain[kind, begin] = logits
                elif same is not None:
                    same = same and torch.equal(logits, self.plain[kind, begin])
                ids = logits.argmax(-1).tolist()
                right[question] += [one[: len(a)] == a for one, a in zip(ids, answers, strict=True)]
        with FlopCounterMode(display=False) as prompt:
            read = way.read(model, self.drawn.images[:1], torch.tensor([[*QUESTIONS[0].encode()]]))
        with FlopCounterMode(display=False) as further:
            said(model, read, 1 + ANSWER)
        return {
            "way": name, "kept": kept, "accuracy": sum(map(sum, right.values())) / sum(map(len, right.values())),
            "accuracies": {kind.strip(): sum(of) / len(of) for kind, of in right.items()}, "same": same,
            "prompt_flops": prompt.get_total_flops(), "token_flops": further.get_total_flops() / ANSWER,
        }  # fmt: skip


def verdicts(records: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """Of what was measured."""
    found, made = {record["way"]: record for record in records}, []
    for way, beside, least, says in BOUNDS:
        if {way, beside} <= set(found):
            share = found[way]["accuracy"] / max(found[beside]["accuracy"], 1e-9)
            made.append(Verdict(f"{way}: {says}; at least {least:.3f}", f"{share:.3f}", share >= least))
    same = found.get(EXACT, {}).get("same")
    if same is not None:
        made.append(Verdict(f"{EXACT}: the plain model's logits, bit for bit", "equal" if same else "other", same))
    return made


def show(records: Sequence[Mapping[str, Any]], count: int) -> Shown:
    """A row a way."""
    rows = [
        [
            record["way"], f"{record['kept']:.0f}", f"{record['prompt_flops'] / 1e6:.2f}",
            f"{record['token_flops'] / 1e6:.3f}", f"{record['accuracy']:.1%}",
            *(f"{share:.0%}" for share in record["accuracies"].values()),
        ]
        for record in records
    ]  # fmt: skip
    columns = ["", "kept", "clip, MFLOP", "token, MFLOP", "right", *records[0]["accuracies"]]
    return f"{count} questions about clips of {FRAMES} frames", columns, rows


def plot(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Right answers over tokens kept and over FLOPs, a line a kind of way."""
    lines: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        name, _, rest = record["way"].partition(", ")
        lines[f"{name}, untrained" if "untrained" in rest or record["way"] == EXACT else name].append(record)
    with panels(path, 1, 2, (12, 4.4)) as axes:
        for axis, what in zip(axes[0], ("tokens of a clip kept", "MFLOP of a clip and question"), strict=True):
            for (name, held), mark in zip(lines.items(), "*Xos^vD", strict=False):
                over = [r["kept"] if axis is axes[0][0] else r["prompt_flops"] / 1e6 for r in held]
                axis.plot(over, [100 * r["accuracy"] for r in held], label=name, marker=mark)
            axis.set_xlabel(what)
            axis.set_ylabel("questions answered, %")
            axis.set_ylim(0, 102)
            axis.grid(alpha=0.3)
        axes[0][1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("videos", __doc__)
    parser.add_argument("--ways", nargs="+", default=["*"], metavar="PATTERN", help=f"of {'; '.join(WAYS)}")
    parser.add_argument("--clips", type=int, default=CLIPS, help=f"clips with a question each ({CLIPS})")
    options = parser.parse_args(arguments)
    names = [name for name in WAYS if name == PLAIN or any(fnmatch(name, one) for one in options.ways)]
    subject, records = Subject(options.clips), []
    with telling(len(names)) as say:
        for name in names:
            say(name)
            records.append(subject.measured(name))
    publish(
        "videos", options, {"clips": options.clips, "records": records}, show_verdicts(verdicts(records)),
        show(records, options.clips), before=f"{last_paragraph(__doc__)}\n\n", plot=partial(plot, records),
    )  # fmt: skip
