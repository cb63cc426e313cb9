"""`zoo bench`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from importlib import import_module

HELP = "measure this machine beside the peers"
BENCHMARKS = {
    "layers": "Mamba and Mamba-2 layers beside transformers",
    "kernels": "every operation beside its reference and torch",
    "families": "language models beside transformers",
    "decode": "prefill and decoding beside transformers and llama.cpp",
    "quant": "weights of a few bits: quality, bytes and time",
    "sparse": "weights without their zeros: quality, bytes and time",
    "vision": "vision models beside timm",
    "resolution": "Vim beside DeiT at growing image sizes",
    "merging": "MAELRE beside the same encoder without merging, over length",
    "recall": "associative recall against the size of the state",
    "needle": "recall beyond the trained length, with a memory and with a window",
    "extrapolation": "positional beside standard attention on larger numbers than trained on",
    "sltrain": "memory of training with sparse plus low-rank matrices",
    "context": "Mamba beyond the length it was trained on, with LongMamba and without",
    "kvpress": "cache policies beside kvpress, in an environment that has it",
    "prefix": "N continuations of one prompt: its keys kept once and copied",
    "sparse_tuning": "fine-tuning by SPT beside LoRA: memory and time of a training step",
    "drafts": "tokens a pass and time a token of every draft of the bundled nanos",
    "exits": "early exits: accuracy and bits per byte against mean FLOPs",
    "linearize": "a transformer made linear, whole and without one part at a time",
    "loading": "how fast a checkpoint becomes a model",
    "gpu": "everything on a CUDA device in nine minutes",
}
PARSER = {
    "add_help": False,
    "usage": "zoo bench [-h] SUBJECT ...",
    "epilog": "`zoo bench SUBJECT --help` shows the options of a subject. Subjects: "
    + "; ".join(f"{name}, {what}" for name, what in BENCHMARKS.items()),
}


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("subject", nargs="?", choices=tuple(BENCHMARKS), metavar="SUBJECT", help=", ".join(BENCHMARKS))
    parser.set_defaults(overridable=True, parser=parser)


def run(known: Namespace) -> int:
    if known.subject is None:
        if not {"-h", "--help"} & set(known.overrides):
            known.parser.error(f"name a subject: {', '.join(BENCHMARKS)}")
        known.parser.print_help()
        return 0
    return import_module(f"zoo.benchmarks.{known.subject}").main(known.overrides) or 0
