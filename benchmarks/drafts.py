"""Tokens a pass of the model, and time a token, of every draft on the bundled nanos.

    zoo bench drafts                    # writes benchmarks/results/drafts.{json,md}, in three minutes
    zoo bench drafts --only transformer_nano --no-save

Each target continues prompts of 160 bytes, spread over the test documents, by 64 bytes each, one prompt after another,
greedily and sampled (T = 1, the same seed), with each draft and with none, in turns. That the greedy text with a draft
is the text without is checked (HAMburger's steps, which nobody verifies, are another text). "drafted": of a round.

Expected, before it was measured: the greedy texts are equal, whatever drafts. LongSpec (arXiv 2502.17421, table 1: 3.0
to 4.5 tokens a pass, greedy, by trees of 68 nodes on models of 8 to 33 billion parameters) says more than 2 tokens a
pass by a tree of 28, more than by a chain of the same depth, and fewer sampled than greedy. In time nothing is won by
drafts as large as their target; the draft layer, a third of this target's work, and DeepSeek's one module may win a
fifth, and early exits, which nothing here was trained for, lose. Trees say more a pass than chains of as many levels,
for a target with a recurrence too, whose states are read level by level: in time they win nothing there.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

import zoo
from zoo.benchmarks.common import command_line, interleaved, last_paragraph, publish
from zoo.decoding import Draft, DynamicExit, EarlyExit, LongSpec, MicroSteps, ModelDraft, MultiToken, Rapid
from zoo.train.data import DocumentationDataModule

PROMPT, NEW = 160, 64
COLUMNS = ("target, draft", "drafted", *(f"{what}, {how}" for how in ("greedy", "T = 1") for what in (
    "tokens a pass", "ms a token", "times as fast"
)))  # fmt: skip


def nano(name: str) -> Any:
    return zoo.create_model(name, pretrained=True).eval()


def drafts(target: Any) -> Iterator[tuple[str, Draft]]:
    """Names of drafts for a target, and the drafts."""
    name = target.config_name
    if name == "hamburger_nano":
        yield "micro steps, confidence 0.3", MicroSteps(confidence=0.3)
        return
    if name == "deepseek_mtp_nano":
        yield "mtp", MultiToken()
        yield "mtp, tree 3 4", MultiToken(widths=(3, 4))
        return
    yield "mamba2_nano", ModelDraft(nano("mamba2_nano"))
    yield "mamba2_nano, tree 4 8 8 8", ModelDraft(nano("mamba2_nano"), widths=(4, 8, 8, 8))
    if name != "transformer_nano":
        return
    moe = nano("moe_nano")
    yield "moe_nano", ModelDraft(moe)
    yield "moe_nano, tree 4 8 8 8", ModelDraft(moe, widths=(4, 8, 8, 8))
    yield "early exit", EarlyExit()
    yield "del", DynamicExit()
    yield "longspec, chain", LongSpec(widths=())
    yield "longspec, tree 4 8 8 8", LongSpec()
    yield "rapid: itself, of 64 bytes", Rapid(target, length=4, budget=64, chunk=16, query=32)


def prompts(count: int) -> list[torch.Tensor]:
    """Spread over the test documents."""
    data = DocumentationDataModule(seq_len=PROMPT, batch_size=1)
    data.setup()
    source = data.sources["test"]
    chosen = torch.linspace(0, len(source) - 1, count).long()
    return [row[None] for row in source.fetch(chosen, 0)[0]]


def said(target: Any, draft: Draft | None, texts: Sequence[torch.Tensor], temperature: float) -> list[torch.Tensor]:
    """All prompts continued, one after another."""
    source = torch.Generator().manual_seed(0)
    return [zoo.generate(target, text, NEW, temperature=temperature, draft=draft, generator=source) for text in texts]


def measured(target: Any, texts: Sequence[torch.Tensor], budget: float) -> Iterator[dict[str, Any]]:
    """A record a draft: tokens a pass and milliseconds a token, greedy and sampled.

    Raises:
        RuntimeError: for a greedy text that is not the target's own.
    """
    every: dict[str, Draft | None] = {"none": None, **dict(drafts(target))}
    found: dict[str, dict[str, Any]] = {name: {"target": target.config_name, "draft": name} for name in every}
    for mode, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        counted: dict[str, Draft | None] = {}
        calls: dict[str, Callable[[], Any]] = {}
        for name, draft in every.items():
            counted[name] = one = None if draft is None else dataclasses.replace(draft, counts=type(draft.counts)())
            calls[name] = lambda one=one, t=temperature: said(target, one, texts, t)
        seconds, results = interleaved(calls, budget=budget, least=2)
        plain = results["none"]
        for name, one in counted.items():
            same = all(torch.equal(*rows) for rows in zip(results[name], plain, strict=True))
            if mode == "greedy" and not same and not isinstance(one, MicroSteps):
                raise RuntimeError(f"{target.config_name} says another text with {name} than alone")
            counts = None if one is None else one.counts
            found[name][mode] = {
                "tokens_per_pass": 1.0 if counts is None else counts.tokens / counts.passes,
                "drafted_per_pass": 0.0 if counts is None else counts.proposed / counts.passes,
                "accepted": None if counts is None or not counts.proposed else counts.accepted / counts.proposed,
                "milliseconds": [1e3 * run / (NEW * len(texts)) for run in seconds[name]],
            }
    yield from found.values()


def rows(records: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row a target and draft."""
    median = {
        (one["target"], one["draft"], mode): statistics.median(one[mode]["milliseconds"])
        for one in records
        for mode in ("greedy", "sampled")
    }
    shown = []
    for one in records:
        row = [f"{one['target']}, {one['draft']}", f"{one['greedy']['drafted_per_pass']:.1f}"]
        for mode in ("greedy", "sampled"):
            own, plain = (median[one["target"], name, mode] for name in (one["draft"], "none"))
            row += [f"{one[mode]['tokens_per_pass']:.2f}", f"{own:.2f}", f"{plain / own:.2f}"]
        shown.append(row)
    return shown


TARGETS = ("transformer_nano", "falcon_h1_nano", "deepseek_mtp_nano", "hamburger_nano")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("drafts", __doc__, budget=6.0)
    parser.add_argument("--only", nargs="+", default=list(TARGETS), choices=TARGETS, metavar="TARGET")
    parser.add_argument("--prompts", type=int, default=4)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    texts, records = prompts(options.prompts), []
    for name in options.only:
        target = nano(name)
        if name == "transformer_nano":
            zoo.decoding.add_draft_layer(target, pretrained=True)
        records += measured(target, texts, options.budget)
    title = f"{options.prompts} prompts of {PROMPT} bytes, {NEW} more each, {torch.get_num_threads()} threads"
    text = f"# Drafts\n\n{last_paragraph(__doc__)}\n\n"
    publish("drafts", options, {"records": records}, (title, COLUMNS, rows(records)), before=text)
