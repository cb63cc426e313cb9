"""What a user may do with a mixer's state: pad, commit and roll back, copy, cut the gradient, evict."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cases.mixers import DIM, MIXERS, build
from zoo.layers import CausalAttention, JointState, Mamba, Mixer, ModelState
from zoo.layers.attention import SlidingWindowAttention
from zoo.layers.attention.keys import EMPTY
from zoo.layers.state import State

PAST, LAYOUTS = 5, {  # ids of a call: padding first, last, between, other amounts in each row, rows of padding alone
    "left": [[-1, -1, -1, 0, 0, 0, 0]] * 3,
    "rows": [[-1, -1, -1, 0, 0, 0, 0], [0] * 7, [-1] * 7],
    "between": [[0, -1, 0, 0, -1, 0, -1], [-2, 0, -1, 0, -1, 0, 0], [0, 0, -1, -1, -1, -1, -1]],
    "packed": [[-1, 0, 0, 4, 4, -1, 2], [0, 0, -1, 3, -1, 3, 3], [-1, -1, -1, -1, -1, -1, 0]],
    "step": [[0], [-1], [0]],
}  # fmt: skip


@pytest.fixture(params=MIXERS, ids=str)
def mixer(request) -> Mixer:
    return build(request.param)


def tokens(length: int) -> Tensor:
    return torch.randn(3, length, DIM, dtype=torch.float64)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_is_skipped_wherever_it_stands(mixer, layout):
    """Each row alone, without its padding, gives the same outputs, and so do further tokens."""
    ids = torch.tensor(LAYOUTS[layout])
    before, x, after = tokens(PAST), tokens(ids.shape[1]), tokens(3)
    state = mixer.init_state(3)
    mixer(before, state)
    found = mixer(x.masked_fill(ids[..., None] < 0, 1e3), state, seq_idx=ids)
    further = torch.cat([mixer(after[:, :2], state), mixer(after[:, 2:], state)], dim=1)
    for row in range(3):
        real, alone = ids[row] >= 0, mixer.init_state(1)
        mixer(before[row : row + 1], alone)
        if real.any():
            close(found[row, real], mixer(x[row : row + 1, real], alone, seq_idx=ids[row : row + 1, real])[0])
        close(further[row], mixer(after[row : row + 1], alone)[0])


@torch.no_grad()
def test_a_row_that_began_with_padding_alone_is_fresh(mixer):
    ids, x, after = torch.tensor([[-1, 0, 0], [-1, -1, -1], [0, 0, 0]]), tokens(3), tokens(4)
    state = mixer.init_state(3)
    mixer(x, state, seq_idx=ids)
    close(mixer(after, state)[1:2], mixer(after[1:2]))


@torch.no_grad()
def test_rollback_returns_to_the_commit(mixer):
    x, y = tokens(6), tokens(9)
    state = mixer.init_state(3)
    mixer(x, state)
    expected = [mixer(y, state.clone()), mixer(y[:, :4], state.clone())]
    state.commit()
    for _ in range(2):
        close(mixer(y, state), expected[0])
        state.rollback()
    if type(state).crop is State.crop:
        mixer(y, state)
        with pytest.raises(ValueError, match="recurrent"):
            state.rollback(5)
        state.rollback(9)
        mixer(y[:, :4], state)
        state.commit(4)
    else:
        mixer(y, state)
        state.commit(4)
    expected = mixer(torch.cat([x, y[:, :4], y], dim=1))[:, 10:]
    close(mixer(y, state), expected)
    with pytest.raises(ValueError, match="10 steps cannot be forgotten: 9 of 19"):
        state.rollback(10)


@torch.no_grad()
def test_rollback_without_a_commit_is_the_beginning_and_copies_go_their_own_way(mixer):
    x, y = tokens(6), tokens(3)
    state = mixer.init_state(3, max_length=9)
    mixer(x, state)
    other = state.clone()
    mixer(tokens(3), other)
    close(mixer(y, state), mixer(torch.cat([x, y], dim=1))[:, 6:])
    state.rollback()
    close(mixer(y, state), mixer(y))


@pytest.mark.parametrize("max_length", [None, 12])
def test_gradients_flow_through_the_state_until_it_is_detached(mixer, max_length):
    """By chunks as in one pass, also where memory was reserved; truncated backpropagation sees the last chunk alone."""
    x = tokens(12).requires_grad_()
    weight = torch.randn(3, 12, DIM, dtype=torch.float64)
    (expected,) = torch.autograd.grad((mixer(x) * weight).sum(), x)
    state = mixer.init_state(3, max_length)
    parts = [mixer(part, state) for part in x.split([5, 1, 6], dim=1)]
    (found,) = torch.autograd.grad((torch.cat(parts, dim=1) * weight).sum(), x)
    close(found, expected)
    state = mixer.init_state(3, max_length)
    first = mixer(x[:, :6], state)
    state = state.detach()
    last = mixer(x[:, 6:], state)
    (cut,) = torch.autograd.grad((last * weight[:, 6:]).sum(), x, retain_graph=True)
    assert not cut[:, :6].any() and cut[:, 6:].any()
    (before,) = torch.autograd.grad((first * weight[:, :6]).sum(), x)
    assert before[:, :6].any()


def test_to_moves_numbers_and_keeps_sums_wide():
    for mixer, wide in ((Mamba(DIM), {"ssm"}), (CausalAttention(DIM, 4), set())):
        state = mixer.init_state(2)
        mixer(torch.randn(2, 3, DIM), state, seq_idx=torch.zeros(2, 3, dtype=torch.long))
        low = state.to(dtype=torch.bfloat16)
        floating = {name: t.dtype for name, t in low.tensors() if t.is_floating_point()}
        assert {name for name, dtype in floating.items() if dtype == torch.float32} == wide
        assert {name: t.dtype for name, t in state.tensors() if t.is_floating_point()} == dict.fromkeys(
            floating, torch.float32
        )
        assert next(t.device.type for _, t in state.to("meta").tensors()) == "meta"
        assert mixer.bfloat16()(torch.randn(2, 1, DIM).bfloat16(), low).dtype == torch.bfloat16


def test_several_states_roll_back_together_or_not_at_all():
    attention, mamba = CausalAttention(DIM, 4), Mamba(DIM)
    x = torch.randn(2, 5, DIM)
    for kind in (lambda states: ModelState(states), lambda states: JointState(tuple(states))):
        states = kind([attention.init_state(2), mamba.init_state(2)])
        copied = states.clone()
        for mixer, state in zip((attention, mamba), states.states, strict=True):
            mixer(x, state)
        assert [state.seen for state in copied.states] == [0, 0]
        with pytest.raises(ValueError, match="MambaState is recurrent"):
            states.rollback(2)
        assert [state.seen for state in states.states] == [5, 5]
        states.commit()
        for mixer, state in zip((attention, mamba), states.detach().to(dtype=torch.float64).states, strict=True):
            mixer.double()(x.double(), state)
            state.rollback()
            assert state.seen == 5
            mixer.float()


@torch.no_grad()
def test_the_next_token_after_an_eviction_stands_at_its_own_position():
    """8 of 16 keys are evicted: the 17th token is turned to position 16 and sees the 8 others at theirs."""
    mixer = CausalAttention(DIM, 4, 2).double()
    x = torch.randn(2, 17, DIM, dtype=torch.float64)
    state = mixer.init_state(2, max_length=16)
    mixer(x[:, :16], state)
    kept = torch.tensor([[0, 1, 5, 8, 9, 12, 14, 15], [2, 3, 4, 6, 7, 10, 11, 13]])
    state.keep(kept)
    assert (state.seen, state.filled) == (16, 8)
    assert state.place(1).position.tolist() == [16]
    y = mixer(x[:, 16:], state)
    assert state.position is not None and state.position[:, :9].tolist() == [[*row, 16] for row in kept.tolist()]
    q, k, v = (proj(x).unflatten(-1, (-1, 6)) for proj in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    q, k = mixer.rotated(torch.arange(17), q, k)
    for row in range(2):
        seen = [*kept[row].tolist(), 16]
        keys, values = (heads[row, seen].repeat_interleave(2, 1) for heads in (k, v))
        weights = torch.einsum("hd,shd->hs", q[row, 16], keys).div(6**0.5).softmax(-1)
        close(y[row, 0], mixer.out_proj(torch.einsum("hs,shd->hd", weights, values).flatten()))


@torch.no_grad()
def test_padding_takes_no_room_that_tokens_need():
    """Many steps of padding in one row or another: a full cache drops them before it refuses."""
    mixer = CausalAttention(DIM, 4).double()
    state, x = mixer.init_state(2, max_length=8), torch.randn(2, 14, DIM, dtype=torch.float64)
    for t in range(14):
        ids = torch.tensor([[0], [-1]] if t % 2 else [[-1], [0]])
        y = mixer(x[:, t : t + 1], state, seq_idx=ids)
    assert state.key.shape[2] == 8 and state.seen == 14
    close(y[0, 0], mixer(x[:1, 1::2])[0, -1])
    with pytest.raises(ValueError, match="at most 8 tokens, 7 are in it and 2 more"):
        mixer(x[:, :2], state)


@torch.no_grad()
def test_the_cache_of_a_window_stays_as_large_as_the_window():
    mixer = SlidingWindowAttention(DIM, 4, window=6)
    state, sizes = mixer.init_state(2), set()
    for length in (1, 4, 1, 20, 1, 1):
        mixer(torch.randn(2, length, DIM), state)
        sizes.add(state.nbytes)
    assert len(sizes) == 1 and state.filled == 6 and state.position is None and EMPTY > 10**9
