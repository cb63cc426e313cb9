"""Prefill and decoding on the CPU, beside transformers and llama.cpp: the same weights, in turns, one run.

    zoo bench decode                                # writes benchmarks/results/decode.json and decode.md
    zoo bench decode --only mamba2_130m --threads 1 --no-save
    zoo bench decode --batch 4 --no-save            # rows side by side; llama.cpp's server has one
    zoo bench decode --busy 1 --no-save             # beside a process that never rests

Random weights of the published sizes, written for transformers and for llama.cpp (`zoo convert --to gguf`), in
float32, bfloat16, and 8 and 4 bits where a side has them. Each side continues a prompt of 512 tokens by 1 and by 65,
greedily: the difference is 64 steps. "MB" are all weights; the bound of a step is what reading them once takes, of
experts those that one token visits, at the bandwidth that summing a large tensor reaches on as many threads.
"difference": of the log-probabilities after the prompt from ours in float32, the largest among the ten tokens that both
hold most likely.

Expected (the goal of the project): a step takes at most 1.1 times llama.cpp's in every form, prefill not longer than
llama.cpp's, and a step at most 1.25 times the bound in float32 and 1.4 in the others.
"""

from __future__ import annotations

import argparse
import importlib
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
from rich.console import Console
from rich.progress import Progress

import zoo
from zoo.benchmarks.common import RESULTS, command_line, interleaved, machine, markdown, save, table

MODELS = ("mamba2_130m", "mamba_130m", "transformer_130m", "falcon_h1_tiny_90m", "moe_8x130m")
FORMS = {"float32": "f32", "bfloat16": "bf16", "8 bits": "q8_0", "4 bits": "q4_0"}  # ours -> that of a GGUF file
PROMPT, STEPS, LIKELIEST = 512, 64, 10
PEERS = ("transformers", "llama.cpp")
COLUMNS = (
    "model, form, side", "MB", "prefill ms", "step ms", "bound ms", "step / bound", "llama.cpp / step", "difference",
)  # fmt: skip


class Side(NamedTuple):
    """What continues the prompt by so many tokens; bytes of its weights; token -> log-probability after the prompt; the
    part of the weights that a step reads, where it is known."""

    run: Callable[[int], Any]
    weights: int
    top: dict[int, float]
    share: float = 1.0


def prompt(vocabulary: int) -> list[int]:
    return torch.randint(1, min(vocabulary, 256), (PROMPT,), generator=torch.Generator().manual_seed(0)).tolist()


def likeliest(log_probs: torch.Tensor) -> dict[int, float]:
    values, tokens = log_probs.float().topk(LIKELIEST)
    return dict(zip(tokens.tolist(), values.tolist(), strict=True))


def ours(folder: Path, form: str, batch: int) -> Side:
    """Loaded in a dtype, or loaded and rounded to a few bits."""
    dtype = getattr(torch, form, torch.float32)
    model: Any = zoo.create_model(f"local-dir:{folder}", dtype=dtype).eval()
    if form.endswith("bits"):
        zoo.quantize(model, bits=int(form[0]))
    tokens = torch.tensor([prompt(model.config.vocab_size)] * batch)

    def run(count: int) -> torch.Tensor:
        return zoo.generate(model, tokens, count, temperature=0.0)

    with torch.no_grad():
        top = likeliest(model(tokens)[0, -1].float().log_softmax(-1))
    return Side(run, stored(model), top, share_read(model))


def stored(model: torch.nn.Module) -> int:
    """Bytes of parameters and records, tied ones once."""
    return sum({id(t): t.nbytes for t in (*model.parameters(), *model.buffers())}.values())


def share_read(model: Any) -> float:
    """Part of the stored bytes that a step reads: a token does not visit all experts."""
    idle = 0.0
    for layer in model.experts:
        held = [t for name, t in layer.named_parameters() if name.split(".")[0] in ("w1", "w2", "w3")]
        idle += sum(t.nbytes for t in held) * (1 - layer.top_k / layer.num_experts)
    return 1 - idle / stored(model)


def transformers_side(folder: Path, form: str, batch: int) -> Side:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, form)).eval()
    tokens = torch.tensor([prompt(model.config.vocab_size)] * batch)

    def run(count: int) -> torch.Tensor:
        return model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count, min_new_tokens=count,
            do_sample=False, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip

    with torch.no_grad():
        top = likeliest(model(tokens).logits[0, -1].float().log_softmax(-1))
    return Side(run, stored(model), top)


def llama_cpp_side(file: Path, threads: int, vocabulary: int) -> Side:
    xllamacpp: Any = importlib.import_module("xllamacpp")
    options = xllamacpp.CommonParams()
    options.model.path = str(file)
    options.n_ctx, options.n_parallel, options.verbosity = PROMPT + 2 * STEPS, 1, -1
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(options)

    def ask(count: int, **more: Any) -> Any:
        asked = {"prompt": prompt(vocabulary), "n_predict": count, "temperature": 0.0, "cache_prompt": False}
        return server.handle_completions(asked | {"ignore_eos": True} | more)

    listed = ask(1, n_probs=LIKELIEST)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return Side(ask, file.stat().st_size, {one["id"]: one["logprob"] for one in listed})


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
    import tokenizers

    torch.manual_seed(0)
    model: Any = zoo.create_model(name)
    zoo.save_model(model, folder / "zoo")
    zoo.convert(folder / "zoo", folder / "transformers", to="transformers")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merged = tokenizers.ByteLevelBPETokenizer({letter: index for index, letter in enumerate(letters)}, [])
    merged.save(str(folder / "zoo" / "tokenizer.json"))
    return folder / "zoo", folder / "transformers", model.config.vocab_size


def sides(folders: tuple[Path, Path, int], form: str, options: argparse.Namespace) -> Iterator[tuple[str, Side]]:
    mine, theirs, vocabulary = folders
    yield "zoo", ours(mine, form, options.batch)
    if "transformers" in options.against and not form.endswith("bits"):
        yield "transformers", transformers_side(theirs, form, options.batch)
    if "llama.cpp" in options.against and options.batch == 1:
        file = zoo.convert(mine, mine.parent / "model.gguf", to="gguf", form=FORMS[form])
        yield "llama.cpp", llama_cpp_side(file, options.threads, vocabulary)


def measure(name: str, options: argparse.Namespace, advance: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """A record a form and side."""
    exact: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        folders = written(name, Path(folder))
        for form in options.forms:
            advance(form)
            found = dict(sides(folders, form, options))
            exact = exact or found["zoo"].top
            calls = {f"{side} {n}": partial(held.run, n) for side, held in found.items() for n in (1, 1 + STEPS)}
            runs, _ = interleaved(calls, budget=options.budget)
            for side, held in found.items():
                first, both = (runs[f"{side} {count}"] for count in (1, 1 + STEPS))
                shared = held.top.keys() & exact.keys()
                yield {
                    "model": name, "form": form, "side": side, "threads": options.threads, "bytes": held.weights,
                    "prefill": first, "steps": [(b - a) / STEPS for a, b in zip(first, both, strict=False)],
                    "read": held.weights * found["zoo"].share,
                    "difference": max((abs(held.top[t] - exact[t]) for t in shared), default=float("nan")),
                }  # fmt: skip


def show(records: Sequence[dict[str, Any]], read: float) -> list[list[str]]:
    peers = {(r["model"], r["form"]): statistics.median(r["steps"]) for r in records if r["side"] == "llama.cpp"}
    rows = []
    for r in records:
        prefill, step, bound = (
            statistics.median(r["prefill"]),
            statistics.median(r["steps"]),
            r.get("read", r["bytes"]) / read,
        )
        peer = peers.get((r["model"], r["form"]))
        rows.append([
            f"{r['model']}, {r['form']}, {r['side']}", f"{r['bytes'] / 1e6:.0f}", f"{prefill * 1e3:.0f}",
            f"{step * 1e3:.1f}", f"{bound * 1e3:.1f}", f"{step / bound:.2f}",
            f"{peer / step:.2f}" if peer else "-", f"{r['difference']:.0e}",
        ])  # fmt: skip
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("decode", __doc__)
    parser.add_argument("--only", nargs="+", default=list(MODELS), choices=MODELS, metavar="MODEL")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS), metavar="FORM")
    parser.add_argument("--against", nargs="*", default=list(PEERS), choices=PEERS, metavar="PEER")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=1, help="rows; llama.cpp is left out where there are several")
    parser.add_argument("--busy", type=int, default=0, help="processes that never rest, beside the measurement")
    parser.add_argument("--budget", type=float, default=12.0, help="seconds after which a measurement ends")
    options = parser.parse_args(arguments)

    read, records = bandwidth(options.threads), []
    with busy(options.busy), Progress(transient=True, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(options.only) * len(options.forms))
        for name in options.only:
            step = partial(progress.update, task, advance=1)
            records += measure(name, options, lambda form, name=name, step=step: step(description=f"{name}, {form}"))
    title = f"{PROMPT} tokens of prompt, {STEPS} steps, batch {options.batch}, {options.threads} threads"
    title += f", {read / 1e9:.1f} GB/s"
    title += f", beside {options.busy} busy processes" if options.busy else ""
    rows = show(records, read)
    console = Console(width=max(120, Console().width))
    console.print(table(title, COLUMNS, rows))
    if not options.no_save:
        here = machine()
        text = markdown(title, COLUMNS, rows)
        kind = (f"_batch{options.batch}" if options.batch > 1 else "") + (
            f"_busy{options.busy}" if options.busy else ""
        )
        save(f"decode{kind}", {"machine": here, "bandwidth": read, "records": records}, text, RESULTS)


if __name__ == "__main__":
    main()
