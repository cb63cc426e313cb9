"""LeMo: which blocks are informative, what goes past attention, and what the backward pass forgets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.layers import CausalAttention, SwiGLU
from zoo.layers.recast import recast
from zoo.train.memory import lean
from zoo.train.memory.count import saved_bytes
from zoo.train.memory.informative import fit_predictors, information, tiles
from zoo.train.memory.lemo import ForgetfulSwiGLU, InformativeAttention, LeMo


def attention(keep: float = 0.5, size: int = 4) -> tuple[CausalAttention, InformativeAttention]:
    """Plain, and with the same weights."""
    torch.manual_seed(0)
    plain = CausalAttention(16, 4, 2).double()
    made = recast(plain, InformativeAttention)
    made.keep, made.block_size = keep, size
    return plain, made


def logits(plain: CausalAttention, x: Tensor) -> Tensor:
    """Of all heads (B, H, T, T)."""
    place = plain.place(x, None, None)
    q, k = (proj(x).unflatten(-1, (-1, 4)) for proj in (plain.q_proj, plain.k_proj))
    q, k = plain.rotated(place.position, q, k)
    return torch.einsum("bthd,bshd->bhts", q, k.repeat_interleave(2, 2)) / 2


@pytest.mark.parametrize("length", [12, 14])
def test_information_is_written_out(length):
    plain, made = attention()
    x = torch.randn(2, length, 16).double()
    score = logits(plain, x).relu().sum(1)
    count = -(-length // 4)
    expected = torch.zeros(2, count).double()
    for row in range(2):
        for j in range(count):
            tiles = []
            for i in range(j, count):
                seen = [
                    score[row, t, s] for t in range(4 * i, min(4 * i + 4, length))
                    for s in range(4 * j, min(4 * j + 4, length)) if s <= t
                ]  # fmt: skip
                tiles.append(max(seen))
            expected[row, j] = sum(tiles) / len(tiles)
    torch.testing.assert_close(made.information(x, None), expected)


@pytest.mark.parametrize("length", [16, 14])
def test_informative_tokens_attend_at_their_places_and_others_go_past(length):
    plain, made = attention()
    x = torch.randn(2, length, 16).double()
    blocks = made.information(x, None).topk(2, 1).indices.sort(1).values
    y = made(x)
    for row in range(2):
        token = [t for block in blocks[row].tolist() for t in range(4 * block, min(4 * block + 4, length))]
        hidden = torch.full((length, length), -torch.inf).double()
        hidden[:, token] = 0
        weights = (logits(plain, x)[row] + hidden.tril() + torch.full_like(hidden, -torch.inf).triu(1)).softmax(-1)
        v = plain.v_proj(x[row]).unflatten(-1, (-1, 4)).transpose(0, 1).repeat_interleave(2, 0)
        expected = plain.out_proj((weights @ v).transpose(0, 1).flatten(1))
        torch.testing.assert_close(y[row, token], expected[token])
        assert not y[row, [t for t in range(length) if t not in token]].any()


def test_packed_sequences_do_not_see_each_other():
    _, made = attention(keep=0.75)
    x, ids = torch.randn(1, 16, 16).double(), torch.tensor([[0] * 9 + [1] * 7])
    torch.testing.assert_close(made.information(x, ids)[:, 3:], made.information(x[:, 12:], None))
    apart, joined = tiles(made, x, 4, ids)[:, 3, :2], tiles(made, x, 4)[:, 3, :2]
    assert not apart.any() and joined.all(), "the last four tokens see nothing of the first sequence"
    other = x.clone()
    other[:, :9] += torch.randn(1, 9, 16)
    token = torch.arange(16)[None]
    before, after = (made.at_tokens(one, token, ids) for one in (x, other))
    torch.testing.assert_close(before[:, 9:], after[:, 9:])
    assert not torch.allclose(before[:, :9], after[:, :9])


@pytest.mark.parametrize("forget", [0.0, 0.5])
def test_a_swiglu_is_exact_forwards_and_forgets_channels_backwards(forget):
    torch.manual_seed(0)
    plain = SwiGLU(8, 12).double()
    made = recast(plain, ForgetfulSwiGLU)
    made.forget = forget
    x, dy = torch.randn(2, 8, 8).double().requires_grad_(), torch.randn(2, 8, 8).double()
    assert torch.equal(made(x), plain(x))
    gate, up = plain.w1(x), plain.w3(x)
    strength = plain.act(gate).flatten(0, 1).norm(dim=0) + up.flatten(0, 1).norm(dim=0)
    kept = strength >= strength.sort().values[int(12 * forget)]
    assert kept.sum() == 12 - int(12 * forget)
    wanted = [x, *plain.parameters()]
    known = torch.where(kept, plain.act(gate) * up, (plain.act(gate) * up).detach())  # what is forgotten is constant
    expected = list(torch.autograd.grad(plain.w2(known), wanted, dy))
    expected[3] = expected[3] * kept  # of w2's columns
    for a, b in zip(torch.autograd.grad(made(x), wanted, dy), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_layers_memory_and_removal():
    model: Any = zoo.create_model("transformer_nano", depth=4).train()
    tokens = torch.randint(256, (2, 64))
    plain = saved_bytes(model, lambda: model(tokens, labels=tokens)).between
    memory = lean(model, "lemo", keep=0.25, block_size=8, forget=0.5)
    kinds = [type(block.mixer) is InformativeAttention for block in model.blocks]
    assert kinds == [False, True, True, False] == [index in LeMo().chosen(4) for index in range(4)]
    assert LeMo().chosen(32) == tuple(range(15, 31))
    assert model.eval()(tokens).shape == (2, 64, 256)
    expected = model(tokens)
    memory.remove()
    assert torch.equal(model(tokens), expected) and type(model.blocks[1].mixer) is CausalAttention
    lean(model.train(), "lemo", keep=0.25, block_size=8, forget=0.5, layers=(0, 1, 2, 3))
    assert saved_bytes(model, lambda: model(tokens, labels=tokens)).between < 0.75 * plain


def test_small_networks_learn_the_scores(tmp_path):
    torch.manual_seed(0)
    model: Any = zoo.create_model("transformer_nano", dim=16, depth=2, num_heads=2, num_kv_heads=1, mlp_dim=16)
    torch.nn.init.normal_(model.blocks[1].mixer.q_proj.weight)
    batches = [(256 * torch.rand(8, 64) ** 3).long() for _ in range(80)]
    losses = fit_predictors(model, batches, tmp_path / "file", layers=(1,), block_size=8, hidden_dim=16, lr=3e-3)
    assert list(losses) == [1] and sum(losses[1][-5:]) < 0.7 * sum(losses[1][:5])
    entered = []
    model.blocks[1].mixer.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    names, options = set(model.state_dict()), {"keep": 0.5, "block_size": 8, "layers": (1,)}
    memory = lean(model.train(), "lemo", predictors=str(tmp_path / "file"), **options)
    model(batches[0], labels=batches[0]).backward()
    said = model.blocks[1].mixer.information(entered[-1], None)
    own = information(tiles(model.blocks[1].mixer, entered[-1], 8))
    assert torch.corrcoef(torch.stack([said.flatten(), own.flatten()]))[0, 1] > 0.5
    assert set(model.state_dict()) == names
    memory.remove()
    for wrong, message in (({"layers": (0,)}, "no predictor of block 0"), ({"block_size": 4}, "another size")):
        with pytest.raises(ValueError, match=message):
            lean(model, "lemo", predictors=str(tmp_path / "file"), **{**options, **wrong})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.0}, "keep must be in"),
        ({"forget": 1.0}, "forget in"),
        ({"block_size": 0}, "block_size must be at least 1"),
        ({"layers": (9,)}, "layers must be some of the"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        lean(zoo.create_model("transformer_nano", device="meta"), "lemo", **options)
