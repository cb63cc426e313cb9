"""Each cache policy against its published definition, written out slowly with full matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from cases.attention import DIM, attention, begun, heads, kept, output, turned, weights
from zoo.cache import H2O, DuoAttention, InfLLM, PromptDistill, SnapKV, StreamingLLM, ThinK
from zoo.layers import CausalAttention

PROMPT, LENGTH = 20, 30


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def turned_heads(layer: CausalAttention, x: Tensor) -> list[Tensor]:
    """Queries and keys (H, T, d) at their positions."""
    return [torch.stack([turned(layer, one, range(x.shape[1])) for one in part]) for part in heads(layer, x)[:2]]


@torch.no_grad()
def test_streaming_llm_counts_positions_within_the_cache():
    layer, x = attention(), torch.randn(1, LENGTH, DIM, dtype=torch.float64)
    for renumber in (True, False):
        state = begun(layer, StreamingLLM(sink=3, recent=5, renumber=renumber))
        layer(x[:, :PROMPT], state)
        q, k, v = heads(layer, x)
        for t in range(PROMPT, LENGTH):
            tokens = [0, 1, 2, *range(t - 5, t + 1)]
            places = list(range(9)) if renumber else tokens
            mixed = []
            for head in range(4):
                logits = turned(layer, k[head, tokens], places) @ turned(layer, q[head, t : t + 1], places[-1:])[0]
                mixed.append((logits / 6**0.5).softmax(-1) @ v[head, tokens])
            close(layer(x[:, t : t + 1], state)[0, 0], output(layer, torch.stack(mixed)))


@torch.no_grad()
def test_streaming_llm_in_chunks_is_an_endless_prompt():
    """Evicting a prefix from one layer is having read the sinks and the window alone: positions are relative."""
    layer, x = attention(), torch.randn(1, 60, DIM, dtype=torch.float64)
    state = begun(layer, StreamingLLM(sink=0, recent=8))
    for chunk in x[:, :50].split(4, dim=1):
        layer(chunk, state)
    fresh = layer.init_state(1)
    layer(x[:, 42:50], fresh)
    close(layer(x[:, 50:], state), layer(x[:, 50:], fresh))


@torch.no_grad()
def test_h2o_keeps_the_largest_sums_of_what_it_still_saw():
    layer, x = attention(), torch.randn(1, LENGTH, DIM, dtype=torch.float64)
    state = begun(layer, H2O(heavy=4, recent=3))
    q, k = turned_heads(layer, x)
    sums = torch.zeros(2, LENGTH, dtype=torch.float64)
    alive = torch.ones(2, LENGTH, dtype=torch.bool)
    for start, stop in [(0, PROMPT)] + [(t, t + 1) for t in range(PROMPT, LENGTH)]:
        layer(x[:, start:stop], state)
        for head in range(4):
            seen = alive[head // 2] & (torch.arange(LENGTH) <= torch.arange(start, stop)[:, None])
            logits = (q[head, start:stop] @ k[head].T / 6**0.5).masked_fill(~seen, -torch.inf)
            sums[head // 2] += logits.softmax(-1).sum(0)
        for group in range(2):
            older = [t for t in range(stop - 3) if alive[group, t]]
            heavy = sorted(older, key=lambda t: float(sums[group, t]))[-4:]
            alive[group, [t for t in older if t not in heavy]] = False
        assert kept(state) == [{t for t in range(stop) if row[t]} for row in alive]


@torch.no_grad()
def test_snapkv_keeps_what_the_window_looks_at():
    layer, x = attention(), torch.randn(1, LENGTH, DIM, dtype=torch.float64)
    state = begun(layer, SnapKV(budget=9, window=4, kernel=3))
    layer(x[:, :PROMPT], state)
    looked = weights(layer, x[:, :PROMPT])[:, -4:, :-4].mean(1)
    score = F.avg_pool1d(looked, 3, stride=1, padding=1).view(2, 2, -1).mean(1)
    best = [set(row) | {16, 17, 18, 19} for row in score.topk(5).indices.tolist()]
    assert kept(state) == best
    found = torch.cat([layer(x[:, t : t + 1], state) for t in range(PROMPT, LENGTH)], 1)
    (rows, keys), values = turned_heads(layer, x), heads(layer, x)[2]
    for t in range(PROMPT, LENGTH):
        seen = [[*sorted(one), *range(PROMPT, t + 1)] for one in best]
        mixed = [(keys[h, seen[h // 2]] @ rows[h, t] / 6**0.5).softmax(-1) @ values[h, seen[h // 2]] for h in range(4)]
        close(found[0, t - PROMPT], output(layer, torch.stack(mixed)))


@torch.no_grad()
@pytest.mark.parametrize("gates", [((0.9, 0.2),), ((0.1, 0.8),)])
def test_duo_attention_is_a_mask_a_head(gates):
    """Retrieval heads see all, streaming heads the sinks and a window: in the prompt and after it."""
    layer, x = attention(), torch.randn(1, LENGTH, DIM, dtype=torch.float64)
    state = begun(layer, DuoAttention(gates, sparsity=0.5, sink=2, recent=4))
    found = torch.cat([layer(x[:, :PROMPT], state)] + [layer(x[:, t : t + 1], state) for t in range(PROMPT, LENGTH)], 1)
    t = torch.arange(LENGTH)
    near = (t <= t[:, None]) & ((t < 2) | (t[:, None] - t < 4))
    q, k, v = heads(layer, x)
    mixed = []
    for head in range(4):
        mask = t <= t[:, None] if gates[0][head // 2] > 0.5 else near
        logits = turned(layer, q[head], t) @ turned(layer, k[head], t).T / 6**0.5
        mixed.append(logits.masked_fill(~mask, -torch.inf).softmax(-1) @ v[head])
    close(found[0], layer.out_proj(torch.stack(mixed, 1).flatten(1)))
    assert sorted(part.filled for part in state.parts) == [6, LENGTH]


@torch.no_grad()
def test_think_drops_the_channels_that_add_least():
    layer, x = attention(), torch.randn(1, LENGTH, DIM, dtype=torch.float64)
    state = begun(layer, ThinK(ratio=0.4, recent=5, window=4))
    layer(x[:, :PROMPT], state)
    (q, k), v = turned_heads(layer, x), heads(layer, x)[2]
    importance = q[:, PROMPT - 4 : PROMPT].square().view(2, 2, 4, 6).mean((1, 2)) * k[::2, :PROMPT].square().mean(1)
    dropped = importance.argsort(-1)[:, :2]
    for head in range(4):
        k[head, : PROMPT - 5, dropped[head // 2]] = 0
    for t in range(PROMPT, LENGTH):
        mixed = [(k[h, : t + 1] @ q[h, t] / 6**0.5).softmax(-1) @ v[h, : t + 1] for h in range(4)]
        close(layer(x[:, t : t + 1], state)[0, 0], output(layer, torch.stack(mixed)))
    assert state.data["key"].shape[-1] == 4 and state.notes["rest"].shape == (1, 2, 5 + LENGTH - PROMPT, 2)


@torch.no_grad()
def test_infllm_sees_a_window_and_the_blocks_it_asks_for():
    """Token by token and in a prompt of chunks: the first tokens, the chosen blocks and what waits for a block stand at
    the distance of the window."""
    init, local, block, top, chunk = 2, 6, 4, 2, 4
    layer, x = attention(), torch.randn(1, 40, DIM, dtype=torch.float64)
    policy = InfLLM(init, local, block, top, representatives=2, chunk=chunk)
    q, k, v = heads(layer, x)
    mass = torch.zeros(4, 40, dtype=torch.float64)
    state = begun(layer, policy)
    found = torch.cat([layer(x[:, :22], state)] + [layer(x[:, t : t + 1], state) for t in range(22, 40)], 1)
    asking = [list(range(a, min(a + chunk, 22))) for a in range(0, 22, chunk)] + [[t] for t in range(22, 40)]
    for group in asking:
        blocks = max(0, (group[0] - local - init) // block)
        spans = [range(init + b * block, init + (b + 1) * block) for b in range(blocks)]
        far_q = [turned(layer, q[h, group], [local] * len(group)) for h in range(4)]
        scores = []
        for span in spans:
            known = [k[h, [span[i] for i in mass[h, list(span)].topk(2).indices]].mean(0) for h in range(4)]
            scores.append(sum(float(far_q[h].mean(0) @ known[h]) for h in range(4)))
        chosen = sorted(range(blocks), key=lambda b: scores[b])[-top:]
        hidden = {t for b in range(blocks) if b not in chosen for t in spans[b]}
        given = torch.zeros_like(mass)
        for row, t in enumerate(group):
            mixed = []
            for h in range(4):
                seen = [s for s in range(t + 1) if s not in hidden]
                near = torch.tensor([t - s < local for s in seen])
                true = turned(layer, k[h, seen], seen) @ turned(layer, q[h, t : t + 1], [t])[0]
                weight = (torch.where(near, true, k[h, seen] @ far_q[h][row]) / 6**0.5).softmax(-1)
                mixed.append(weight @ v[h, seen])
                given[h, seen] += weight * near
            close(found[0, t], output(layer, torch.stack(mixed)))
        mass += given


@torch.no_grad()
def test_prompt_distill_gives_deep_layers_the_chosen_tokens_alone():
    """Deep layers run on the hidden states of the chosen tokens, at their positions; later tokens see no others."""
    torch.manual_seed(0)
    model: Any = zoo.create_model("transformer_nano", depth=3, dtype=torch.float64).eval()
    ids = torch.randint(0, 256, (1, LENGTH))
    state = model.init_state(1, cache=PromptDistill(budget=6, layer=0, kernel=3))
    found = [model(ids[:, :PROMPT], state)[:, -1:]] + [model(ids[:, t : t + 1], state) for t in range(PROMPT, LENGTH)]

    def block(layer: Any, x: Tensor, chosen: list[int]) -> Tensor:
        q, k, v = heads(layer.mixer, layer.norm(x))
        q, k = (torch.stack([turned(layer.mixer, one, chosen) for one in part]) for part in (q, k))
        seen = torch.ones(len(chosen), len(chosen), dtype=torch.bool).tril()
        logits = (q @ k.mT / layer.mixer.head_dim**0.5).masked_fill(~seen, -torch.inf)
        x = x + layer.mixer.out_proj((logits.softmax(-1) @ v).transpose(0, 1).flatten(1))
        return x + layer.mlp(layer.mlp_norm(x))

    x, first = model.embedding(ids), model.blocks[0]
    q, k = turned_heads(first.mixer, first.norm(x[:, :PROMPT]))
    score = (q[:, -1:] @ k.mT)[:, 0].mean(0)
    near = torch.stack([score[max(0, t - 1) : t + 2].mean() for t in range(PROMPT - 1)])
    chosen = [*sorted(near.topk(5).indices.tolist()), *range(PROMPT - 1, LENGTH)]
    x = block(first, x, list(range(LENGTH)))[:, chosen]
    for layer in model.blocks[1:]:
        x = block(layer, x, chosen)
    close(torch.cat(found, 1), model.head(model.norm(x[:, 5:])))
    assert [part.filled for part in state] == [LENGTH, 16, 16]
    trimmed = model.init_state(1, cache=PromptDistill(budget=6, layer=0, kernel=3, trim=True))
    model(ids[:, :PROMPT], trimmed)
    assert all(sorted(part.position.flatten().tolist()) == chosen[:6] for part in trimmed)
