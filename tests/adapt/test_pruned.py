"""A ladder that begins with channels of its model: which they are, and that nothing else moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.adapt import own_names
from zoo.adapt.pruned import fisher, prune_into_ladder

SHAPE = {"dim": 16, "depth": 2, "num_heads": 2, "num_kv_heads": 1, "mlp_dim": 24, "dtype": torch.float64}


def built(reduction: int, **options: Any) -> Any:
    torch.manual_seed(0)
    return zoo.adapt(zoo.create_model("transformer_nano", **SHAPE, **options), "ladder", reduction=reduction).eval()


def samples() -> list[tuple[Tensor, Tensor]]:
    tokens = torch.randint(256, (3, 12), generator=torch.Generator().manual_seed(1))
    return [(row[None], row[None]) for row in tokens]


def test_with_all_channels_it_is_a_copy():
    model = built(1, qk_norm="head", qkv_bias=True, norm_order="both")
    prune_into_ladder(model, samples())
    for rung in model.blocks:
        held = rung.side.state_dict()
        assert held.keys() == rung.block.state_dict().keys()
        assert all(torch.equal(tensor, held[key]) for key, tensor in rung.block.state_dict().items())
    assert torch.equal(model.blocks[-1].close.weight, model.norm.weight)


def test_information_is_of_each_sample():
    model, plain = built(2), zoo.create_model("transformer_nano", **SHAPE)
    plain.load_state_dict(before(model))
    found = fisher(model, samples())
    expected = torch.zeros_like(plain.blocks[1].mlp.w2.weight)
    for tokens, labels in samples():
        plain.zero_grad()
        plain(tokens, labels=labels).backward()
        expected += plain.blocks[1].mlp.w2.weight.grad.square()
    torch.testing.assert_close(found[model.blocks[1].block.mlp.w2.weight], expected)


def before(model: Any) -> dict[str, Tensor]:
    own = set(own_names(model))
    return {key.replace(".block.", "."): t for key, t in model.state_dict().items() if key not in own}


def test_the_channels_that_matter_are_kept_and_nothing_else_moves():
    model = built(2)
    state = {key: tensor.clone() for key, tensor in before(model).items()}
    x = samples()[0][0]
    expected, matters = model(x), fisher(model, samples())
    learning = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    prune_into_ladder(model, samples())
    assert torch.equal(model(x), expected) and all(torch.equal(t, state[key]) for key, t in before(model).items())
    assert {key: parameter.requires_grad for key, parameter in model.named_parameters()} == learning

    stream = largest(matters[model.embedding.weight].sum(0), 8)
    rung = model.blocks[1]
    mlp, attention = rung.block.mlp, rung.block.mixer
    scores = [sum(matters[layer.weight][row, stream].sum().log() for layer in (mlp.w1, mlp.w3)) for row in range(24)]
    hidden = largest(torch.stack(scores), 12)
    assert torch.equal(rung.side.mlp.w1.weight, mlp.w1.weight[hidden][:, stream])
    assert torch.equal(rung.side.mlp.w2.weight, mlp.w2.weight[stream][:, hidden])
    assert torch.equal(rung.side.norm.weight, rung.block.norm.weight[stream])
    q, k = (matters[layer.weight][:, stream].sum(1).log() for layer in (attention.q_proj, attention.k_proj))
    pairs = [sum(q[head * 8 + c] for head in (0, 1) for c in (i, i + 4)) + k[i] + k[i + 4] for i in range(4)]
    turning = largest(torch.stack(pairs), 2)
    rows = torch.cat([turning, turning + 4])
    assert torch.equal(rung.side.mixer.k_proj.weight, attention.k_proj.weight[rows][:, stream])
    assert torch.equal(rung.side.mixer.q_proj.weight, attention.q_proj.weight[torch.cat([rows, rows + 8])][:, stream])
    values = largest(matters[attention.v_proj.weight][:, stream].sum(1), 4)
    columns = torch.cat([values, values + 8])
    assert torch.equal(rung.side.mixer.out_proj.weight, attention.out_proj.weight[stream][:, columns])


def largest(scores: Tensor, count: int) -> Tensor:
    return torch.tensor(sorted(sorted(range(len(scores)), key=lambda index: -float(scores[index]))[:count]))


def test_what_cannot_be_pruned():
    with pytest.raises(ValueError, match="has no ladder"):
        prune_into_ladder(zoo.create_model("transformer_nano"), samples())
    model: Any = zoo.adapt(zoo.create_model("mamba2_nano"), "ladder", reduction=2)
    with pytest.raises(ValueError, match="pruned out of blocks of softmax attention with SwiGLU, got Mamba2"):
        prune_into_ladder(model, samples())
