"""Every published way to remember or to draft, on four kinds of model: it runs as it is, or one error says why not."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch

import zoo
from zoo.cache import DuoAttention, RazorAttention, head_scores, learn_gates, policies
from zoo.decoding import TIM, LongSpec, ModelDraft, Rapid, SpecPC, add_draft_layer
from zoo.steering import in_context_vectors, steer

MODELS = ("transformer_nano", "falcon_h1_nano", "deepseek_nano", "mor_nano")
PROMPT, NEW = torch.arange(40, 60).repeat(2, 1), 3
PAPERS = (  # as they write their names
    "DuoAttention", "RazorAttention", "LazyEviction", "PrefixKV", "ZipVL", "MPCache", "SpecKV", "LookM", "StreamingLLM",
    "H2O", "SnapKV", "InfLLM", "EMLLM", "TokenSelect", "SentenceKV", "ActQKV", "LServe", "Kinetics",
    "RecycledAttention", "ThinK", "LoopServe", "PromptDistill",
)  # fmt: skip


@lru_cache(None)
def built(name: str) -> Any:
    torch.manual_seed(0)
    return zoo.create_model(name, **({} if name == "mor_nano" else {"depth": 2})).eval()


def fresh(name: str) -> Any:
    model = zoo.create_model(name)
    model.load_state_dict(built(name).state_dict(), strict=False)
    return model.eval()


def said(model: Any, **options: Any) -> Any:
    return zoo.generate(model, PROMPT, NEW, temperature=0, **options)


def longspec(model: Any, *widths: int) -> Any:
    return said(add_draft_layer(model), draft=LongSpec(widths=widths, length=2))


def prepacked(model: Any) -> Any:
    packed = zoo.prepack([[1, 2, 3], [4, 5], [6, 7, 8]])
    return packed.unpack(model(packed.tokens, seq_idx=packed.seq_idx))


def steered(model: Any) -> Any:
    with steer(model, in_context_vectors(model, [([1, 2], [3, 4])])):
        return said(model)


def by_gates(model: Any) -> Any:
    gates = learn_gates(model, steps=1, length=24, passkeys=1, passkey_length=3, sink=1, recent=4)
    return said(zoo.keep_heads(model, gates=gates), cache=DuoAttention(sink=2, recent=4))


def by_scores(model: Any) -> Any:
    return said(model, cache=RazorAttention(head_scores(model, copy=8, copies=2), sink=2, recent=4))


METHODS: dict[str, Callable[[Any], Any]] = {
    "DuoAttention, gates learnt": by_gates,
    "RazorAttention, heads searched": by_scores,
    "SpecKV, with a draft": lambda model: said(model, cache=zoo.cache.SpecKV(draft=built("transformer_nano"))),
    "SpecPC": lambda model: said(model, compress=SpecPC(built("transformer_nano"), budget=8, window=4, kernel=2)),
    "TIM": lambda model: said(model, memory=TIM(), tokenizer=zoo.load_tokenizer("transformer_nano")),
    "draft of another model": lambda model: said(model, draft=ModelDraft(built("falcon_h1_nano"), length=2)),
    "LayerSkip": lambda model: said(model, draft="early_exit"),
    "DEL": lambda model: said(model, draft="del"),
    "LongSpec": longspec,
    "LongSpec, trees": lambda model: longspec(model, 2, 2),
    "RAPID": lambda model: said(model, draft=Rapid(model, budget=8, chunk=4, query=4)),
    "Hydragen": lambda model: said(model, num_samples=2, share_prompt=True),
    "prepacking": prepacked,
    "LayerCast": lambda model: said(zoo.layer_cast(model)),
    "batch-invariant": lambda model: said(model, batch_invariant=True),
    "in-context vectors": steered,
}  # fmt: skip
CHANGES = ("DuoAttention, gates learnt", "LongSpec", "LongSpec, trees", "LayerCast")  # the model they are given
LATENT, LAYER = "latent attention keeps one vector for all", "a draft layer reads the keys that the last attention"
WHY_NOT = {
    ("DuoAttention, gates learnt", "deepseek_nano"): LATENT,
    ("RazorAttention, heads searched", "deepseek_nano"): LATENT,
    ("LayerSkip", "mor_nano"): "not run one after the other: there is no early exit",
    ("DEL", "mor_nano"): "not run one after the other: there is no early exit",
    ("LongSpec", "deepseek_nano"): LAYER,
    ("LongSpec, trees", "deepseek_nano"): LAYER,
    ("LongSpec, trees", "mor_nano"): "not run one after the other: draft a chain",
    ("in-context vectors", "mor_nano"): "whose blocks are run once",
}


def test_every_policy_has_the_name_that_its_paper_gives_it():
    known = policies()
    assert {one.__name__ for one in known.values()} == {*PAPERS, "Dense"} and set(PAPERS) < set(zoo.cache.__all__)
    for name, one in known.items():
        assert one.paper or name == "dense"


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("policy", policies())
def test_policies_by_name(policy, name):
    """Those of the four models that cannot have one are known by what the policy says of itself."""
    model, kind = built(name), policies()[policy]
    if (name == "deepseek_nano" and kind.channels) or (name == "mor_nano" and kind().prunes):
        message = "latent attention keeps one vector for all" if kind.channels else "ends tokens between blocks"
        with pytest.raises(ValueError, match=message):
            said(model, cache=policy)
    else:
        assert said(model, cache=policy).shape == (2, PROMPT.shape[1] + NEW)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_other_methods(method, name):
    model = fresh(name) if method in CHANGES else built(name)
    if (method, name) in WHY_NOT:
        with pytest.raises(ValueError, match=WHY_NOT[method, name]):
            METHODS[method](model)
    else:
        assert METHODS[method](model) is not None
