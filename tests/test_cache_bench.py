"""The benchmark of caches: all methods are in it, answers are counted right, budgets are held, misses are said."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from zoo.benchmarks import cache, cache_claims, cache_memory, cache_methods, cache_models, cache_report
from zoo.benchmarks.common import markdown
from zoo.cache import policies
from zoo.decoding import TIM
from zoo.generate.options import Options
from zoo.train.data import KeyValues, Passkeys


@pytest.fixture(scope="module", params=cache_models.packed())
def model(request) -> Any:
    return cache_models.trained(request.param)


@pytest.fixture(scope="module")
def known(model) -> cache_methods.Known:
    layers, heads = len(model.mixers), 2
    gates = tuple(tuple(0.1 * (layer + head) for head in range(heads)) for layer in range(layers))
    return cache_methods.Known(gates, tuple(tuple((g, g) for g in row) for row in gates), model)


def test_every_policy_is_measured_and_has_a_kind(known):
    methods = cache_methods.methods_at(64, 128, known, 4)
    assert {type(one.cache) for one in methods.values() if one.cache is not None} == set(policies().values())
    named = [name for names in cache_methods.KINDS.values() for name in names]
    assert {*named, *cache_methods.DENSE} == set(methods) and len(named) == len(set(named))
    assert {name for claim in cache_claims.CLAIMS for name in claim.methods} == set(named)


@torch.inference_mode()
def test_the_models_answer_and_answers_are_those_of_the_dense_cache_where_all_fits(model, known):
    task = KeyValues()
    tokens = task.generate(torch.arange(12), cache.TEST)[0]
    found, run = cache.answers(model, task, tokens, Options(max_new_tokens=6))
    assert min(found) >= 0.75 and run.held()[0] == 116 + 2 * 3 - 1
    wrong = tokens.clone()
    wrong[:3, task.context + 2] = wrong[3:6, task.context + 5] = 1  # a name, which answers nothing
    worse, _ = cache.answers(model, task, wrong, Options(max_new_tokens=6))
    assert worse[0] == pytest.approx(found[0] - 3 / 12, abs=1e-9 + 1 / 12) and worse[1] < found[1]
    roomy = cache_methods.methods_at(128, 128, known, 6)
    for name in ("dense", "snapkv", "specpc", "h2o"):
        assert cache.answers(model, task, tokens, roomy[name])[0] == found


@torch.inference_mode()
def test_a_turn_that_is_over_leaves_the_working_memory(model):
    task = Passkeys()
    tokens = task.generate(torch.arange(2), cache.TEST)[0]
    options: dict[str, Any] = {"memory": TIM(keep=0, key=None), "tokenizer": cache_methods.Turns()}
    _, run = cache.answers(model, task, tokens, Options(max_new_tokens=12, **options))
    assert run.held()[0] == task.context + 1 + (task.turn - 1)  # both markers stay


def test_what_a_budget_holds(model):
    for record in cache_memory.memory(model, length=320, budget=128, chunk=64, steps=4):
        assert record["most_in_prefill"] <= 128 + 64
        assert record["slots"] <= record["allowed"] <= 132 and record["bytes_of_budget"] <= cache_memory.BOUND
        assert record["bytes"] < 0.55 * record["dense_bytes"]


def test_misses_are_said(tmp_path):
    def answered(method: str, budget: int, first: float, second: float) -> dict[str, Any]:
        scores = {"passkeys": [first, second], "variables": [first, second]}
        own = {"slots": 1.5 * budget, "bytes": 100 * budget, "answered": scores}
        return {"model": "sessions_transformer", "method": method, "budget": budget} | own

    records = [answered(name, budget, 0.9, 0.4 if name == "snapkv" else 0.5) for budget in (16, 64)
               for name in ("snapkv", "infllm")] + [answered("dense", 64, 1.0, 0.9)]  # fmt: skip
    times = [
        {"model": "sessions_transformer", "method": name, "length": 8, "steps": 2, "budget": 4, "prefill_ms": 2.0,
         "step_ms": step}
        for name, step in ((cache_methods.AS_POLICY, 1.0), ("snapkv", 1.2))
    ]  # fmt: skip
    found: dict[str, Any] = {"accuracy": records, "time": times, "memory": [], "samples": 3, "seconds": 1}
    found["verdicts"] = cache_claims.verdicts(found)
    missed = {name for verdict in found["verdicts"] for name in verdict["missed"]}
    tried = [name for verdict in found["verdicts"] for name in verdict["tried"]]
    assert missed == {"infllm (transformer)", "snapkv (transformer)"} and tried.count("snapkv (transformer)") == 2
    text = "".join(markdown(*table) for table in cache_report.tables(found))
    assert "| infllm (transformer) | 1 |" in text and "90 / 40" in text and "| 1.20 |" in text
    cache_report.plot(records, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
