"""Prefill and decoding on the CPU, beside transformers and llama.cpp: the same weights, in turns, one run.

    zoo bench decode                                # writes benchmarks/results/decode.json and decode.md
    zoo bench decode --only mamba2_130m             # the rows of the other models stay as they were
    zoo bench decode --threads 1                    # decode_threads1.json, as it is not the number of cores
    zoo bench decode --batch 4                      # decode_batch4.json: rows side by side; llama.cpp's server has one
    zoo bench decode --busy 1                       # decode_busy1.json: beside a process that never rests

Random weights of the published sizes, written for transformers and for llama.cpp (`zoo convert --to gguf`), in
float32, bfloat16, and 8 and 4 bits where a side has them. llama.cpp rounds the inputs of such layers to 8 bits as well;
ours stay what they are, or are rounded too ("inputs of 8"). Each side continues a prompt of 512 tokens by 65,
greedily: 64 steps lie between the first and the last. "MB" are all weights; the bound of a step is what reading them
once takes, of experts those that one token visits, at the bandwidth that summing a large tensor reaches on as many
threads before or after the runs of the form, as a machine that others share gives more at one time than at another.
"difference": of the log-probabilities after the prompt from ours in float32, the largest among the ten tokens that both
hold most likely.

Expected (the goal of the project): a step takes at most 1.1 times llama.cpp's in every form, prefill not longer than
llama.cpp's, and a step at most 1.25 times the bound in float32 and 1.4 in the others.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

import zoo
from zoo.benchmarks.common import command_line, natural, prompt_and_step, publish, telling
from zoo.benchmarks.kept import earlier_runs, held, joined
from zoo.benchmarks.peers import LlamaCpp, Side, Text, quiet_transformers, top, with_tokenizer_of_bytes

MODELS = ("mamba2_130m", "mamba_130m", "transformer_130m", "falcon_h1_tiny_90m", "moe_8x130m")
INPUTS = ", inputs of 8"
FEW = {"8 bits": "q8_0", "4 bits": "q4_0", f"8 bits{INPUTS}": "q8_0", f"4 bits{INPUTS}": "q4_0"}
EXACT = "float32"
FORMS = {EXACT: "f32", "bfloat16": "bf16", **FEW}  # ours -> that of a GGUF file
PROMPT, STEPS = 512, 64
PEERS = ("transformers", "llama.cpp")
COLUMNS = (
    "model, form, side", "MB", "prefill ms", "step ms", "bound ms", "step / bound", "llama.cpp / step", "difference",
)  # fmt: skip


class Subject(NamedTuple):
    """A side of a comparison, and token -> log-probability of the likeliest after the prompt."""

    side: Side | LlamaCpp
    top: dict[int, float]


def prompts(vocabulary: int, batch: int) -> torch.Tensor:
    tokens = torch.randint(1, min(vocabulary, 256), (PROMPT,), generator=torch.Generator().manual_seed(0))
    return tokens.repeat(batch, 1)


def ours(folder: Path, form: str) -> Side:
    """Loaded in a dtype, or loaded and rounded to a few bits."""
    model: Any = zoo.create_model(f"local-dir:{folder}", dtype=getattr(torch, form, torch.float32)).eval()
    if form in FEW:
        zoo.quantize(model, bits=int(form[0]), activation_bits=8 if form.endswith(INPUTS) else None)
    return Side(model)


def share_read(side: Any) -> float:
    """Part of the stored bytes that a step reads: a token does not visit all experts."""
    idle = 0.0
    for layer in side.model.experts:
        held = [t for name, t in layer.named_parameters() if name.split(".")[0] in ("w1", "w2", "w3")]
        idle += sum(t.nbytes for t in held) * (1 - layer.top_k / layer.num_experts)
    return 1 - idle / side.bytes


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Within it so many other processes never rest."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def bandwidth(threads: int) -> float:
    """Bytes a second that a sum over a gigabyte reads."""
    values, best = torch.ones(2**28), 0.0
    torch.set_num_threads(threads)
    for _ in range(6):
        started = time.perf_counter()
        values.sum()
        best = max(best, values.nbytes / (time.perf_counter() - started))
    return best


def written(name: str, folder: Path) -> tuple[Path, Path, int]:
    """The same random weights for us, with a tokenizer of bytes, and for transformers; and the number of tokens."""
    torch.manual_seed(0)
    model: Any = zoo.create_model(name)
    mine = with_tokenizer_of_bytes(model, folder / "zoo")
    return mine, zoo.convert(mine, folder / "transformers", to="transformers"), model.config.vocab_size


def sides(mine: Path, theirs: Path, form: str, options: argparse.Namespace) -> Iterator[tuple[str, Side | LlamaCpp]]:
    yield "zoo", ours(mine, form)
    if "transformers" in options.against and form not in FEW:
        auto = quiet_transformers().AutoModelForCausalLM
        yield "transformers", Text(auto.from_pretrained(theirs, dtype=getattr(torch, form)).eval())
    if "llama.cpp" in options.against and options.batch == 1:
        file = zoo.convert(mine, mine.parent / "model.gguf", to="gguf", form=FORMS[form])
        yield "llama.cpp", LlamaCpp(file, options.threads, PROMPT + 2 * STEPS)


def measure(name: str, options: argparse.Namespace, advance: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """A record a form and side."""
    with tempfile.TemporaryDirectory() as folder:
        mine, theirs, vocabulary = written(name, Path(folder))
        tokens = prompts(vocabulary, options.batch)
        exact = top(ours(mine, EXACT), tokens)
        for form in options.forms:
            advance(form)
            found = {side: Subject(held, top(held, tokens)) for side, held in sides(mine, theirs, form, options)}
            calls = {side: partial(held.side.moments, tokens) for side, held in found.items()}
            before = bandwidth(options.threads)
            runs = prompt_and_step(calls, STEPS, options.budget)
            read = max(before, bandwidth(options.threads))
            for side, held in found.items():
                shared = held.top.keys() & exact.keys()
                yield {
                    "model": name, "form": form, "side": side, "threads": options.threads, "bytes": held.side.bytes,
                    "prefill": runs[side][0], "steps": runs[side][1], "bandwidth": read,
                    "read": held.side.bytes * share_read(found["zoo"].side),
                    "difference": max((abs(held.top[t] - exact[t]) for t in shared), default=float("nan")),
                }  # fmt: skip


def show(records: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row a model, form and side."""
    peers = {(r["model"], r["form"]): statistics.median(r["steps"]) for r in records if r["side"] == "llama.cpp"}
    rows = []
    for r in records:
        prefill, step, bound = (
            statistics.median(r["prefill"]),
            statistics.median(r["steps"]),
            r["read"] / r["bandwidth"],
        )
        peer = peers.get((r["model"], r["form"]))
        rows.append([
            f"{r['model']}, {r['form']}, {r['side']}", f"{r['bytes'] / 1e6:.0f}", f"{prefill * 1e3:.0f}",
            f"{step * 1e3:.1f}", f"{bound * 1e3:.1f}", f"{step / bound:.2f}",
            f"{peer / step:.2f}" if peer else "-", f"{r['difference']:.0e}",
        ])  # fmt: skip
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("decode", __doc__, budget=12.0, goes_on=True)
    parser.add_argument("--only", nargs="+", default=list(MODELS), choices=MODELS, metavar="MODEL")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS), metavar="FORM")
    parser.add_argument("--against", nargs="*", default=list(PEERS), choices=PEERS, metavar="PEER")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=1, help="rows; llama.cpp is left out where there are several")
    parser.add_argument("--busy", type=natural, default=0, help="processes that never rest, beside the measurement")
    options = parser.parse_args(arguments)

    name = file_name(options)
    before = [] if options.no_save else held(name, "records", also=["bandwidth"])
    found: list[dict[str, Any]] = []
    with busy(options.busy), telling(len(options.only) * len(options.forms)) as say:
        for model in options.only:
            found += measure(model, options, lambda form, model=model: say(f"{model}, {form}"))
    records = joined(before, found, ("model", "form"))
    records.sort(key=lambda r: (MODELS.index(r["model"]), list(FORMS).index(r["form"])))
    title = f"{PROMPT} tokens of prompt, {STEPS} steps, batch {options.batch}, {options.threads} threads"
    rates = [r["bandwidth"] / 1e9 for r in records]
    title += f", {min(rates):.1f} to {max(rates):.1f} GB/s"
    title += f", beside {options.busy} busy processes" if options.busy else ""
    shown = title, COLUMNS, show(records)
    publish(name, options, {"records": records}, shown, after=earlier_runs(records))


def file_name(options: argparse.Namespace) -> str:
    """Of the results: of all cores, one row and an idle machine "decode"; what differs is in the name."""
    name = "decode" + f"_threads{options.threads}" * (options.threads != os.cpu_count())
    return name + f"_batch{options.batch}" * (options.batch > 1) + f"_busy{options.busy}" * (options.busy > 0)
