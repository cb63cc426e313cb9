"""What ``zoo bench cache`` was expected to find, written down before it was measured, and whether it did."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from zoo.benchmarks.cache_memory import BOUND
from zoo.benchmarks.cache_methods import AS_POLICY, KINDS, UNBUDGETED

Record = dict[str, Any]
SPARES = 1.1  # what a step may take over a dense one, for noise


class Claim(NamedTuple):
    """Something that is expected of methods: of their answers, their time or their memory.

    ``holds`` compares what was found of a method with what was found of the dense cache: of "accuracy" the shares of
    right answers to the first and the second question, a mean over the tasks at the largest budget; else records.
    """

    part: str
    says: str
    methods: Sequence[str]
    holds: Callable[[Any, Any], bool]


def near(share: float) -> Callable[[Sequence[float], Sequence[float]], bool]:
    """At least a share of the dense cache's accuracy, in both questions."""
    return lambda found, dense: all(a >= share * b for a, b in zip(found, dense, strict=True))


SUMS = ("h2o", "prefixkv", "look_m", "lazy_eviction", "zipvl")
ASKED = ("snapkv", "speckv", "specpc", "prompt_distill")
CLAIMS = (
    Claim(
        "accuracy",
        "what keeps of a prompt what its end, the question, looks at answers the first question (90 % of dense) and "
        "loses 20 points or more at the second (SCBench, arXiv 2412.10319: what remembers less than everything fails "
        "from the second turn on)",
        ASKED,
        lambda found, dense: found[0] >= 0.9 * dense[0] and found[1] <= found[0] - 0.2,
    ),
    Claim(
        "accuracy",
        "what keeps the tokens that the whole text attends to loses 20 points or more in both questions, of which the "
        "text knows nothing (SCBench: the same)",
        SUMS,
        lambda found, dense: all(a <= b - 0.2 for a, b in zip(found, dense, strict=True)),
    ),
    Claim(
        "accuracy",
        "a sink and a window answer little of what has left them: less than 60 % in both questions (StreamingLLM, "
        "arXiv 2309.17453: the window is not extended)",
        ("streaming_llm",),
        lambda found, dense: max(found) < 0.6,
    ),
    Claim(
        "accuracy",
        "what keeps everything and sees a half answers both questions, 90 % of dense (their papers; SCBench: sparse "
        "attention over all that was read holds)",
        KINDS["sees a part"],
        near(0.9),
    ),
    Claim(
        "accuracy",
        "with half of the heads retrieving, both questions are answered, 95 % of dense (DuoAttention, arXiv "
        "2410.10819)",
        ("duo_attention", "razor_attention"),
        near(0.95),
    ),
    Claim(
        "accuracy",
        "half of the keys' channels cost 5 % at most (ThinK, arXiv 2407.21018, at 40 %)",
        ("think",),
        near(0.95),
    ),
    Claim("accuracy", "8 and 4 bits cost 5 % at most", ("int8", "int4"), near(0.95)),
    Claim(
        "accuracy",
        "a turn that is over is not missed: 95 % of dense (TIM, arXiv 2507.16784)",
        ("tim",),
        near(0.95),
    ),
    Claim(
        "time",
        "what evicts of the prompt alone has nothing more to do in a step than the dense cache as a policy, so that it "
        "takes no longer (10 % for noise)",
        (*KINDS["evicts the prompt"], "think"),
        lambda found, dense: found["step_ms"] <= SPARES * dense["step_ms"],
    ),
    Claim(
        "memory",
        f"after 32,768 tokens, no more slots than the budget, and what is generated where that is added, in {BOUND} "
        "times their bytes; between, never more than budget and chunk",
        ("streaming_llm", "h2o", "snapkv", "prefixkv"),
        lambda found, dense: (
            found["bytes_of_budget"] <= BOUND
            and found["slots"] <= found["allowed"]
            and found["most_in_prefill"] <= found["budget"] + found["chunk"]
        ),
    ),
)
EXPECTED = "\n".join(f"- {claim.says}." for claim in CLAIMS)


def means(records: Sequence[Record], recipe: str, budget: int) -> dict[str, list[float]]:
    """Of each method of a model, over the tasks: the shares of right answers to the first and to the second question;
    what has no budget has the same at all."""
    return {
        r["method"]: [statistics.fmean(turn) for turn in zip(*r["answered"].values(), strict=True)]
        for r in records
        if r["model"] == recipe and (r["budget"] == budget or r["method"] in UNBUDGETED)
    }


def verdicts(found: dict[str, Any]) -> list[Record]:
    """What was expected of whom, and of whom it did not come."""
    judged = []
    for claim in CLAIMS:
        tried, missed = [], []
        for name, method, value, dense in _measured(found, claim.part):
            if method in claim.methods:
                tried.append(name)
                missed += [] if claim.holds(value, dense) else [name]
        judged.append({"expected": claim.says, "tried": tried, "missed": missed})
    return judged


def _measured(found: dict[str, Any], part: str) -> Iterator[tuple[str, str, Any, Any]]:
    """Name, method, what was found of it, and of the dense cache."""
    records = found[part]
    if part == "memory":
        yield from ((r["method"], r["method"], r, None) for r in records)
        return
    for recipe in dict.fromkeys(r["model"] for r in records):
        if part == "accuracy":
            values: dict[str, Any] = dict(means(records, recipe, max(r["budget"] for r in records)))
        else:
            values = {r["method"]: r for r in records if r["model"] == recipe}
        for method, value in values.items():
            dense = values["dense" if part == "accuracy" else AS_POLICY]
            yield f"{method} ({recipe.removeprefix('sessions_')})", method, value, dense
