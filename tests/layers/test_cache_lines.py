"""LoopServe: the lines of a prompt and of a later turn, and the tokens that steps see, written out line by line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cases.attention import DIM, attention, begun, heads, output, turned, weights
from zoo.cache import LoopServe

PROMPT, LENGTH = 20, 34
POLICY = LoopServe(alpha=0.6, probes=4, budget=9, window=3, every=4)


def lines(seen: Tensor, start: int) -> set[tuple[str, int]]:
    """Of one head's attention (T, T): as few lines as hold the share of what the last probes before T give."""
    probes = range(max(start, len(seen) - 4), len(seen))
    sums: dict[tuple[str, int], float] = {}
    for t in probes:
        for s in range(t + 1):
            for line in (("token", s), ("distance", t - s)):
                sums[line] = sums.get(line, 0.0) + float(seen[t, s])
    chosen: set[tuple[str, int]] = set()
    for line in sorted(sums, key=lambda one: -sums[one]):
        chosen.add(line)
        if sum(float(seen[t, s]) for t in probes for s in on(chosen, t)) >= 0.6 * len(probes):
            return chosen
    raise AssertionError


def on(chosen: set[tuple[str, int]], t: int) -> list[int]:
    return [s for s in range(t + 1) if ("token", s) in chosen or ("distance", t - s) in chosen]


@torch.no_grad()
def test_turns_and_steps_see_what_the_definition_says():
    layer, x = attention(), torch.randn(1, LENGTH, DIM, dtype=torch.float64)
    state, full = begun(layer, POLICY), weights(layer, x)
    q, k, v = heads(layer, x)
    q, k = (torch.stack([turned(layer, one, range(LENGTH)) for one in part]) for part in (q, k))

    def seen_by(t: int, seen: list[Any]) -> Tensor:
        mixed = [(k[h, list(s)] @ q[h, t] / 6**0.5).softmax(-1) @ v[h, list(s)] for h, s in enumerate(seen)]
        return output(layer, torch.stack(mixed))

    for start, stop in ((0, PROMPT), (PROMPT, PROMPT + 5)):  # a prompt, and a turn that chooses among it too
        found = layer(x[:, start:stop], state)[0]
        kept = [lines(full[h, :stop, :stop], start) for h in range(4)]
        missing = 0
        for t in range(start, stop):
            seen = [sorted({*on(kept[h], t), t}) for h in range(4)]
            missing += sum(t + 1 - len(one) for one in seen)
            torch.testing.assert_close(found[t - start], seen_by(t, seen), atol=1e-9, rtol=1e-9)
        assert missing > 0
    last = PROMPT + 4
    for t in range(PROMPT + 5, LENGTH):
        score = full[:, last - 2 : last + 1].sum(1).view(2, 2, -1).sum(1)
        new = list(range(last + 1, t + 1))
        seen = [[*score[h // 2, : last + 1].topk(9 - len(new)).indices.tolist(), *new] for h in range(4)]
        torch.testing.assert_close(layer(x[:, t : t + 1], state)[0, 0], seen_by(t, seen), atol=1e-9, rtol=1e-9)
        last = t if t - last == 4 else last


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, r"alpha, a share of the attention, must be in \(0, 1\], got 0.0"),
        ({"window": 0}, "window must be"),
        ({"budget": 4, "every": 8}, "the budget must hold the tokens that come between two choices"),
    ],
)
def test_wrong_options_say_the_rule(options, message):
    with pytest.raises(ValueError, match=message):
        LoopServe(**options)
