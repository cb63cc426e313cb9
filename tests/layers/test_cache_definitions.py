"""Each cache policy against its published definition, written out slowly with full matrices."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from cases.attention import DIM, attention, begun, heads, kept, output, turned, weights
from zoo.cache import (
    H2O,
    DuoAttention,
    InfLLM,
    LazyEviction,
    PromptDistill,
    RazorAttention,
    SnapKV,
    StreamingLLM,
    ThinK,
    head_scores,
    learn_gates,
)
from zoo.layers import CausalAttention
from zoo.layers.cache import duo_attention

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
@pytest.mark.parametrize(("gates", "chunk"), [(((0.9, 0.2),), 256), (((0.1, 0.8),), 7), (((0.9, 0.2),), 1)])
def test_duo_attention_is_a_mask_a_head(gates, chunk, monkeypatch):
    """Retrieval heads see all, streaming heads the sinks and a window: in the prompt and after it."""
    monkeypatch.setattr(duo_attention, "CHUNK", chunk)
    read, calls = duo_attention.StreamingHeads.attend_prompt, []
    monkeypatch.setattr(
        duo_attention.StreamingHeads, "attend_prompt", lambda *given: (calls.append(given), read(*given))[1]
    )
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
    assert sorted(part.filled for part in state.parts) == [6, LENGTH] and len(calls) == 1


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


def test_gates_are_learnt_where_the_middle_is_of_use():
    """A head without values is of no use anywhere, so its gate falls; the model stays as it was."""
    torch.manual_seed(0)
    model: Any = zoo.create_model("transformer_nano", depth=1)
    with torch.no_grad():
        width = model.blocks[0].mixer.head_dim
        model.blocks[0].mixer.v_proj.weight *= 8
        model.blocks[0].mixer.v_proj.weight[:width] = 0
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (gates,) = learn_gates(
        model, steps=8, lr=0.1, weight=1e-3, sink=1, recent=4, length=40, passkeys=2, passkey_length=8,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert gates[0] < 0.5 < min(gates[1:]) <= 1 and model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert DuoAttention((gates,), sparsity=1 / len(gates)).roles(0, 1, len(gates)) == [False] + [True] * (
        len(gates) - 1
    )
    with pytest.raises(ValueError, match="9 passkeys of 8 tokens do not fit into a text of 40"):
        learn_gates(model, length=40, passkeys=9, passkey_length=8)


@torch.no_grad()
@pytest.mark.parametrize("weighted", [True, False])
def test_razor_attention_drops_into_one_token_that_counts_for_all(weighted):
    layer, x = attention(), torch.randn(1, LENGTH, DIM, dtype=torch.float64)
    state = begun(
        layer, RazorAttention((((0.9, 0), (0.1, 0)),), echo=0.5, induction=0, sink=2, recent=5, weighted=weighted)
    )
    layer(x[:, :12], state)  # in two chunks: what was dropped is dropped again
    layer(x[:, 12:PROMPT], state)
    (q, k), v = turned_heads(layer, x), heads(layer, x)[2]
    for t in range(PROMPT, LENGTH):
        mixed = []
        for h in range(4):
            near, gone = [0, 1, *range(PROMPT - 5, t + 1)], list(range(2, PROMPT - 5))
            keys, values = k[h, : t + 1], v[h, : t + 1]
            bias = torch.zeros(t + 1, dtype=torch.float64)
            if h >= 2:  # of the second key-value head
                keys = torch.cat([k[h, near], k[h, gone].mean(0, keepdim=True)])
                values = torch.cat([v[h, near], v[h, gone].mean(0, keepdim=True)])
                bias = torch.zeros(len(keys), dtype=torch.float64)
                bias[-1] = math.log(len(gone)) if weighted else 0
            mixed.append((keys @ q[h, t] / 6**0.5 + bias).softmax(-1) @ values)
        torch.testing.assert_close(
            layer(x[:, t : t + 1], state)[0, 0], output(layer, torch.stack(mixed)), atol=1e-6, rtol=0
        )
    assert [part.filled for part in state.parts] == [LENGTH, 2 + 1 + 5 + LENGTH - PROMPT]


@torch.no_grad()
def test_echo_and_induction_scores_are_the_attention_to_copies_and_to_what_follows_them():
    torch.manual_seed(0)
    model: Any = zoo.create_model("transformer_nano", depth=1, dtype=torch.float64).eval()
    (found,) = head_scores(model, copy=5, copies=3, generator=torch.Generator().manual_seed(1))
    text = torch.randint(256, (1, 5), generator=torch.Generator().manual_seed(1)).repeat(1, 3)
    block = model.blocks[0]
    given = weights(block.mixer, block.norm(model.embedding(text)))
    group = block.mixer.num_heads // block.mixer.num_kv_heads
    for head, pair in enumerate(found):
        for ahead, score in enumerate(pair):
            each = [
                sum(sum(float(given[h, t, t - back + ahead]) for back in (5, 10) if t >= back) for t in range(5, 15))
                / 10
                for h in range(group * head, group * (head + 1))
            ]
            assert abs(score - max(each)) < 1e-6


@torch.no_grad()
def test_lazy_eviction_scores_how_overdue_a_token_is():
    layer, x = attention(), torch.randn(1, LENGTH, DIM, dtype=torch.float64)
    budget, window, threshold = 9, 4, 0.05
    state = begun(layer, LazyEviction(budget, window, threshold))
    q, k = turned_heads(layer, x)
    alive = [list(range(PROMPT)), list(range(PROMPT))]
    last = [{t: t for t in range(LENGTH)} for _ in range(2)]
    longest = [dict.fromkeys(range(LENGTH), 0) for _ in range(2)]
    for t in range(LENGTH):
        for group in range(2):
            if t >= PROMPT:
                alive[group].append(t)
            seen = [s for s in alive[group] if s <= t]
            given = [(k[h, seen] @ q[h, t] / 6**0.5).softmax(-1) for h in (2 * group, 2 * group + 1)]
            for s, weight in zip(seen, torch.stack(given).amax(0).tolist(), strict=True):
                if weight > threshold:
                    longest[group][s] = max(longest[group][s], t - last[group][s])
                    last[group][s] = t
            if t >= PROMPT and len(alive[group]) >= budget + window:

                def score(s: int, t: int = t, group: int = group) -> float:
                    mri = longest[group][s]
                    sigmoid = [1 / (1 + math.exp(y / mri)) for y in (t - last[group][s], 1)] if mri else []
                    return 2 * sum(sigmoid) + 1e-6 * s / (t + 1)

                older = [s for s in alive[group] if s <= t - window]
                stays = sorted(older, key=score)[window - budget :] if budget > window else []
                alive[group] = [s for s in alive[group] if s in stays or s > t - window]
        if t >= PROMPT - 1:
            layer(x[:, :PROMPT] if t == PROMPT - 1 else x[:, t : t + 1], state)
            assert kept(state) == [set(one) for one in alive]
