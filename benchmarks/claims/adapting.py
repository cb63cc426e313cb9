"""Tuning few numbers: what learns, counted, and what a training step keeps for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import zoo
from zoo.benchmarks.claims.declare import Found, beyond, claim
from zoo.benchmarks.claims.measured import kept_bytes
from zoo.benchmarks.claims.tools import on_meta
from zoo.layers.conv import InvertedResidual

SHAPE: dict[str, Any] = {
    "vocab_size": 256, "dim": 256, "depth": 4, "num_heads": 4, "num_kv_heads": 4, "mlp_dim": 704
}  # fmt: skip
ROW = {"bits": 4, "group_size": 2**15, "embeddings": False}  # one scale a row


def kept(adapter: dict[str, Any] | None, layer: int | None = None) -> int:
    """Bytes kept of 256 tokens for the backward pass; where a layer is named only its adapters learn."""
    torch.manual_seed(0)
    model: Any = zoo.create_model("transformer_130m", **SHAPE, adapter=adapter).train()
    for name, parameter in model.named_parameters() if layer is not None else ():
        parameter.requires_grad_(parameter.requires_grad and f"blocks.{layer}." in name)
    return kept_bytes(model, torch.arange(256)[None])


def learns(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@claim(
    "transformer", "2503.01905", says="Tuning some columns takes less memory than LoRA of as many numbers.",
    source="abstract: 16 % less memory", evidence="cost", value="share less kept", at_least=0.16,
)  # fmt: skip
def paca_memory() -> Found:
    """Bytes that four blocks of width 256 keep of 256 tokens: PaCA of rank 16 beside LoRA of rank 8."""
    found = {kind: kept({"kind": kind, "rank": rank}) for kind, rank in (("paca", 16), ("lora", 8))}
    return Found(1 - found["paca"] / found["lora"], found)


@claim(
    "transformer", "2206.06522", says="A ladder beside the model takes far less memory than training it.",
    source="abstract: 69 % less than full tuning", evidence="cost", value="share less kept", at_least=0.69,
)  # fmt: skip
def ladder_memory() -> Found:
    """Bytes that four blocks of width 256 keep of 256 tokens: a ladder an eighth as wide beside all weights."""
    found = {"ladder": kept({"kind": "ladder", "reduction": 8}), "all weights": kept(None)}
    return Found(1 - found["ladder"] / found["all weights"], found)


@claim(
    "transformer", "2410.11772", says="Tuning a quarter of the layers in a step takes less memory than tuning all.",
    source="abstract: less memory than the adapters that it is put on", evidence="cost",
    value="share of what LoRA of all layers keeps", at_most=0.999,
)  # fmt: skip
def ist_memory() -> Found:
    """Bytes that four blocks keep where LoRA of one of them learns, the mean over the four; of all beside it."""
    lora = {"kind": "lora", "rank": 8}
    by_layer = [kept(lora, layer) for layer in range(4)]
    return Found(sum(by_layer) / 4 / kept(lora), {"by layer": by_layer, "all": kept(lora)})


@claim(
    "mcunet", "2212.03246", says="Shifts alone and a bit an activation take less memory than training a block.",
    source="abstract: 46.3 % less of MobileNetV2's blocks", evidence="cost", value="share less kept", at_least=0.463,
)  # fmt: skip
def mobiletl_memory() -> Found:
    """Bytes that the last three inverted residuals of mbv2_w035 keep of eight maps of 7x7; trained whole beside it."""
    found = {}
    for name in ("whole", "mobiletl"):
        model: Any = zoo.create_model("mbv2_w035")
        if name == "mobiletl":
            zoo.adapt(model, name, blocks=3)
        last = nn.Sequential(*[module for module in model.modules() if isinstance(module, InvertedResidual)][-3:])
        found[name] = kept_bytes(last.train(), torch.randn(8, 56, 7, 7))
    return Found(1 - found["mobiletl"] / found["whole"], found)


@claim(
    "transformer", "2305.14152", says="Of a LLaMA-7B in integers 1.36 M scales learn, one a row.",
    source="table of trained parameters: 1.36 M, LoRA's 2.10 M", evidence="count", value="numbers that learn",
    at_least=1_359_872, at_most=1_359_872,
)  # fmt: skip
def peqa_learns() -> Found:
    """Parameters of llama2_7b, which is as large, that learn with PEQA and a scale a row; LoRA's of rank 4 on queries
    and values beside them."""
    scales = learns(on_meta("llama2_7b", quantize=ROW, adapter={"kind": "peqa"}))
    return Found(scales, {"LoRA": _lora()})


@claim(
    "transformer", "2410.06364", says="Of a LLaMA-7B in tables of 16 numbers a row 21.8 M numbers learn.",
    source="table of trained parameters: 21.8 M with one group a row", evidence="count", value="numbers that learn",
    at_least=21_757_952, at_most=21_757_952,
)  # fmt: skip
def sketchtune_learns() -> Found:
    """Parameters of llama2_7b that learn with SketchTune, 4 bits and a table a row: 1,359,872 rows of 16."""
    tables = {"bits": 4, "layout": "table", "embeddings": False}
    return Found(learns(on_meta("llama2_7b", quantize=tables, adapter={"kind": "sketchtune"})))


@claim(
    "transformer", "2309.14763", says="An expert of a task tunes over 3000 times fewer numbers than there are.",
    source="abstract: over 3000 times fewer", evidence="count", value="numbers of the model over those that learn",
    at_least=3000,
)  # fmt: skip
def conpet_learns() -> Found:
    """Parameters of llama2_7b over those of LoRA of rank 4 on queries and values, as in the authors' code."""
    whole = sum(parameter.numel() for parameter in on_meta("llama2_7b").parameters())
    return Found(whole / _lora(), {"the model": whole, "LoRA": _lora()})


def _lora() -> int:
    targets = ["*.q_proj", "*.v_proj"]
    return learns(on_meta("llama2_7b", adapter={"kind": "lora", "rank": 4, "targets": targets}))


beyond(
    "l4q_accuracy", "transformer", "2402.04902", says="Trained for integers from the start LoRA beats LoRA over them.",
    source="LLaMA-2 7B in 4 bits, commonsense: 63.6, QLoRA 61.3",
    why="It takes models of billions of parameters; `zoo bench adapters` has a miniature.",
)  # fmt: skip
beyond(
    "sinklora_gain", "transformer", "2406.05678", says="Shifted attention with sinks gains what whole attention gains.",
    source="abstract: 92 % of the gain in perplexity, LongLoRA 39 %",
    why="It takes contexts of 100,000 tokens; `zoo bench adapters` has a miniature.",
)  # fmt: skip
beyond(
    "mamba_lora_speed", "mamba mamba2", "2406.00209", says="LoRA on the recurrences' matrices is fast and lean.",
    source="abstract: up to 2.15 times the tokens a second and 65.5 % less memory a token",
    why="It takes GPUs and half precision; `zoo bench adapters` has a miniature.",
)  # fmt: skip
