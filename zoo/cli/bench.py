"""`zoo bench`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from importlib import import_module

from zoo.cli.options import completed, model_names

HELP = "measure this machine beside the peers"
BENCHMARKS = {
    "layers": "Mamba and Mamba-2 layers beside transformers",
    "kernels": "every operation beside its reference and torch",
    "families": "language models beside transformers",
    "decode": "prefill and decoding beside transformers and llama.cpp",
    "quant": "weights of a few bits: quality, bytes and time",
    "diffusion": "diffusion models of few bits and few blocks: what they draw",
    "scales": "images of a next-scale model from fewer keys (ScaleKV), and by a large and a small one (CoDe)",
    "koala": "what a smaller U-Net learns of a larger one (KOALA): size, time and distance, by feature",
    "clips": "clips in fewer steps, of fewer tokens, in less memory (On-device Sora, Streamlined Inference)",
    "cmd": "clips as a frame and a motion (CMD): numbers, FLOPs and what is drawn",
    "videos": "tokens of a clip kept, FLOPs and questions about several frames answered (VideoScan, LongVLM)",
    "vision_language": "fewer tokens of an image: tokens kept, FLOPs and right answers",
    "noise": "training with the noise of few bits and without: what rounding then costs",
    "sparse": "weights without their zeros: quality, bytes and time",
    "vision": "vision models beside timm",
    "resolution": "Vim beside DeiT at growing image sizes",
    "gap": "efficiency gap and waterline of every vision family",
    "runtime": "idealised runtime: predicted and measured prompts, steps and queries",
    "merging": "MAELRE beside the same encoder without merging, over length",
    "recall": "associative recall against the size of the state",
    "needle": "recall beyond the trained length, with a memory and with a window",
    "extrapolation": "positional beside standard attention on larger numbers than trained on",
    "squash": "long convolutions with squashed kernels and without, on few digits",
    "zero": "bytes a process holds under ZeRO's stages, two processes",
    "sltrain": "memory of training with sparse plus low-rank matrices",
    "context": "Mamba beyond the length it was trained on, with LongMamba and without",
    "cache": "every cache policy: answers, memory and time beside the dense cache",
    "kvpress": "cache policies beside kvpress, in an environment that has it",
    "prefix": "N continuations of one prompt: its keys kept once and copied",
    "adapters": "adapters beside full training: memory, time and what they learn",
    "memory": "ways to train in less memory beside plain training, over length and depth",
    "sparse_training": "training with few numbers: memory, time and what is learnt beside full training",
    "sparse_tuning": "fine-tuning by SPT beside LoRA: memory and time of a training step",
    "offload": "models larger than memory: peak, bytes read and time",
    "widths": "experts in several widths: bits, bytes read for a token, and the order of their planes",
    "drafts": "tokens a pass and time a token of every draft of the bundled nanos",
    "exits": "early exits: accuracy and bits per byte against mean FLOPs",
    "subnetworks": "a search for parts of one trained transformer, by size and bits per byte",
    "incremental": "classes a task at a time, under one budget of bytes for images and layers",
    "linearize": "a transformer made linear, whole and without one part at a time",
    "loading": "how fast a checkpoint becomes a model",
    "gallery": "what the bundled miniatures make, drawn",
    "costs": "parameters, FLOPs and state of every model, counted",
    "gpu": "everything on a CUDA device in nine minutes",
}
PARSER = {
    "add_help": False,
    "usage": "zoo bench [-h] SUBJECT ... | NAME [NAME ...] [--against PEER ...] ...",
    "epilog": "`zoo bench SUBJECT --help` and `zoo bench NAME --help` show the options of a subject and of models. "
    "Subjects: " + "; ".join(f"{name}, {what}" for name, what in BENCHMARKS.items()),
}


def add_arguments(parser: ArgumentParser) -> None:
    help = (
        f"{', '.join(BENCHMARKS)}; or models, patterns of names too: a forward pass, a training step, a decoded token"
    )
    subject = parser.add_argument("subject", nargs="?", metavar="SUBJECT", help=help)
    completed(subject, lambda: [*BENCHMARKS, *model_names()])
    parser.set_defaults(overridable=True, parser=parser)


def run(known: Namespace) -> int:
    if known.subject is None:
        if not {"-h", "--help"} & set(known.overrides):
            known.parser.error(f"name a model or a subject: {', '.join(BENCHMARKS)}")
        known.parser.print_help()
        return 0
    if known.subject in BENCHMARKS:
        return import_module(f"zoo.benchmarks.{known.subject}").main(known.overrides) or 0
    return import_module("zoo.benchmarks.compare").main([known.subject, *known.overrides])
