"""Policies that see a part of what they keep, and those whose budget differs by text or layer, as they are defined."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from cases.attention import DIM, attention, begun, heads, kept, output, turned, weights
from zoo.cache import (
    ActQKV,
    InfLLM,
    Kinetics,
    LookM,
    LServe,
    MPCache,
    PrefixKV,
    RecycledAttention,
    SentenceKV,
    TokenSelect,
    ZipVL,
    decoding_cost,
)
from zoo.layers import CausalAttention

PROMPT, LENGTH = 20, 32


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def text() -> Tensor:
    return torch.randn(1, LENGTH, DIM, dtype=torch.float64)


def turned_heads(layer: CausalAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys (H, T, d) at their positions, and values."""
    q, k, v = heads(layer, x)
    turned_q, turned_k = (torch.stack([turned(layer, one, range(x.shape[1])) for one in part]) for part in (q, k))
    return turned_q, turned_k, v


def seen_by(q: Tensor, k: Tensor, v: Tensor, t: int, seen: list[Any]) -> Tensor:
    """One token's heads (H, d), of which head h sees the tokens seen[h]."""
    found = [(k[h, list(s)] @ q[h, t] / 6**0.5).softmax(-1) @ v[h, list(s)] for h, s in enumerate(seen)]
    return torch.stack(found)


@torch.no_grad()
def test_kinetics_sees_the_blocks_of_the_largest_mean_logits():
    layer, x = attention(), text()
    state = begun(layer, Kinetics(sink=2, local=3, block=4, top_k=2))
    layer(x[:, :PROMPT], state)
    q, k, v = turned_heads(layer, x)
    for t in range(PROMPT, LENGTH):
        blocks = [range(2 + 4 * b, 6 + 4 * b) for b in range((t + 1 - 3 - 2) // 4)]
        seen = []
        for group in range(2):
            score = [sum(float((k[h, list(b)] @ q[h, t]).mean()) for h in (2 * group, 2 * group + 1)) for b in blocks]
            best = sorted(range(len(blocks)), key=lambda b: score[b])[-2:]
            tokens = sorted({0, 1, *(s for b in best for s in blocks[b]), *range(2 + 4 * len(blocks), t + 1)})
            seen += [tokens, tokens]
        close(layer(x[:, t : t + 1], state)[0, 0], output(layer, seen_by(q, k, v, t, seen)))


def test_the_cost_law_adds_up_the_steps():
    """By hand: 10 parameters, 2 query heads and 1 key-value head of 3 channels, two bytes a number, 10 operations a
    byte; 2 steps after 4 tokens attend to 4 + 5 keys and half of one each."""
    sizes: Any = {"heads": 2, "kv_heads": 1, "head_dim": 3, "intensity": 10.0}
    cost = decoding_cost(10, context=4, new=2, **sizes)
    assert cost == (2 * 10 * 2 + 4 * 10 * 6, 10 * 2 * (2 * 10 * 3)) == (280, 1200) and cost.total == 1480
    shared = decoding_cost(10, context=4, new=2, trials=3, **sizes)  # 4 keys of the prompt once a step, 6 of the trials
    assert shared == (3 * 280, 10 * 2 * (2 * (2 * 4 + 3 * 2) * 3)) == (840, 1680)
    policy = Kinetics(sink=1, local=1, block=2, top_k=2)  # 6 keys at most, where full attention has 4, 5, ... and 13
    sparse = decoding_cost(10, context=4, new=10, policy=policy, **sizes)
    seen, full = 2 * 5 + 8 * 6, 10 * (4 + 14) / 2  # from 4 to 6 within two steps, as integrals
    assert sparse.compute == 2 * 10 * 10 + 4 * seen * 6 + 2 * full / 2 * 6
    assert sparse.memory == 10 * 2 * (2 * seen * 3 + full / 2 * 3)
    ample = Kinetics(sink=1, local=1, block=2, top_k=50)
    all_seen = decoding_cost(10, context=4, new=2, policy=ample, **sizes)
    assert all_seen == (280 + 2 * 10 / 2 * 6, 1200 + 10 * 2 * 10 / 2 * 3)
    with pytest.raises(ValueError, match="new must be at least 1"):
        decoding_cost(10, context=4, new=0, **sizes)


@torch.no_grad()
def test_lserve_sees_the_pages_of_the_largest_bounds_and_bounds_hold():
    layer, x = attention(), text()
    policy = LServe(((0.9, 0.1),), sink=1, recent=4, budget=12, page=4, logical=2, reuse=2)
    state = begun(layer, policy)
    layer(x[:, :PROMPT], state)
    q, k, v = turned_heads(layer, x)
    chosen, at = [], 0
    for t in range(PROMPT, LENGTH):
        if t + 1 - at >= 2:
            at, bound = t + 1, []
            for page in range(t // 4):
                each = [k[0, 4 * page + 2 * i : 4 * page + 2 * i + 2] for i in (0, 1)]
                bounds = [
                    float(torch.maximum(q[h, t] * part.amax(0), q[h, t] * part.amin(0)).sum())
                    for h in (0, 1)
                    for part in each
                ]
                assert max(bounds) >= float((k[0, 4 * page : 4 * page + 4] @ q[:2, t].T).max()) - 1e-12
                bound.append(max(bounds))
            chosen = sorted(range(len(bound)), key=lambda page: bound[page])[-2:]
        paged = [s for page in chosen for s in range(4 * page, 4 * page + 4)]
        pages = sorted({*paged, *range((at - 1) // 4 * 4, t + 1)})
        stream = [0, *range(max(1, t - 3), t + 1)]
        close(layer(x[:, t : t + 1], state)[0, 0], output(layer, seen_by(q, k, v, t, [pages, pages, stream, stream])))


@torch.no_grad()
def test_recycled_attention_looks_at_everything_every_few_steps():
    layer, x = attention(), text()
    state = begun(layer, RecycledAttention(top_k=6, stride=4))
    layer(x[:, :PROMPT], state)
    q, k, v = turned_heads(layer, x)
    full, last = weights(layer, x), PROMPT - 1
    for t in range(PROMPT, LENGTH):
        seen: list[Any] = [range(t + 1)] * 4
        if t - last < 4:
            score = full[:, last].view(2, 2, -1).sum(1)
            new = list(range(last + 1, t + 1))
            seen = [[*score[h // 2, : last + 1].topk(6 - len(new)).indices.tolist(), *new] for h in range(4)]
        else:
            last = t
        close(layer(x[:, t : t + 1], state)[0, 0], output(layer, seen_by(q, k, v, t, seen)))


@torch.no_grad()
def test_recycled_attention_looks_again_where_the_query_has_turned():
    layer, x = attention(), text()
    for similarity, same in ((1.1, True), (-1.0, False)):
        state, dense = begun(layer, RecycledAttention(3, 100, check=1, similarity=similarity)), layer.init_state(1)
        found, expected = (
            torch.cat([layer(x[:, :PROMPT], one), *(layer(x[:, t : t + 1], one) for t in range(PROMPT, LENGTH))], 1)
            for one in (state, dense)
        )
        assert torch.allclose(found, expected) == same


@torch.no_grad()
def test_token_select_votes_on_unturned_keys_and_closes_the_gaps():
    layer, x = attention(), text()
    for reuse in (None, 0.3):
        state = begun(layer, TokenSelect(init=2, local=3, top_k=4, chunk=5, reuse=reuse))
        found = [layer(x[:, :PROMPT], state)] + [layer(x[:, t : t + 1], state) for t in range(PROMPT, LENGTH)]
        found, (q, k, v) = torch.cat(found, 1), heads(layer, x)
        asking: list[Any] = [range(a, a + 5) for a in range(0, PROMPT, 5)] + [[t] for t in range(PROMPT, LENGTH)]
        chosen, asked, reused = [], torch.zeros(24, dtype=torch.float64), 0
        for group in asking:
            mean = q[:, list(group)].mean(1)
            near = torch.cosine_similarity(mean.flatten(), asked, 0)
            if reuse is None or near <= reuse or len(chosen) < 4:
                others = list(range(2, max(2, group[0] - 3)))
                votes = torch.stack([(k[h, others] @ mean[h] / 6**0.5).softmax(-1) for h in range(4)]).sum(0)
                chosen, asked = [others[i] for i in votes.topk(min(4, len(others))).indices], mean.flatten()
            else:
                reused += 1
            for t in group:
                seen = sorted({0, 1, *chosen, *range(max(2, group[0] - 3), t + 1)} & set(range(t + 1)))
                mixed = []
                for h in range(4):
                    key, query = turned(layer, k[h, seen], range(len(seen))), q[h, t : t + 1]
                    logits = key @ turned(layer, query, [len(seen) - 1])[0] / 6**0.5
                    mixed.append(logits.softmax(-1) @ v[h, seen])
                close(found[0, t], output(layer, torch.stack(mixed)))
        assert (reused > 0) == (reuse is not None)


@torch.no_grad()
def test_zipvl_computes_and_keeps_the_important_tokens():
    layer, x = attention(), text()
    state = begun(layer, ZipVL(tau=0.7))
    found = layer(x[:, :PROMPT], state)[0]
    column = weights(layer, x[:, :PROMPT]).sum((0, 1))
    carried = column.sort(descending=True).values.cumsum(0) / column.sum()
    count = int((carried < 0.7).sum()) + 1
    mean = column / torch.arange(PROMPT, 0, -1)
    mean[-1] = torch.inf
    important = sorted(mean.topk(count).indices.tolist())
    assert kept(state) == [set(important)] and count < PROMPT
    q, k, v = turned_heads(layer, x)
    for t in range(PROMPT):
        seen = [s for s in important if s <= t]
        mixed = seen_by(q, k, v, t, [seen] * 4) if t in important else torch.zeros(4, 6, dtype=torch.float64)
        close(found[t], output(layer, mixed))
    after = seen_by(q, k, v, PROMPT, [[*important, PROMPT]] * 4)
    close(layer(x[:, PROMPT : PROMPT + 1], state)[0, 0], output(layer, after))


@torch.no_grad()
def test_prefixkv_gives_layers_the_same_share_of_importance():
    torch.manual_seed(0)
    model: Any = zoo.create_model("transformer_nano", depth=3, dtype=torch.float64).eval()
    for index, block in enumerate(model.blocks):
        block.mixer.q_proj.weight *= 6.0**index  # from flat to sharp attention
    ids = torch.randint(0, 256, (1, LENGTH))
    state = model.init_state(1, cache=PrefixKV(budget=9, first=2, lag=3))
    inputs: list[Tensor] = []
    for block in model.blocks:
        block.norm.register_forward_hook(lambda *call: inputs.append(call[2]))
    model(ids[:, :PROMPT], state)
    columns = [weights(b.mixer, y).mean(0).sum(0) for b, y in zip(model.blocks, inputs[:3], strict=True)]
    orders = []
    for column in columns:
        first = column.clone()
        first[[0, 1, PROMPT - 1]] = torch.inf
        orders.append(first.argsort(descending=True, stable=True).tolist())

    def counts(share: float) -> list[int]:
        found = []
        for column, order in zip(columns, orders, strict=True):
            carried = (column[order].cumsum(0) / column.sum()).tolist()
            found.append(max(3, next((n + 1 for n, one in enumerate(carried) if one >= share), PROMPT)))
        return found

    best = max((share / 4000 for share in range(4001)), key=lambda share: (sum(counts(share)) <= 27, share))
    assert [kept(part)[0] for part in state] == [set(o[:n]) for o, n in zip(orders, counts(best), strict=True)]
    sizes = [part.filled for part in state]
    assert len(set(sizes)) > 1 and 24 <= sum(sizes) <= 27
    for t in range(PROMPT, LENGTH):
        before = [sorted(kept(part)[0]) for part in state]
        model(ids[:, t : t + 1], state)
        assert [part.filled for part in state] == sizes
        for part, held in zip(state, before, strict=True):
            assert kept(part)[0] == {*held, t} - {([s for s in held if s > 1] + [t])[-4:][0]}
    shares = model.init_state(1, cache=PrefixKV(shares=(0.5, 0.25, 1.0)))
    model(ids[:, :PROMPT], shares)
    assert [part.filled for part in shares] == [10, 5, 20]


@torch.no_grad()
def test_mpcache_evicts_what_is_not_looked_at_and_finds_clusters_in_two_levels():
    layer, x = attention(), text()
    state = begun(layer, MPCache(threshold=0.05, cluster=2, first=0.5, second=0.4))
    layer(x[:, :PROMPT], state)
    q, k, v = turned_heads(layer, x)
    looks = (q[:, PROMPT - 4 : PROMPT] @ k[:, :PROMPT].mT / 6**0.5).softmax(-1).mean(0).amax(0)
    alive = [t for t in range(PROMPT) if looks[t] >= 0.05 or t == PROMPT - 1]
    assert kept(state) == [set(alive)] and 8 < len(alive) < PROMPT
    for t in range(PROMPT, LENGTH):
        alive.append(t)
        seen: list[Any] = []
        for group in range(2):
            query, keys = q[2 * group : 2 * group + 2, t].mean(0), k[2 * group, alive]

            def score(start: int, size: int, query: Tensor = query, keys: Tensor = keys) -> float:
                part = keys[start : start + size]
                return float(query @ (0.6 * part.amax(0) + 0.4 * part.amin(0)))

            count = len(alive) // 4
            large = {0, *sorted(range(count), key=lambda i, f=score: -f(4 * i, 4))[: count // 2]}
            small = [i for i in range(2 * count) if i // 2 in large]
            best = {0, *sorted(small, key=lambda i, f=score: -f(2 * i, 2))[: int(2 * count * 0.4)]}
            places = [p for i in sorted(best) for p in (2 * i, 2 * i + 1)] + list(range(4 * count, len(alive)))
            seen += [[alive[p] for p in places]] * 2
        close(layer(x[:, t : t + 1], state)[0, 0], output(layer, seen_by(q, k, v, t, seen)))


@torch.no_grad()
def test_look_m_keeps_text_and_merges_images_into_what_stays():
    torch.manual_seed(0)
    model: Any = zoo.create_model("transformer_nano", depth=1, dtype=torch.float64).eval()
    mixer = model.blocks[0].mixer
    group = mixer.num_heads // mixer.num_kv_heads
    ids = torch.randint(1, 256, (1, PROMPT))
    ids[0, 3:15] = 0  # an image
    y = model.blocks[0].norm(model.embedding(ids))
    _, k, v = turned_heads(mixer, y)
    mass = weights(mixer, y).sum(1)
    for merge in ("none", "average", "pivot"):
        state = model.init_state(1, cache=LookM(images=(0,), heavy=5, recent=4, merge=merge))
        model(ids, state)
        for head in range(mixer.num_kv_heads):
            given = mass[head * group : (head + 1) * group].sum(0)
            images = sorted(range(3, 15), key=lambda t, g=given: -float(g[t]))
            stays = sorted([0, 1, 2, 15, *images[:1], 16, 17, 18, 19])
            assert kept(state[0])[head] == set(stays)
            for name, vectors in (("key", k[head * group]), ("value", v[head * group])):
                found, unit = getattr(state[0], name)[0, head], torch.nn.functional.normalize(k[head * group], dim=-1)
                near = [stays[int((unit[stays] @ unit[t]).argmax())] for t in images[1:]]
                for place, t in enumerate(state[0].position[0, head].tolist()):
                    own = [vectors[e] for e, n in zip(images[1:], near, strict=True) if n == t and merge != "none"]
                    own = [(one + vectors[t]) / 2 for one in own] if merge == "pivot" else own
                    close(found[place], torch.stack([vectors[t], *own]).mean(0))
    state = model.init_state(1, cache=LookM(images=(256,), heavy=5, recent=4))
    model(ids, state)
    assert state[0].filled == PROMPT


@torch.no_grad()
def test_actqkv_asks_with_the_queries_that_stand_out():
    """The mean query at a high temperature; nothing but the odd one out at a low one."""
    q = torch.randn(1, 2, 6, 4, dtype=torch.float64)
    q[:, :, 3] += 9
    real = torch.ones(1, 6, dtype=torch.bool)
    policy = ActQKV(local=8, chunk=4, temperature=0.01)
    close(policy.probe(q, real), q[:, :, 3])
    close(ActQKV(temperature=1e12).probe(q, real), InfLLM().probe(q, real))
    distance = (q - q.mean(2, keepdim=True)).square().sum((1, 3)).sqrt()
    close(ActQKV().probe(q, real), (q * (distance / distance.mean()).softmax(1)[:, None, :, None]).sum(2))


@torch.no_grad()
def test_sentence_kv_sees_whole_sentences_that_the_present_one_asks_for():
    torch.manual_seed(0)
    model: Any = zoo.create_model("transformer_nano", depth=1, dtype=torch.float64).eval()
    mixer = model.blocks[0].mixer
    mixer.q_proj.weight *= 8
    groups, width = mixer.num_kv_heads, mixer.num_heads // mixer.num_kv_heads
    ids = torch.randint(1, 256, (1, LENGTH))
    ids[0, [4, 6, 9, 13, 16, 21, 25]] = 0
    state = model.init_state(1, cache=SentenceKV((0,), budget=11, factor=1.5, first=2, recent=3, window=4, kernel=3))
    found = [model(ids[:, :PROMPT], state)] + [model(ids[:, t : t + 1], state) for t in range(PROMPT, LENGTH)]
    y = model.blocks[0].norm(model.embedding(ids))
    q, k, v = turned_heads(mixer, y)
    looks = weights(mixer, y[:, :PROMPT])[:, -4:].mean((0, 1))
    score = torch.stack([looks[max(0, t - 1) : t + 2].amax() for t in range(PROMPT)])
    score[[0, 1, 16, 17, 18, 19]] = torch.inf
    alive, asked, partial = sorted(score.topk(16).indices.tolist()), [], 0
    for t in range(PROMPT, LENGTH):
        alive.append(t)
        seen: list[Any] = [list(alive)] * mixer.num_heads
        if asked:
            sentences: list[list[int]] = [[]]
            for s in alive:
                sentences[-1].append(s)
                if ids[0, s] == 0:
                    sentences.append([])
            sentences = [one for one in sentences if one]
            seen = []
            for group in range(groups):
                own = range(group * width, (group + 1) * width)
                query = torch.stack([q[h, [*asked, t]].mean(0) for h in own]).mean(0)
                ranked = sorted(sentences, key=lambda one, p=query, g=group: -float(k[g * width, one].mean(0) @ p))
                room, tokens = 11 - 2 - 3, {*alive[:2], *alive[-4:]}
                for one in ranked:
                    room -= len(one)
                    tokens |= set(one) if room >= 0 else set()
                seen += [sorted(tokens)] * width
            partial += len(seen[0]) < len(alive)
        asked = [] if ids[0, t] == 0 else [*asked, t]
        mixed = [(k[h, s] @ q[h, t] / mixer.head_dim**0.5).softmax(-1) @ v[h, s] for h, s in enumerate(seen)]
        x = model.embedding(ids[:, t]) + mixer.out_proj(torch.stack(mixed).flatten())
        x = x + model.blocks[0].mlp(model.blocks[0].mlp_norm(x))
        close(found[1 + t - PROMPT][:, 0], model.head(model.norm(x)))
    assert partial > 4
