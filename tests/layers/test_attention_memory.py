"""What attention takes while it computes and what it reserves: bounded, and the outputs as without the bound."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import zoo
from zoo.layers import CausalAttention, SlidingWindowAttention
from zoo.layers.attention import causal
from zoo.layers.step import programmed

DIM = 16


def layer(window: int | None, **options: Any) -> Any:
    torch.manual_seed(0)
    made: Any = CausalAttention(DIM, 4, 2, **options)
    if window is not None:
        made = SlidingWindowAttention(DIM, 4, window, 2, **options)
    return made.double()


@pytest.fixture
def sizes(monkeypatch) -> list[int]:
    """Of the logits that were written out."""
    found = []

    def bounded(self: Any, dots: Any, plain: Any = CausalAttention.bounded) -> Any:
        found.append(dots.numel())
        return plain(self, dots)

    monkeypatch.setattr(CausalAttention, "bounded", bounded)
    return found


@pytest.mark.parametrize("start", [0, 7])
def test_bounded_logits_exist_a_few_rows_at_a_time(sizes, monkeypatch, start):
    """Of a prompt, of a chunk after one, and with padding; outputs and gradients are those of all at once."""
    attention, x = layer(None, softcap=2.0), torch.randn(2, 30, DIM, dtype=torch.float64)
    ids = torch.zeros(2, 30, dtype=torch.long)
    ids[0, :5] = -1
    results = []
    for limit in (2**24, 500):
        monkeypatch.setattr(causal, "LOGITS", limit)
        sizes.clear()
        attention.zero_grad()
        state = attention.init_state(2)
        y = torch.cat([attention(part, state) for part in x.split([start, 30 - start], 1) if part.shape[1]], 1)
        packed = attention(x, seq_idx=ids)
        (y.square().sum() + packed[1].sum()).backward()
        results.append((y, packed[:, 5:], *(parameter.grad for parameter in attention.parameters())))
        assert max(sizes) <= limit
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sinks", [False, True])
def test_a_window_of_bounded_logits_reads_what_is_near(sizes, sinks):
    """Its logits grow with the window, not with the square of the text; from a state, and of packed sequences."""
    attention, x = layer(9, softcap=2.0, sinks=sinks), torch.randn(1, 300, DIM, dtype=torch.float64)
    ids = (torch.arange(300) // 90)[None]
    steps = torch.arange(300)
    near = (steps <= steps[:, None]) & (steps[:, None] - steps < 9)
    with torch.no_grad():
        for given, mask in ((None, near), (ids, near & (ids[0] == ids[0, :, None]))):
            q, k, v = (
                proj(x).unflatten(-1, (-1, 4)) for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            q, k = attention.rotated(steps, q, k)
            heads = attention.attend(*(one.transpose(1, 2) for one in (q, k, v)), mask)
            sizes.clear()
            found = attention(x, seq_idx=given)
            assert max(sizes) <= 4 * 64 * (64 + 8)
            torch.testing.assert_close(found, attention.output(heads.transpose(1, 2).flatten(2), x))
        state = attention.init_state(1)
        parts = torch.cat([attention(part, state) for part in x.split([100, 150, 50], 1)], 1)
        torch.testing.assert_close(parts, attention(x))


@torch.no_grad()
def test_a_window_reserves_no_more_than_the_text_needs():
    attention, x = layer(8), torch.randn(2, 30, DIM, dtype=torch.float64)
    ids = torch.zeros(2, 4, dtype=torch.long)
    ids[1, :2] = -1
    short, plain = attention.init_state(2, 3), attention.init_state(2)
    assert short.key.shape[2] == 3 and plain.key.shape[2] == attention.init_state(2, 100).key.shape[2] == 8
    for part, given in zip(x.split([4, 1, 1, 15, 1, 8], 1), (ids, *[None] * 5), strict=True):
        torch.testing.assert_close(attention(part, short, seq_idx=given), attention(part, plain, seq_idx=given))
        assert short.filled == plain.filled <= short.key.shape[2] <= 8


def test_a_window_with_fewer_slots_grows_in_steps_by_a_program():
    torch.manual_seed(0)
    model: Any = zoo.create_model("transformer_nano", window=8).eval()
    tokens = torch.randint(0, 256, (1, 14))
    with torch.no_grad(), programmed(model):
        whole, state = model(tokens), model.init_state(1, 4)
        found = torch.cat([model(tokens[:, t : t + 1], state) for t in range(14)], 1)
        assert model.stepper.made[1] is not None and state[0].key.shape[2] == 8
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)
