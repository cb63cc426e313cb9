"""EM-LLM: what surprises, where events end, and which are seen, by hand."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from cases.attention import DIM, attention, begun, heads, output, turned
from zoo.cache import EMLLM

INIT, LOCAL, BLOCK, SHORTEST, MEMORY, GAMMA = 2, 6, 7, 3, 9, 0.4


def policy(refine: Any, top_k: int = 1, contiguous: int = 2) -> EMLLM:
    return EMLLM(
        INIT, LOCAL, BLOCK, top_k, representatives=2, chunk=4, gamma=GAMMA, memory=MEMORY, shortest=SHORTEST,
        refine=refine, contiguous=contiguous,
    )  # fmt: skip


def quality(similar: Tensor, cut: int, refine: str) -> float:
    """Of cutting a graph in two, with its sums written out."""
    graph, side = similar.tolist(), lambda i: i >= cut
    pairs = [(i, j, a) for i, row in enumerate(graph) for j, a in enumerate(row)]
    if refine == "modularity":
        degree, whole = similar.sum(1).tolist(), float(similar.sum())
        return sum(a - degree[i] * degree[j] / whole for i, j, a in pairs if side(i) == side(j)) / whole
    across = sum(a for i, j, a in pairs if not side(i) and side(j))
    return -across / min(sum(a for i, j, a in pairs if side(i) == side(j) == one) for one in (False, True))


def events(k: Tensor, nats: list[float], refine: Any) -> list[int]:
    """Where events of keys (H, T, d), as at position 0, begin and end."""
    bounds, used = [INIT], 0
    while True:
        start = bounds[-1]
        for end in range(start + SHORTEST, min(start + BLOCK, len(nats))):
            past = torch.tensor(nats[max(0, end - MEMORY) : end])
            if end > used and nats[end] > past.mean() + GAMMA * past.std(correction=0):
                break
        else:
            if start + BLOCK > len(nats):
                return bounds
            bounds.append(start + BLOCK)
            continue
        used, half = end, (end - start) // 2
        if refine is not None:
            if end + half > len(nats):
                return bounds
            low = max(0, start - half)
            similar = torch.stack([one[low : end + half] @ one[low : end + half].T for one in k[::2]]).mean(0)
            end = max(range(start + SHORTEST, end + 1), key=lambda cut: quality(similar, cut - low, refine))
        bounds.append(end)


@torch.no_grad()
@pytest.mark.parametrize("refine", ["modularity", "conductance", None])
def test_events_and_their_neighbours_are_seen_as_blocks_are(refine):
    layer, length, top, size = attention(), 40, 1, 2
    x, nats = torch.randn(1, length, DIM, dtype=torch.float64), torch.rand(length).tolist()
    state = begun(layer, policy(refine, top, size))
    q, k, v = heads(layer, x)
    mass, queue, used = torch.zeros(4, length, dtype=torch.float64), [], set()
    calls = [range(a, a + 4) for a in range(0, 20, 4)] + [range(t, t + 1) for t in range(20, length)]
    for call in calls:
        found = layer(x[:, list(call)], state)
        told = torch.tensor(nats[: call.stop]).view(1, 1, -1)
        state.renew("surprise", told)  # what the model would do, after all layers
        edge = call.start - LOCAL
        ends = events(k, nats[: call.start], refine) if call.stop > LOCAL else [INIT]
        spans = [range(a, b) for a, b in pairwise(ends) if b <= edge]
        far = [turned(layer, q[h, list(call)], [LOCAL] * len(call)) for h in range(4)]
        scores = []
        for span in spans:
            best = [[span[i] for i in mass[h, list(span)].topk(2).indices] for h in range(4)]
            scores.append(sum(float(far[h].mean(0) @ k[h, best[h]].mean(0)) for h in range(4)))
        chosen = sorted(range(len(spans)), key=lambda b: scores[b])[-top:]  # the best one last
        if spans:
            near = [b + by for b in chosen for by in (-1, 1)]
            for event in (b for b in near if 0 <= b < len(spans) and b not in chosen):
                queue = [*(b for b in queue if b != event), event][-size:]
        seen = [t for t in range(call.stop) if not any(t in s for b, s in enumerate(spans) if b not in chosen + queue)]
        used |= {*queue}
        given = torch.zeros_like(mass)
        for row, t in enumerate(call):
            tokens, mixed = [s for s in seen if s <= t], []
            close = torch.tensor([t - s < LOCAL for s in tokens])
            for h in range(4):
                true = turned(layer, k[h, tokens], tokens) @ turned(layer, q[h, t : t + 1], [t])[0]
                weight = (torch.where(close, true, k[h, tokens] @ far[h][row]) / 6**0.5).softmax(-1)
                mixed.append(weight @ v[h, tokens])
                given[h, tokens] += weight * close
            torch.testing.assert_close(found[0, row], output(layer, torch.stack(mixed)), atol=1e-9, rtol=1e-9)
        mass += given
    assert len(used) > 1 and len({b - a for a, b in pairwise(ends)}) > 1


@torch.no_grad()
def test_the_model_tells_how_much_a_token_surprises():
    """In chunks, behind padding, and while a draft is open."""
    torch.manual_seed(0)
    model: Any = zoo.create_model("transformer_nano", depth=2).eval()
    tokens, padding = torch.randint(0, 256, (2, 21)), 3
    ids = torch.zeros_like(tokens)
    ids[1, :padding] = -1
    state = model.init_state(2, cache=EMLLM())
    for part in (slice(0, 8), slice(8, 15), slice(15, 16)):
        model(tokens[:, part], state, seq_idx=ids[:, part], logits_to_keep=1)
    state.commit()
    model(tokens[:, 16:18], state)
    state.commit(2)
    model(tokens[:, 18:], state)
    logits = model(tokens, seq_idx=ids)
    expected = F.pad(F.cross_entropy(logits[:, :-1].mT, tokens[:, 1:], reduction="none"), (1, 0))
    expected[1, : padding + 1] = 0
    for part in state:
        torch.testing.assert_close(part.held("surprise")[:, 0], expected, atol=1e-5, rtol=1e-5)
    state.rollback(2)
    model(tokens[:, 19:], state)  # after which token that was is not known any more
    expected[:, 19] = 0
    torch.testing.assert_close(state[0].held("surprise")[:, 0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shortest": 9, "block": 8}, "got shortest 9, block 8"),
        ({"refine": "ratio"}, "one of modularity, conductance, or None, got 'ratio'"),
        ({"contiguous": -1}, "contiguous must be at least 0"),
        ({"reach": 0}, "reach must be at least 1"),
    ],
)
def test_wrong_options_say_so(options, message):
    with pytest.raises(ValueError, match=message):
        EMLLM(**options)
