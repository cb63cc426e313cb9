"""Every method at a budget of tokens, as options of ``zoo.generate``, for ``zoo bench cache``."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from zoo.benchmarks.cache_readers import Turns
from zoo.cache import (
    EMLLM,
    H2O,
    ActQKV,
    Dense,
    DuoAttention,
    InfLLM,
    Kinetics,
    LazyEviction,
    LookM,
    LoopServe,
    LServe,
    MPCache,
    Policy,
    PrefixKV,
    PromptDistill,
    Quantized,
    RazorAttention,
    RecycledAttention,
    SentenceKV,
    SnapKV,
    SpecKV,
    StreamingLLM,
    ThinK,
    TokenSelect,
    ZipVL,
    head_scores,
    learn_gates,
)
from zoo.decoding import TIM, SpecPC
from zoo.generate.options import Options

KINDS = {  # what a method saves
    "evicts the prompt": ("snapkv", "speckv", "specpc", "prefixkv", "look_m", "zipvl", "prompt_distill"),
    "evicts while decoding": ("streaming_llm", "h2o", "lazy_eviction", "tim"),
    "some heads forget": ("duo_attention", "razor_attention"),
    "sees a part": (
        "infllm", "actqkv", "emllm", "token_select", "sentence_kv", "kinetics", "lserve", "recycled_attention",
        "mpcache", "loopserve",
    ),
    "narrower keys": ("think", "int8", "int4"),
}  # fmt: skip
AS_POLICY = "dense, as a policy"
DENSE = ("dense", AS_POLICY)
UNBUDGETED = (*DENSE, "int8", "int4", "tim")
SINK = 4
AHEAD = 4  # tokens that SpecKV guesses, an answer


class Known(NamedTuple):
    """What is known of a model: gates of ``learn_gates``, scores of ``head_scores``; and a draft model."""

    gates: tuple[tuple[float, ...], ...]
    scores: tuple[tuple[tuple[float, float], ...], ...]
    draft: Any


def known_of(model: Any, draft: Any, steps: int = 200) -> Known:
    """Learn the gates on short passkeys, as published but for the sizes; measure the scores."""
    generator = torch.Generator().manual_seed(0)
    gates = learn_gates(
        model, steps=steps, sink=SINK, recent=16, length=128, passkeys=4, passkey_length=8, generator=generator
    )
    return Known(gates, head_scores(model, copy=64, copies=3, generator=generator), draft)


def policies_at(budget: int, context: int, known: Known) -> dict[str, Policy]:
    """Name -> policy that holds, or sees in a step, about ``budget`` of a context's tokens.

    Where a method has no such number, it gets what comes to as much: heads that keep everything, in the share that the
    budget is of the context; channels; a share of the attention. What is seen beside the best tokens, the first, the
    newest, is a part of the budget. Sizes of blocks and windows are small, as the contexts are.
    """
    share, half, quarter = budget / context, budget // 2, budget // 4
    window, block = min(16, quarter), 4
    blocks: dict[str, Any] = {"block": block, "representatives": 2, "chunk": window}
    ends = tuple(range(64, 128))  # a value ends a statement
    streaming: dict[str, Any] = {"sink": SINK, "recent": window}
    return {
        AS_POLICY: Dense(),
        "int8": Dense(store=Quantized(8)),
        "int4": Dense(store=Quantized(4)),
        "streaming_llm": StreamingLLM(SINK, budget - SINK),
        "h2o": H2O(half, half),
        "lazy_eviction": LazyEviction(budget - window, window),
        "snapkv": SnapKV(budget, window=window // 2, kernel=3),
        "speckv": SpecKV(budget, window=window // 2, kernel=3, ahead=AHEAD, draft=known.draft),
        "prefixkv": PrefixKV(budget, first=SINK, lag=window),
        "look_m": LookM(tuple(range(1, 128)), half, half),
        "zipvl": ZipVL(tau=min(0.99, 0.5 + 0.5 * math.sqrt(share))),
        "prompt_distill": PromptDistill(budget, kernel=3),
        "duo_attention": DuoAttention(known.gates, sparsity=1 - share, **streaming),
        "razor_attention": RazorAttention(known.scores, echo=0.0, induction=share, **streaming),
        "infllm": InfLLM(SINK, half, top_k=(half - SINK) // block, **blocks),
        "actqkv": ActQKV(SINK, half, top_k=(half - SINK) // block, **blocks),
        "emllm": EMLLM(SINK, half, top_k=1, contiguous=max(0, (half - SINK) // block - 1), shortest=2, **blocks),
        "token_select": TokenSelect(SINK, quarter, budget - SINK - quarter, chunk=window),
        "sentence_kv": SentenceKV(ends, budget, first=SINK, recent=window, window=window, kernel=3),
        "kinetics": Kinetics(SINK, quarter, block, (budget - SINK - quarter) // block),
        "lserve": LServe(known.gates, 0.5, **streaming, budget=budget, page=8, logical=4),
        "recycled_attention": RecycledAttention(budget, stride=8),
        "mpcache": MPCache(cluster=block, first=min(1.0, 2 * share), second=share),
        "loopserve": LoopServe(budget=budget, probes=window, window=window, every=8),
        "think": ThinK(ratio=1 - share, recent=window, window=window),
    }


def methods_at(budget: int, context: int, known: Known, steps: int) -> dict[str, Options]:
    """Name -> options, with room for so many steps: every policy, the dense cache, and what is no policy.

    EM-LLM is given prompts in chunks, as it learns what surprised once a call has ended. TIM forgets a turn when the
    next one begins, and has no budget.
    """
    window = min(16, budget // 4)
    given: dict[str, dict[str, Any]] = {"dense": {}}
    given |= {name: {"cache": policy} for name, policy in policies_at(budget, context, known).items()}
    given["emllm"]["prefill_chunk"] = window
    given["specpc"] = {"compress": SpecPC(known.draft, budget, window=window // 2, kernel=3)}
    given["tim"] = {"memory": TIM(keep=0, key=None), "tokenizer": Turns()}
    return {name: Options(max_new_tokens=steps, temperature=0.0, **options) for name, options in given.items()}


def kind_of(name: str) -> str:
    """Of a method."""
    return next((kind for kind, names in KINDS.items() if name in names), "dense")
