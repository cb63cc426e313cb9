"""Rows that share their prompt: attention in parts is attention, and so is generation; what a state of them holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.layers import CausalAttention, LatentAttention
from zoo.layers.attention.parts import attend_part, joined
from zoo.layers.attention.shared_prefix import SharedPrefixState, fan_out

ATTENTION = {
    "grouped": lambda: CausalAttention(32, 4, 2),
    "capped": lambda: CausalAttention(32, 4, 1, softcap=2.0),
    "sinks": lambda: CausalAttention(32, 4, sinks=True),
    "latent": lambda: LatentAttention(32, 4, kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=6),
}


def test_parts_in_any_order_are_the_whole_and_one_of_them_may_be_empty():
    attention = CausalAttention(32, 4, 2).double()
    q, k, v = (torch.randn(2, heads, n, 8, dtype=torch.float64) for heads, n in ((4, 5), (2, 12), (2, 12)))
    logits = attention.logits(q, k, v)
    hidden = logits[..., :3].new_full(logits[..., :3].shape, -torch.inf)
    parts = [attend_part(attention, logits[..., span], v[:, :, span]) for span in (slice(0, 5), slice(5, 12))]
    empty = attend_part(attention, hidden, v[:, :, :3])
    expected = attention.mixed(logits.softmax(-1), v)
    for order in (parts, parts[::-1], [parts[0], empty, parts[1]]):
        torch.testing.assert_close(joined(order), expected, atol=1e-14, rtol=0)
    assert (empty.lse == -torch.inf).all() and not empty.output.any()


@pytest.mark.parametrize("make", ATTENTION.values(), ids=ATTENTION)
@pytest.mark.parametrize("padded", [False, True])
def test_copies_of_a_prompt_attend_as_rows_of_their_own(make, padded):
    torch.manual_seed(0)
    layer: Any = make().double()
    if getattr(layer, "sinks", None) is not None:
        torch.nn.init.normal_(layer.sinks)
    prompts, after = torch.randn(2, 7, 32).double(), torch.randn(6, 5, 32).double()
    ids = torch.tensor([[0] * 7, [-1] * 3 + [0] * 4]) if padded else None
    plain, shared = layer.init_state(2), layer.init_state(2)
    for state in (plain, shared):
        layer(prompts, state, seq_idx=ids)
    plain.reorder(torch.arange(2).repeat_interleave(3))
    shared = fan_out(shared, 3)
    assert isinstance(shared, SharedPrefixState)
    for start, stop in ((0, 1), (1, 2), (2, 5)):  # a step, another, and a chunk
        found, expected = (layer(after[:, start:stop], state) for state in (shared, plain))
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    shared.crop(-4)
    plain.crop(-4)
    torch.testing.assert_close(layer(after[:, 1:2], shared), layer(after[:, 1:2], plain), atol=1e-12, rtol=0)


@pytest.mark.parametrize("make", ATTENTION.values(), ids=ATTENTION)
@pytest.mark.parametrize("padded", [False, True])
def test_prompts_that_share_a_prompt_are_a_tree(make, padded):
    """Of two prompts two branches each, of these three leaves each; what is shared is kept once."""
    torch.manual_seed(0)
    layer: Any = make().double()
    prompts, branch, leaf = (torch.randn(rows, 5, 32).double() for rows in (2, 4, 12))
    ids = torch.tensor([[0] * 5, [-1] * 2 + [0] * 3]) if padded else None
    plain, shared = layer.init_state(2), layer.init_state(2)
    layer(prompts, plain, seq_idx=ids)
    layer(prompts, shared, seq_idx=ids)
    for x, copies in ((branch, 2), (leaf, 3)):
        plain.reorder(torch.arange(len(plain.key)).repeat_interleave(copies))
        shared = fan_out(shared, copies)
        for start, stop in ((0, 1), (1, 5)):
            found, expected = (layer(x[:, start:stop], state) for state in (shared, plain))
            torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert shared.outer is not None and [len(level.prompt[0]) for level in shared._levels()] == [4, 2]
    shared.crop(-4)
    plain.crop(-4)
    torch.testing.assert_close(layer(leaf[:, 1:2], shared), layer(leaf[:, 1:2], plain), atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match="the prompt of 10 steps is shared"):
        shared.crop(9)


@pytest.mark.parametrize("name", ["transformer_nano", "jamba_nano", "gpt_oss_nano"])
def test_samples_share_their_prompt(name):
    model: Any = zoo.create_model(name, pretrained=True).double()
    prompts: list[Tensor] = [torch.arange(97, 109), torch.arange(65, 70)]
    found, expected = (
        zoo.generate(
            model, prompts, 6, num_samples=3, log_probs=True, share_prompt=share,
            generator=torch.Generator().manual_seed(0),
        )
        for share in (True, False)
    )  # fmt: skip
    for one, other in zip(found.tokens, expected.tokens, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(found.log_probs, expected.log_probs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


def test_what_a_shared_state_holds_and_cannot_do():
    layer = CausalAttention(32, 4, 2)
    state = layer.init_state(1, max_length=100)
    layer(torch.randn(1, 90, 32), state)
    shared = fan_out(state, 8)
    assert shared.nbytes == 4 * 2 * 2 * 8 * (90 + 8 * 10) and len(shared.key) == 8
    with pytest.raises(ValueError, match="rows that share a prompt stay where they are"):
        shared.reorder(torch.arange(8))
    with pytest.raises(ValueError, match="the prompt of 90 steps is shared and cannot be cropped to 89"):
        shared.crop(89)
    narrow = shared.to(dtype=torch.bfloat16)
    assert narrow.prompt[0].dtype == narrow.key.dtype == torch.bfloat16 and shared.prompt[0].dtype == torch.float32
