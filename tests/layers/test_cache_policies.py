"""What every cache policy must satisfy, over all of them, on one layer and on models."""

from __future__ import annotations

import copy
import dataclasses
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from cases.caches import POLICIES, Case
from zoo.cache import Dense, Disk, Host, Policy, Quantized, policies
from zoo.layers import CausalAttention
from zoo.layers.attention.keys import EMPTY
from zoo.layers.cache.build import governed
from zoo.layers.cache.state import CacheState
from zoo.layers.states import parts
from zoo.vision_language import EfficientVLA

DIM, PROMPT, STEPS = 24, 26, 10


@pytest.fixture(params=POLICIES, ids=str)
def case(request) -> Case:
    return request.param


@pytest.fixture
def layer() -> CausalAttention:
    """Four query heads, two key-value heads."""
    torch.manual_seed(0)
    return CausalAttention(DIM, 4, 2).double()


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, DIM, dtype=torch.float64)


def begun(layer: CausalAttention, policy: Policy, rows: int = 2) -> Any:
    (state,) = governed([layer.init_state(rows)], [policy])
    return state


def steps(layer: CausalAttention, x: Tensor, state: Any) -> Tensor:
    """One token after the other."""
    return torch.cat([layer(x[:, t : t + 1], state) for t in range(x.shape[1])], dim=1)


def run(layer: CausalAttention, x: Tensor, state: Any, prompt: int = PROMPT) -> Tensor:
    """A prompt, then a token at a time."""
    return torch.cat([layer(x[:, :prompt], state), steps(layer, x[:, prompt:], state)], dim=1)


def held(state: Any) -> list[CacheState]:
    return [part for part in parts(state) if isinstance(part, CacheState)]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def values(state: Any) -> list[Tensor]:
    """All tensors, of the slots what is in use."""
    found = []
    for part in held(state):
        found += [part.held(name) for name in part.data] + list(part.notes.values())
        found += [tensor for _, tensor in super(CacheState, part).tensors() if tensor is part.padding]
    return [tensor.clone() for tensor in found]


def test_every_policy_is_among_the_cases():
    assert {type(case.small) for case in POLICIES} == {*policies().values(), EfficientVLA}


@torch.no_grad()
def test_with_room_for_everything_it_is_full_attention(case, layer):
    x = tokens(2, PROMPT + STEPS)
    found, expected = (run(layer, x, begun(layer, policy)) for policy in (case.ample, Dense()))
    if case.limit is None:
        assert torch.equal(found, expected) and torch.equal(found, run(layer, x, layer.init_state(2)))
    else:
        torch.testing.assert_close(found, expected, atol=case.limit, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_sinks_and_bounds_are_those_of_the_layer(case, softcap):
    torch.manual_seed(0)
    layer = CausalAttention(DIM, 4, 2, sinks=True, softcap=softcap).double()
    assert layer.sinks is not None
    layer.sinks.copy_(torch.tensor([0.5, -1.0, 2.0, 1.5]))
    x = tokens(2, PROMPT + STEPS)
    found = run(layer, x, begun(layer, case.ample))
    torch.testing.assert_close(found, run(layer, x, layer.init_state(2)), atol=case.limit or 1e-12, rtol=0)
    plain = CausalAttention(DIM, 4, 2, softcap=softcap).double()
    layer.sinks.fill_(-1e9)
    plain.load_state_dict(layer.state_dict(), strict=False)
    close(run(layer, x, begun(layer, case.small)), run(plain, x, begun(plain, case.small)))


@torch.no_grad()
def test_no_more_slots_than_promised_each_with_another_position_of_the_past(case, layer):
    state, x = begun(layer, case.small), tokens(2, PROMPT + STEPS)
    for step in range(-1, STEPS):
        layer(x[:, :PROMPT] if step < 0 else x[:, PROMPT + step : PROMPT + step + 1], state)
        seen = PROMPT + step + 1
        most = case.small.most_slots(seen, step + 1)
        assert state.seen == seen and (most is None or state.filled <= most)
        for positions in chain(*(part.position.flatten(0, 1).tolist() for part in held(state))):
            real = [position for position in positions if position != EMPTY]
            assert len(real) == len(set(real)) and all(0 <= position < seen for position in real)
    assert state.filled <= seen
    assert state.nbytes == sum(
        {
            tensor.data_ptr(): tensor.untyped_storage().nbytes() for _, tensor in state.tensors() if tensor.numel()
        }.values()
    )


@torch.no_grad()
def test_rows_are_independent_and_padding_changes_nothing(case, layer):
    x, padding = tokens(2, PROMPT + STEPS), 7
    together = run(layer, x, begun(layer, case.small))
    for row in range(2):
        close(together[row : row + 1], run(layer, x[row : row + 1], begun(layer, case.small, rows=1)))
    ids = torch.zeros(2, PROMPT + padding, dtype=torch.long)
    ids[0, :padding], ids[1, PROMPT:] = -1, 0
    state = begun(layer, case.small)
    long = torch.cat([tokens(1, padding), x[:1, :PROMPT]], 1), torch.cat([x[1:, :PROMPT], x[1:, -padding:]], 1)
    first = layer(torch.cat(long), state, seq_idx=ids)
    further = steps(layer, x[:, PROMPT:], state)
    close(torch.cat([first[:1, padding:], further[:1]], 1), together[:1])
    close(further[1:], run(layer, torch.cat([long[1], x[1:, PROMPT:]], 1), begun(layer, case.small, 1), 33)[:, 33:])


@torch.no_grad()
@pytest.mark.parametrize("accepted", [0, 2, 5])
def test_a_draft_that_is_rolled_back_was_never_there(case, layer, accepted):
    """Nothing is evicted while it is open; what is accepted is as if it had come alone."""
    x, draft, after = tokens(2, PROMPT), tokens(2, 5), tokens(2, 3)
    state, other = begun(layer, case.small), begun(layer, case.small)
    for one in (state, other):
        run(layer, x, one, PROMPT - 3)
        one.commit()
    before = values(state)
    filled = [part.filled for part in held(state)]
    layer(draft, state)
    assert [part.filled - 5 for part in held(state)] == filled
    if accepted:
        layer(draft[:, :accepted], other)
        state.commit(accepted)
        other.commit()
    else:
        state.rollback()
        assert all(torch.equal(a, b) for a, b in zip(values(state), before, strict=True))
    for a, b in zip(values(state), values(other), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    close(layer(after, state), layer(after, other))


@torch.no_grad()
def test_copies_go_their_own_way_and_rows_are_reordered(case, layer):
    x, after = tokens(3, PROMPT), tokens(3, STEPS)
    state, index = begun(layer, case.small, 3), torch.tensor([2, 0, 0])
    run(layer, x, state, PROMPT - 2)
    copies = [copy.deepcopy(state), state.clone(), state.to(dtype=torch.float64)]
    alone = begun(layer, case.small, 3)
    run(layer, x[index], alone, PROMPT - 2)
    state.reorder(index)
    expected = steps(layer, after, alone)
    close(steps(layer, after, state), expected)
    plain = [steps(layer, after, one) for one in copies]
    assert torch.equal(plain[0], plain[1]) and torch.equal(plain[0], plain[2])
    state.reset()
    assert (state.seen, state.filled) == (0, 0)
    close(run(layer, x, state, PROMPT - 2), run(layer, x, begun(layer, case.small, 3), PROMPT - 2))


@torch.no_grad()
def test_a_call_without_tokens_changes_nothing(case, layer):
    """As of a layer that all tokens of a step pass by."""
    state, x = begun(layer, case.small), tokens(2, PROMPT)
    layer(x, state)
    before = values(state)
    assert layer(x[:, :0], state).shape == (2, 0, DIM)
    assert all(torch.equal(a, b) for a, b in zip(values(state), before, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("store", [Host(), Disk(), Quantized(8, group=3), Quantized(4, group=3)], ids=str)
def test_keys_and_values_may_be_kept_elsewhere_and_in_few_bits(case, layer, store):
    """Elsewhere the outputs are the same bits; codes are of what is seen to half a step, and roll back bit for bit."""
    x, draft = tokens(2, PROMPT + STEPS), tokens(2, 3)
    small = dataclasses.replace(case.small, store=store)
    state, plain = begun(layer, small), begun(layer, case.small)
    found, expected = run(layer, x, state), run(layer, x, plain)
    assert state.filled == plain.filled if isinstance(store, Host | Disk) else found.isfinite().all()
    if isinstance(store, Host | Disk):
        assert torch.equal(found, expected)
    else:
        dense = (run(layer, x, begun(layer, dataclasses.replace(one, store=store))) for one in (case.ample, Dense()))
        torch.testing.assert_close(*dense, atol=case.limit or 0, rtol=0)
        assert all(part.data["key.codes"].dtype == torch.uint8 for part in held(state))
    state.commit()
    before = values(state)
    layer(draft, state)
    state.rollback()
    assert all(torch.equal(a, b) for a, b in zip(values(state), before, strict=True))
    index = torch.tensor([1, 0])
    other = copy.deepcopy(state)
    other.reorder(index)
    close(layer(draft[index], other)[index], layer(draft, state))


@pytest.mark.parametrize("name", ["transformer_nano", "falcon_h1_nano", "deepseek_nano", "mor_nano", "mod_nano"])
@torch.no_grad()
def test_models_decode_under_it_or_say_why_not(case, name):
    torch.manual_seed(0)
    model: Any = zoo.create_model(name, depth={"mor_nano": 3, "mod_nano": 2}.get(name, 1)).eval()
    prompt = torch.randint(0, model.config.vocab_size, (2, PROMPT))
    if name == "deepseek_nano" and case.small.channels:
        with pytest.raises(ValueError, match=r"latent attention keeps one vector for all"):
            model.init_state(1, cache=case.small)
        return
    if name == "mor_nano" and case.small.prunes:
        with pytest.raises(ValueError, match=r"ends tokens between blocks.*MoRLanguageModel are not"):
            model.init_state(1, cache=case.small)
        return
    expected = zoo.generate(model, prompt, 3, temperature=0)
    if case.limit is None:
        assert torch.equal(zoo.generate(model, prompt, 3, temperature=0, cache=case.ample), expected)
    found = zoo.generate(model, prompt, 3, temperature=0, cache=case.small, prefill_chunk=9)
    assert found.shape == expected.shape
