"""Budgets, stores, chunks and errors of cache policies; what a user asks of a model with one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from cases.attention import DIM, attention, begun
from zoo.cache import (
    H2O,
    Bytes,
    Dense,
    Disk,
    DuoAttention,
    Host,
    InfLLM,
    LazyEviction,
    LookM,
    LoopServe,
    LServe,
    PrefixKV,
    Quantized,
    RazorAttention,
    RecycledAttention,
    SentenceKV,
    SnapKV,
    SpecKV,
    StreamingLLM,
    ThinK,
    TokenSelect,
)
from zoo.cli import main
from zoo.layers.cache.budget import parsed
from zoo.layers.cache.store import _thread, touched
from zoo.layers.states import parts


def nano(name: str = "transformer_nano", **options: Any) -> Any:
    torch.manual_seed(0)
    return zoo.create_model(name, **options).eval()


@torch.no_grad()
def test_budgets_are_tokens_a_share_or_memory():
    layer, x = attention(), torch.randn(1, 100, DIM, dtype=torch.float64)
    slot = 2 * (2 * 6 * 8) + 8 * 2  # of a key and a value in two heads, and a position a head
    for budget, slots in ((20, 20), (0.25, 25), (Bytes(30 * slot + 5), 30)):
        state = begun(layer, SnapKV(budget=budget, window=4))
        layer(x, state)
        assert state.filled == slots and state.slot_bytes == slot, budget
    padded = begun(layer, SnapKV(budget=0.25, window=4), rows=2)
    ids = torch.zeros(2, 100, dtype=torch.long)
    ids[0, :60] = -1
    layer(x.expand(2, -1, -1), padded, seq_idx=ids)
    assert padded.real.sum(-1).tolist() == [[10, 10], [25, 25]]
    assert [parsed(text) for text in ("7", "0.5", "2KiB", "1.5MB")] == [7, 0.5, Bytes(2048), Bytes(1500000)]


@torch.no_grad()
@pytest.mark.parametrize(
    "make",
    [
        lambda n: H2O(heavy=n, recent=n), lambda n: SnapKV(budget=n, window=4), lambda n: SpecKV(budget=n, window=4),
        lambda n: StreamingLLM(sink=2, recent=n), lambda n: DuoAttention(sink=2, recent=n, sparsity=0.5),
        lambda n: RazorAttention(sink=2, recent=n), lambda n: LazyEviction(budget=n, window=4),
        lambda n: PrefixKV(budget=n, first=2), lambda n: LookM(images=(0,), heavy=n, recent=n),
        lambda n: SentenceKV(budget=n, first=2, recent=3, window=4), lambda n: RecycledAttention(top_k=n),
        lambda n: LoopServe(budget=n, window=4, every=4), lambda n: LServe(sink=2, recent=n),
        lambda n: LServe(sink=2, recent=90, budget=n, page=4, logical=2),
        lambda n: TokenSelect(init=2, local=3, top_k=n, chunk=7),
    ],
    ids=lambda make: type(make(20)).__name__,
)  # fmt: skip
def test_every_budget_is_tokens_a_share_or_memory(make):
    """Three ways to say 20 slots after 101 tokens hold the same tokens and give the same output; rows of their own
    length have shares of their own."""
    layer, x = attention(), torch.randn(2, 101, DIM, dtype=torch.float64)

    def held(policy: Any, rows: int, **options: Any) -> tuple[Any, Tensor]:
        state = begun(layer, policy, rows)
        layer(x[:rows, :100], state, **options)
        return state, layer(x[:rows, 100:], state)

    plain, expected = held(make(20), 1)
    part = next(one for one in reversed(list(parts(plain))) if one.filled == min(p.filled for p in parts(plain)))
    found = [held(make(budget), 1) for budget in (Bytes(20 * part.slot_bytes + 5), 20 / 101 - 1e-9)]
    for state, y in found:
        for one, other in zip(parts(state), parts(plain), strict=True):
            assert one.filled == other.filled
            assert torch.equal(one.position.sort(-1).values, other.position.sort(-1).values)
        torch.testing.assert_close(y, expected)
    ids = torch.zeros(2, 100, dtype=torch.long)
    ids[1, :60] = -1
    state, together = held(make(0.2), 2, seq_idx=ids)
    alone = begun(layer, make(0.2), 1)
    layer(x[1:, 60:100], alone)
    torch.testing.assert_close(together[1:], layer(x[1:, 100:], alone))


@torch.no_grad()
def test_memory_stays_with_the_budget_and_a_prompt_in_chunks_never_takes_more():
    layer, peak = attention(), []
    state = begun(layer, StreamingLLM(sink=4, recent=252))
    for chunk in torch.randn(1, 4000, DIM, dtype=torch.float64).split(128, dim=1):
        layer(chunk, state)
        peak.append(state.data["key"].shape[2])
    for x in torch.randn(1, 40, DIM, dtype=torch.float64).split(1, dim=1):
        layer(x, state)
    assert state.filled == 256 and max(peak) <= 1.2 * 256
    assert state.nbytes <= 1.2 * 256 * state.slot_bytes


@torch.no_grad()
@pytest.mark.parametrize("store", [Host(), Disk(), Quantized(8, group=3), Quantized(4, group=6)], ids=str)
def test_stores_keep_what_they_were_given(store):
    layer, x = attention(), torch.randn(1, 40, DIM, dtype=torch.float64)
    expected, state = layer.init_state(1), begun(layer, Dense(store=store))
    for part in x.split([20, 1, 9, 10], dim=1):
        found, exact = layer(part, state), layer(part, expected)
        if isinstance(store, Host | Disk):
            assert torch.equal(found, exact)
    if isinstance(store, Quantized):
        groups = state.key.unflatten(-1, (-1, store.group))
        true = expected.key[:, :, :40].unflatten(-1, (-1, store.group))
        step = (true.amax(-1) - true.amin(-1)) / (2**store.bits - 1)
        assert ((groups - true).abs().amax(-1) <= step / 2 + 1e-12).all()
        assert state.data["key.codes"].shape[-1] == 6 * store.bits // 8
        assert state.data["key.codes"].dtype == torch.uint8
    evicting = begun(layer, StreamingLLM(2, 6, store=store))
    layer(x, evicting)
    assert evicting.filled == 8 and layer(x[:, :1], evicting).isfinite().all()


@torch.no_grad()
def test_files_of_the_next_layer_are_fetched_while_one_attends(monkeypatch):
    """Logits are those of memory, bytes are counted where they are, and every layer but the first is announced."""
    model, tokens, fetched = nano(depth=3), torch.randint(0, 256, (2, 30)), []
    monkeypatch.setattr("zoo.layers.cache.store.touched", lambda buffer: fetched.append(buffer.data_ptr()))
    plain, state = model.init_state(2), model.init_state(2, cache=Dense(store=Disk()))
    for part in tokens.split([20, 9, 1], dim=1):
        fetched.clear()
        before = [one.data[name].data_ptr() for one in state[1:] for name in ("key", "value") if one.filled]
        assert torch.equal(model(part, state), model(part, plain))
        _thread().submit(int).result()  # all before it are done
        assert fetched == before
    found = state[0].bytes_by_place
    assert found["disk"] == 2 * state[0].data["key"].nbytes and sum(found.values()) == state[0].nbytes
    assert model.init_state(1, cache="h2o")[0].bytes_by_place.keys() == {"device"}
    assert torch.equal(touched(torch.arange(3000).float()), torch.tensor([0.0, 1024.0, 2048.0]))
    assert copy.deepcopy(state).nbytes == state.nbytes


@torch.no_grad()
def test_layers_have_policies_of_their_own():
    model = nano(depth=3)
    tokens = torch.randint(0, 256, (2, 30))
    state = model.init_state(2, 40, cache={1: StreamingLLM(2, 6), -1: "h2o"})
    model(tokens, state)
    assert [part.filled for part in state] == [30, 8, 6]
    assert state[0].room == 10 and type(state[0]).__name__ == "KeyValueState"


@torch.no_grad()
def test_beams_samples_and_lists_decode_under_a_policy():
    model, prompts = nano(depth=1), [[5, 6, 7], list(range(20, 60)), [8]]
    policy = H2O(heavy=6, recent=6)
    together = zoo.generate(model, prompts, 6, temperature=0, cache=policy, num_beams=2)
    for prompt, found in zip(prompts, together, strict=True):
        assert torch.equal(found, zoo.generate(model, [prompt], 6, temperature=0, cache=policy, num_beams=2)[0])
    whole = zoo.generate(model, torch.tensor([prompts[1]]), 6, temperature=0, cache="streaming_llm", prefill_chunk=7)
    assert torch.equal(whole, zoo.generate(model, torch.tensor([prompts[1]]), 6, temperature=0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SnapKV(budget=32, window=32), "budget must exceed the window.*got budget 32, window 32"),
        (lambda: H2O(heavy=0), "heavy must be at least 1 token, got 0"),
        (lambda: H2O(recent=1.5), "as a share must be in .0, 1., got 1.5"),
        (lambda: StreamingLLM(sink=-1), "sink must be at least 0, got -1"),
        (lambda: DuoAttention(sparsity=2), "sparsity.*got 2"),
        (lambda: InfLLM(local=4, chunk=8), "chunk be at most the window"),
        (lambda: ThinK(tokens=H2O()), "end of a prompt alone, got H2O"),
        (lambda: Quantized(3), "bits must be 4 or 8, got 3"),
        (lambda: Quantized(4).encode(torch.ones(1, 1, 1, 3)), "two channels share a byte.*got 3 channels"),
        (lambda: nano("mamba_nano").init_state(1, cache=H2O()), "there is none: the states are MambaState"),
        (lambda: nano().init_state(1, cache="snapkw"), "no cache policy 'snapkw', did you mean 'snapkv'"),
        (lambda: nano().init_state(1, cache={9: H2O()}), "got a policy for 9"),
        (lambda: nano().init_state(1, cache=DuoAttention(((1.0,),))), "gates must have a row a layer"),
        (lambda: nano("mor_nano", share_kv=True).init_state(1, cache=H2O()), "share_kv=True goes without"),
        (lambda: zoo.generate(nano(), torch.ones(1, 2).long(), 2, cache=H2O(), compile=True), "not compiled"),
        (lambda: zoo.stream(nano(), [[1]], 2, cache=H2O(), state=nano().init_state(1)), "a state keeps the cache"),
    ],
)
def test_wrong_input_says_so(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_no_policy_says_so():
    with pytest.raises(TypeError, match=r"cache must be a policy of zoo.cache.*got 3"):
        nano().init_state(1, cache=3)
    layer = attention()
    state = begun(layer, H2O(heavy=2, recent=2))
    x = torch.randn(1, 6, DIM, dtype=torch.float64)
    layer(x, state)
    with pytest.raises(ValueError, match=r"H2O has been shown 6 steps.*cannot go back to 4: commit before"):
        state.crop(4)
    with pytest.raises(ValueError, match="each row holds one sequence, got other ids in seq_idx than"):
        layer(x, begun(layer, H2O()), seq_idx=torch.tensor([[0, 0, 1, 1, 1, 1]]))


def test_policies_on_the_command_line(capsys):
    assert main(["list", "--caches"]) == 0
    listed = capsys.readouterr().out
    assert all(
        name in listed for name in ("streaming_llm", "2404.14469", "retrieval heads keep everything".capitalize())
    )
    generate = ["generate", "transformer_nano", "--prompt", "The import", "--max-new-tokens", "3", "--cache"]
    assert main([*generate, "h2o", "--cache.recent", "4", "--cache.heavy=0.5", "--cache.store", "int4"]) == 0
    assert capsys.readouterr().out.startswith("The import")
    for wrong, message in (
        (["h3o"], "no cache policy 'h3o', did you mean 'h2o'"),
        (["h2o", "--cache.recnt", "4"], "has no option 'recnt', did you mean 'recent'"),
        (["h2o", "--cache.recent", "many"], "must be a number, a memory such as 64MiB"),
        (["h2o", "--recent", "4"], "unrecognized arguments"),
    ):
        assert main([*generate, *wrong]) == 2 and message in capsys.readouterr().err


@torch.no_grad()
def test_learned_sinks_stay_in_the_softmax():
    model = nano("gpt_oss_nano", depth=2)
    tokens = torch.randint(0, 256, (1, 24))
    expected = model(tokens, model.init_state(1))
    for policy in (H2O(100, 100), DuoAttention(sink=64), SnapKV()):
        assert torch.equal(model(tokens, model.init_state(1, cache=policy)), expected)
    assert zoo.generate(model, tokens, 3, cache=DuoAttention(sink=2, recent=4)).shape == (1, 27)
