"""Every cache policy, small enough to forget much of 40 tokens, and as it keeps all of them.

A new policy is one line here, and gets the tests of ``tests/layers/test_cache_policies.py``.
"""

from __future__ import annotations

from typing import NamedTuple

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
    RazorAttention,
    RecycledAttention,
    SentenceKV,
    SnapKV,
    SpecKV,
    StreamingLLM,
    ThinK,
    TokenSelect,
    ZipVL,
)
from zoo.vision_language import EfficientVLA


class Case(NamedTuple):
    """A policy that forgets, or sees a part; the same kind with room for everything; and how close to full attention
    that is: None for bit-equal."""

    small: Policy
    ample: Policy
    limit: float | None = None

    def __str__(self) -> str:
        return type(self.small).__name__


POLICIES = [
    Case(Dense(), Dense()),
    Case(DuoAttention(sink=2, recent=6), DuoAttention()),
    Case(H2O(heavy=4, recent=4), H2O(heavy=100, recent=100)),
    Case(InfLLM(init=2, local=8, block=4, top_k=2, representatives=2, chunk=4), InfLLM()),
    Case(LazyEviction(budget=8, window=3, threshold=0.03), LazyEviction(budget=100, window=10)),
    Case(EfficientVLA(images=(0, 1, 2), budget=1, layer=0), EfficientVLA(images=(0, 1, 2))),
    Case(PromptDistill(budget=8, layer=0), PromptDistill()),
    Case(RazorAttention(sink=2, recent=6), RazorAttention()),
    Case(SpecKV(budget=10, window=4, kernel=3), SpecKV()),
    Case(SnapKV(budget=10, window=4, kernel=3), SnapKV()),
    Case(LoopServe(alpha=0.6, probes=4, budget=8, window=3, every=3), LoopServe(alpha=1.0)),
    Case(Kinetics(sink=2, local=3, block=4, top_k=2), Kinetics()),
    Case(LServe(sink=2, recent=6, budget=8, page=4, logical=2, reuse=2), LServe()),
    Case(PrefixKV(budget=9, first=2, lag=3), PrefixKV(budget=1.0)),
    Case(RecycledAttention(top_k=6, stride=4), RecycledAttention()),
    Case(TokenSelect(init=2, local=3, top_k=4, chunk=4), TokenSelect()),
    Case(ZipVL(tau=0.8), ZipVL(tau=1.0)),
    Case(ActQKV(init=2, local=8, block=4, top_k=2, representatives=2, chunk=4, temperature=0.5), ActQKV()),
    Case(EMLLM(2, 8, 6, 1, representatives=2, chunk=4, gamma=0.5, memory=9, shortest=2, contiguous=2), EMLLM()),
    Case(LookM(images=(0,), heavy=4, recent=4), LookM(images=(0,), heavy=100, recent=100)),
    Case(MPCache(threshold=0.1, cluster=3), MPCache(threshold=0.0, first=1.0, second=1.0)),
    Case(SentenceKV(budget=9, factor=2, first=2, recent=3, window=4, kernel=3), SentenceKV()),
    Case(StreamingLLM(sink=2, recent=6), StreamingLLM()),
    Case(ThinK(recent=4, window=4, tokens=SnapKV(budget=12, window=4)), ThinK(ratio=0.0)),
]
