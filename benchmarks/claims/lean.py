"""Training in less memory: what is kept, counted, and that gradients stay what they were."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from zoo.benchmarks.claims.declare import Found, claim
from zoo.profile.measure import peak_memory
from zoo.train.memory import lean
from zoo.train.memory.count import saved_bytes
from zoo.train.memory.spool import Spool

SHAPE: dict[str, Any] = {"dim": 64, "depth": 4, "num_heads": 4, "num_kv_heads": 4, "mlp_dim": 176}


def apart(*methods: Any, **options: Any) -> float:
    """The largest difference of a gradient of 120 tokens in float64, as a share of the largest one."""
    torch.manual_seed(0)
    model: Any = zoo.create_model("transformer_nano", dtype=torch.float64, **SHAPE).train()
    tokens, found = torch.randint(0, 256, (2, 120)), []
    for given in ((), methods):
        memory = lean(model, *given, **(options if given else {}))
        model.zero_grad()
        model(tokens, labels=tokens).backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
        memory.remove()
    return ((found[1] - found[0]).abs().max() / found[0].abs().max()).item()


@claim(
    "transformer", "2506.03077", says="Streaming a sequence through each layer changes no gradient.",
    source="abstract: memory-efficient and exact", evidence="identity", value="largest difference of a gradient",
    at_most=1e-10,
)  # fmt: skip
def streambp_exact() -> Found:
    """Gradients of four blocks in float64, chunks of 7, 32 and 120 of 120 tokens, beside plain training."""
    found = {size: apart("streambp", chunk_size=size) for size in (7, 32, 120)}
    return Found(max(found.values()), {"by size of a chunk": found})


@claim(
    "transformer", "2506.03077", says="In the same memory sequences are 2.8 to 5.5 times as long as by checkpointing.",
    source="abstract: the maximum sequence length is 2.8 to 5.5 times larger", evidence="cost",
    value="times the bytes a token of checkpointing with whole logits", at_least=2.8, quick=False, limit=600.0,
)  # fmt: skip
def streambp_length() -> Found:
    """Growth of the allocator's peak from 2,048 to 3,072 tokens: eight blocks of width 32, 37 words a channel as in
    Qwen3-8B, chunks of 128; checkpointing with logits in float32, as common code has it, and by chunks, as here."""

    def growth(kind: str, whole: bool = False, **options: Any) -> float:
        shape: dict[str, Any] = SHAPE | {"dim": 32, "depth": 8, "mlp_dim": 96, "vocab_size": 1184}
        model: Any = zoo.create_model("transformer_nano", **shape).train()
        lean(model, kind, **options)

        def step(length: int) -> None:
            tokens = torch.arange(length)[None] % 1184
            if whole:
                F.cross_entropy(model(tokens)[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten()).backward()
            else:
                model(tokens, labels=tokens).backward()
            model.zero_grad()

        low, high = (peak_memory(lambda n=n: step(n), torch.device("cpu")) for n in (2048, 3072))
        return (high - low) / 1024

    found = {
        "streambp": growth("streambp", chunk_size=128), "checkpointing": growth("checkpointing"),
        "checkpointing, whole logits": growth("checkpointing", whole=True),
    }  # fmt: skip
    return Found(found["checkpointing, whole logits"] / found["streambp"], {"bytes a token": found})


@claim(
    "transformer", "2407.12117", says="Moving some tokens and computing the others again changes no gradient.",
    source="abstract: token-wise recomputation and swapping", evidence="identity",
    value="largest difference of a gradient", at_most=1e-10,
)  # fmt: skip
def memo_exact() -> Found:
    """Gradients of four blocks in float64 with alpha 0, 0.3 and 1, the last block kept, beside plain training."""
    found = {alpha: apart("memo", alpha=alpha, keep=1) for alpha in (0.0, 0.3, 1.0)}
    return Found(max(found.values()), {"by alpha": found})


@claim(
    "transformer", "2408.10013", says="Activations that went to a disk and back change no gradient.",
    source="the published code (K-Wu/FlashTrain), whose hooks return what was saved", evidence="identity",
    value="largest difference of a gradient", at_least=0.0, at_most=0.0,
)  # fmt: skip
def ssdtrain_exact() -> Found:
    """Gradients of four blocks in float64, everything but 8 KiB through the file, beside plain training."""
    return Found(apart("ssdtrain", resident=2**13, smallest=2**8))


@claim(
    "transformer", "2408.10013", says="What stays in memory of the activations has a bound, however many there are.",
    source="the published code (K-Wu/FlashTrain): tensors are let go of once they are written", evidence="cost",
    value="times as much held at most with four times the layers", at_most=1.1,
)  # fmt: skip
def ssdtrain_bounded() -> Found:
    """Most bytes that are held of 8 and of 32 tensors of 256 KiB that are put in and read back, with room for two."""
    found = {}
    for count in (8, 32):
        spool = Spool(resident=2**19)
        kept = [spool.put(torch.full((2**16,), float(index))) for index in range(count)]
        while kept:
            kept.pop().get()
        found[count] = spool.most
    return Found(found[32] / found[8], {"bytes by number": found})


@claim(
    "transformer", "1707.04585", says="What reversible blocks keep does not depend on how many there are.",
    source="abstract: activations need not be stored in memory during backpropagation", evidence="cost",
    value="times as much kept with eight blocks as with two", at_least=1.0, at_most=1.0,
)  # fmt: skip
def reversible_memory() -> Found:
    """Most bytes that autograd keeps in a training step of 128 tokens of a transformer after ``zoo.reversible``."""
    found = {}
    for depth in (2, 8):
        shape: dict[str, Any] = SHAPE | {"depth": depth}
        model: Any = zoo.create_model("transformer_nano", **shape, changes=[{"kind": "reversible"}])
        lean(model.train(), "reversible")
        found[depth] = saved_bytes(model, lambda model=model: loss(model)).most
    return Found(found[8] / found[2], {"bytes by depth": found})


def loss(model: Any) -> Tensor:
    tokens = torch.arange(128)[None]
    return model(tokens, labels=tokens)
