"""Training in less memory: activations of eight bits, fewer tokens and channels."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import torch

import zoo
from zoo.benchmarks.claims.declare import Found, claim
from zoo.benchmarks.claims.training_lean import learn, nano, texts
from zoo.train.memory import lean
from zoo.train.memory.count import saved_bytes
from zoo.train.memory.lemo import InformativeAttention


@claim(
    "transformer", "2501.09767",
    says="Fewer tokens in attention and fewer channels backwards: up to 1.93 times less memory.",
    source="abstract: 1.93x; keep 0.4 of the blocks in layers 15 to 30 of 32, half of the channels", evidence="cost",
    value="bytes kept for the backward pass over LeMo's", at_least=1.93,
)  # fmt: skip
def lemo_memory() -> Found:
    """LoRA of rank 8 on a transformer of 32 narrow blocks, one sequence of 1,024 tokens."""
    kept = {}
    for name in ("plain", "LeMo", "tokens alone"):
        model = nano(dim=64, depth=32, num_heads=4, num_kv_heads=4, mlp_dim=172).train()
        zoo.adapt(model, "lora", rank=8)
        tokens = torch.randint(256, (1, 1024))
        if name != "plain":
            lean(model, "lemo", forget=0.5 if name == "LeMo" else 0.0)
        kept[name] = saved_bytes(model, lambda model=model, tokens=tokens: model(tokens, labels=tokens)).between
    return Found(kept["plain"] / kept["LeMo"], kept)


@claim(
    "transformer", "2501.09767", says="Informative tokens are the ones to keep.",
    source="section 3: contextual token sparsity", evidence="trained",
    value="nats by which drawn blocks are worse than informative ones", at_least=0.0,
)  # fmt: skip
@torch.no_grad()
def lemo_informative() -> Found:
    """Training loss of bundled transformer_nano on eight batches of documentation text, a fifth of the blocks of 16
    kept in its middle layers: those of the largest scores, and drawn ones."""
    losses = {}
    for name in ("all", "informative", "drawn"):
        model: Any = zoo.create_model("transformer_nano", pretrained=True).train()
        if name != "all":
            lean(model, "lemo", keep=0.2, block_size=16)
        torch.manual_seed(0)
        for module in model.modules() if name == "drawn" else ():
            if isinstance(module, InformativeAttention):
                module.information = lambda x, seq_idx: torch.rand(len(x), -(-x.shape[1] // 16))  # type: ignore[method-assign]
        batches = itertools.islice(texts(8, 256), 8)
        losses[name] = statistics.mean(model(tokens, labels=tokens).item() for tokens in batches)
    return Found(losses["drawn"] - losses["informative"], losses)


@claim(
    "transformer", "2410.19313", says="Activations of eight bits cost training almost nothing.",
    source="abstract: nearly lossless", evidence="trained", value="training loss over that without", at_most=1.01,
    quick=False, limit=600,
)  # fmt: skip
def coat_activations() -> Found:
    """transformer_nano from the start, 100 steps on documentation text; the bytes kept of a step of 8 times 128
    tokens beside it."""
    losses, kept, tokens = {}, {}, torch.randint(256, (8, 128))
    for name, methods in (("plain", ()), ("eight bits", ({"kind": "coat", "states": False},))):
        model = nano().train()
        lean(model, *methods)
        losses[name] = learn(model, 100)[0]
        kept[name] = saved_bytes(model, lambda model=model: model(tokens, labels=tokens)).between
    return Found(losses["eight bits"] / losses["plain"], {"losses": losses, "bytes": kept})
