"""Fewer tokens of an image: what is kept, FLOPs, and how many captions and answers are right.

    zoo bench vision_language                        # writes benchmarks/results/vision_language.{json,md,png}
    zoo bench vision_language --ways VTC-CLS 'LOOK-M*' --texts 100 --no-save

The bundled llava_nano says captions and answers about generated test pictures, greedily, each right or not, to the
letter. Each way keeps a number of the 37 tokens of a picture, before the language model or in its layers. Kept is the
mean over the layers; FLOPs are torch's count of the products, encoder included, of a caption's prompt and of a further
token. Where all are kept, every logit of every answer is compared with the plain model's, bit for bit, but for models
that have fewer layers.

What is learnt comes with the package (``python -m zoo.benchmarks.picture_training``): the predictors of Dynamic-LLaVA,
whose second of three layers is the first with fewer tokens, and the reweaving: a picture is a chunk of its own, whose
tokens are kept as what three layers made of them, and where all are kept, all is one chunk. The model is as it was.
EfficientVLA's layers are judged by 128 texts of the training part; its action head is a table of its own.

Expected, of models with thousands of times the parameters: VTC-CLS answers 99, 97 and 94 % of what all tokens do with
44, 22 and 11 % of them (the table of THU-MIG/VTC-CLS: 61.7, 60.5 and 58.4 of 62.1); Dynamic-LLaVA with a fifth loses
next to nothing, read as 1 %, and saves three quarters of a prompt's FLOPs (arXiv 2412.00876, abstract); EfficientVLA
99 % with 22 % of the tokens and 69 % of the layers, two of ten steps of its action head computed (arXiv 2506.10100:
74.2 of 74.8), here with 67 % of three layers, and with 44 % of the tokens 3.7 times what as many at random do (76.4 and
20.9); LOOK-M as many with 20 % (arXiv 2406.18139), no fewer when merged than when dropped; VideoScan 87 % with a
token a frame, after training for it, which was not done here (arXiv 2503.09387: 55.1 of 63.3). For LongVLM and
reweaving (arXiv 2502.02046) we know no such figure: no fewer than as many tokens at random.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from zoo.benchmarks import action_head
from zoo.benchmarks.common import command_line, last_paragraph, publish, telling
from zoo.benchmarks.picture_tokens import ALL, Read
from zoo.benchmarks.picture_training import MODEL, pictures, plain
from zoo.benchmarks.picture_ways import PLAIN, WAYS, Way
from zoo.benchmarks.tables import panels
from zoo.train.data.pictures import QUESTIONS

TEXTS = 400
ANSWER = 16  # tokens whose FLOPs are counted
COLOURS = 10  # of lines, before they come again


class Expected(NamedTuple):
    """At least this share of the plain model's right answers, or of another way's with as many tokens; or of its FLOPs
    of a prompt, saved."""

    way: str
    budget: int
    says: str
    source: str
    least: float
    beside: str = PLAIN
    of: str = "accuracy"

    def value(self, found: Mapping[tuple[str, int], Mapping[str, Any]]) -> float | None:
        """The share; None where one was not measured."""
        own, other = (self.way, self.budget), (self.beside, ALL if self.beside == PLAIN else self.budget)
        if not {own, other} <= set(found):
            return None
        share = found[own][self.of] / max(found[other][self.of], 1e-9)
        return 1 - share if self.of == "prompt_flops" else share


_TABLE, _FEWER = "THU-MIG/VTC-CLS, table", "2412.00876, abstract"
EXPECTED = [
    Expected("VTC-CLS", 16, "99 % of all's, with 44 % of the tokens", _TABLE, 61.7 / 62.1),
    Expected("VTC-CLS", 8, "97 %, with 22 %", _TABLE, 60.5 / 62.1),
    Expected("VTC-CLS", 4, "94 %, with 11 %", _TABLE, 58.4 / 62.1),
    Expected("Dynamic-LLaVA", 8, "negligible loss, with 22 %", _FEWER, 0.99),
    Expected("Dynamic-LLaVA", 8, "75 % of the FLOPs saved", _FEWER, 0.75, of="prompt_flops"),
    Expected("EfficientVLA", 8, "99 %, with 22 %", "2506.10100", 74.2 / 74.8),
    Expected("EfficientVLA", 16, "3.7 times as many as at random, with 44 %", "2506.10100", 76.4 / 20.9, "at random"),
    Expected("EfficientVLA, 2 layers", 8, "99 %, with 22 % and 69 % of the layers", "2506.10100", 74.2 / 74.8),
    Expected("LOOK-M", 8, "as many, with 20 %", "2406.18139, abstract", 1.0),
    Expected("LOOK-M", 4, "as many as dropped, or more", "2406.18139", 1.0, "LOOK-M, dropped"),
    Expected("reweaving", 8, "as many as at random, or more", "ours", 1.0, "at random"),
    Expected("VideoScan", 1, "87 %, with a token a frame", "2503.09387, trained for it", 55.1 / 63.3),
    Expected("LongVLM", 8, "as many as at random, or more", "ours", 1.0, "at random"),
]


class Subject:
    """A model, and what it is asked about pictures: texts of one length at a time."""

    def __init__(self, texts: int):
        self.model: Any = plain()
        data = pictures(test_samples=texts)
        images, text = data.sources["test"].fetch(torch.arange(texts), 0)
        alike: dict[int, list[Any]] = defaultdict(list)
        for row in range(texts):
            tokens, scored = text["tokens"][row], text["labels"][row] >= 0
            asked = tokens[1 + ALL : int(scored.int().argmax())]
            alike[len(asked)].append((images[row], asked, text["labels"][row][scored].tolist(), row % len(QUESTIONS)))
        self.alike, self.plain = list(alike.values()), dict[tuple[int, int], Tensor]()

    def batches(self, size: int) -> Iterator[list[Any]]:
        """Of pictures, questions of one length, answers and kinds of question."""
        for rows in self.alike:
            yield from (rows[at : at + size] for at in range(0, len(rows), size))

    @torch.no_grad()
    def measured(self, name: str, budget: int) -> dict[str, Any]:
        """The record of a way."""
        way, right, kept = WAYS[name], defaultdict[int, list[bool]](list), []
        same: bool | None = True if budget == ALL and way.exact else None
        for index, rows in enumerate(self.batches(way.batch)):
            images, asked = (torch.stack([row[part] for row in rows]) for part in (0, 1))
            read = way.read(self.model, images, asked, budget)
            logits = self.said(read, max(len(row[2]) for row in rows))  # (B, T, V)
            if name == PLAIN:
                self.plain[way.batch, index] = logits
            elif same is not None:
                same = same and torch.equal(logits, self.plain[way.batch, index])
            kept += [read.kept] * len(rows)
            for row, ids in zip(rows, logits.argmax(-1).tolist(), strict=True):
                right[row[3]].append(ids[: len(row[2])] == row[2])
        every = [one for kind in right.values() for one in kind]
        prompt, token = self.flops(way, budget)
        return {
            "way": name, "budget": budget, "kept": sum(kept) / len(kept), "prompt_flops": prompt, "token_flops": token,
            "accuracy": sum(every) / len(every), "same": same,
            "accuracies": {QUESTIONS[kind]: sum(of) / len(of) for kind, of in sorted(right.items())},
        }  # fmt: skip

    def said(self, read: Read, length: int) -> Tensor:
        """The logits of the likeliest text of so many tokens."""
        logits = [read.logits]
        while len(logits) < length:
            token = logits[-1].argmax(-1, keepdim=True)
            logits.append(read.further(token, read.state)[:, -1])
        return torch.stack(logits, 1)

    def flops(self, way: Way, budget: int) -> tuple[int, float]:
        """Of a caption's prompt with its picture, and of a token after it."""
        image, asked = next(row[:2] for rows in self.alike for row in rows if row[3] == 0)
        with FlopCounterMode(display=False) as prompt:
            read = way.read(self.model, image[None], asked[None], budget)
        with FlopCounterMode(display=False) as further:
            self.said(read, 1 + ANSWER)
        return prompt.get_total_flops(), further.get_total_flops() / ANSWER


def show(records: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A row a way and budget."""
    kinds = list(records[0]["accuracies"])
    rows = [
        [
            f"{r['way']}, {r['budget']}", f"{r['kept']:.1f}", f"{r['prompt_flops'] / 1e6:.2f}",
            f"{r['token_flops'] / 1e6:.3f}", f"{r['accuracy']:.1%}", *(f"{r['accuracies'][k]:.0%}" for k in kinds),
            {True: "yes", False: "NO", None: ""}[None if r["way"] == PLAIN else r["same"]],
        ]
        for r in records
    ]  # fmt: skip
    return ["", "kept", "prompt, MFLOP", "token, MFLOP", "right", *kinds, "bits as of all"], rows


def show_expected(records: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A row an expectation; what was not measured is left out."""
    found, rows = {(r["way"], r["budget"]): r for r in records}, []
    for one in EXPECTED:
        value = one.value(found)
        verdict = "" if value is None else f"{value:.3f} {'met' if value >= one.least else 'missed'}"
        rows.append([f"{one.way}, {one.budget}: {one.says} ({one.source}); at least {one.least:.3f}", verdict])
    compared = [r["same"] for r in records if r["same"] is not None and r["way"] != PLAIN]
    verdict = f"{sum(compared)} of {len(compared)} {'met' if all(compared) else 'missed'}" if compared else ""
    return ["expected", "found"], [*rows, ["all tokens kept: the plain model's logits, bit for bit", verdict]]


def plot(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Right answers over tokens kept and over FLOPs, a line a way."""
    lines: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        lines[record["way"]].append(record)
    with panels(path, 1, 2, (13, 4.6)) as axes:
        for axis, what in zip(
            axes[0], ("tokens of a picture kept, mean over layers", "MFLOP of a prompt"), strict=True
        ):
            for index, (name, held) in enumerate(lines.items()):
                over = [r["kept"] if axis is axes[0][0] else r["prompt_flops"] / 1e6 for r in held]
                turn, _ = divmod(max(index - 1, 0), COLOURS)  # of the colours, after the plain model's black
                style: dict[str, Any] = {"marker": "os"[turn], "markersize": 4, "linestyle": ("-", "--")[turn]}
                if name == PLAIN:
                    style = {"color": "black", "marker": "*", "markersize": 12, "zorder": 3}
                axis.plot(over, [100 * r["accuracy"] for r in held], label=name, **style)
            axis.set_xlabel(what)
            axis.set_ylabel("captions and answers right, %")
            axis.grid(alpha=0.3)
        axes[0][1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("vision_language", __doc__)
    parser.add_argument("--ways", nargs="+", default=["*"], metavar="PATTERN", help=f"of {'; '.join(WAYS)}")
    parser.add_argument("--texts", type=int, default=TEXTS, help=f"captions and answers ({TEXTS})")
    options = parser.parse_args(arguments)
    names = [name for name in WAYS if name == PLAIN or any(fnmatch(name, one) for one in options.ways)]
    jobs = [(name, budget) for name in names for budget in WAYS[name].budgets]
    subject, records = Subject(options.texts), []
    with telling(len(jobs)) as say:
        for name, budget in jobs:
            say(f"{name}, {budget}")
            records.append(subject.measured(name, budget))
    head = action_head.measured()
    columns, rows = show_expected(records)
    tables = [
        ("What was expected", columns, [*rows, *action_head.show_expected(head)]),
        (f"{options.texts} captions and answers of {MODEL} about generated pictures", *show(records)),
        (f"{action_head.DRAWN} digits of {action_head.HEAD} in {action_head.STEPS} steps", *action_head.show(head)),
    ]
    publish(
        "vision_language", options, {"model": MODEL, "texts": options.texts, "records": records, "action_head": head},
        *tables, before=f"{last_paragraph(__doc__)}\n\n", plot=partial(plot, records),
    )  # fmt: skip
