"""Linformer: what E and F make of full attention, sharing, padding and lengths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo


def built(**options: Any) -> Any:
    return zoo.create_model("linformer_nano", dtype=torch.float64, **options).eval()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def text(length: int = 20) -> Tensor:
    return torch.randint(0, 15, (3, length))


@pytest.mark.parametrize("sharing", ["none", "key-value"])
def test_unit_matrices_give_full_attention(sharing):
    """Every head its own attention of all tokens to all."""
    model, tokens = built(rank=20, max_length=20, depth=1, sharing=sharing), text()
    mixer = model.blocks[0].mixer
    for projection in (mixer.keys, mixer.values):
        projection.weight.data.copy_(torch.eye(20))
    x = torch.randn(2, 20, 48, dtype=torch.float64)
    q, k, v = (proj(x).unflatten(-1, (4, -1)).transpose(1, 2) for proj in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    full = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    close(mixer(x), mixer.out_proj(full))
    assert model(tokens).shape == (3, 10)


def test_the_equation_head_by_head():
    model = built(sharing="none")
    mixer, x = model.blocks[1].mixer, torch.randn(17, 48, dtype=torch.float64)
    heads = []
    for h in range(4):
        part = slice(12 * h, 12 * (h + 1))
        q, k, v = (x @ proj.weight[part].T for proj in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
        weights = (q @ (mixer.keys.weight[h, :, :17] @ k).T / 12**0.5).softmax(-1)
        assert weights.shape == (17, 16)
        heads.append(weights @ (mixer.values.weight[h, :, :17] @ v))
    close(mixer(x[None])[0], mixer.out_proj(torch.cat(heads, dim=-1)))


@pytest.mark.parametrize(
    ("sharing", "count"), [("none", 24 * 4), ("headwise", 24), ("key-value", 12), ("layerwise", 1)]
)
def test_sharing_has_the_papers_number_of_matrices(sharing, count):
    """Of twelve blocks with four heads."""
    model = built(depth=12, sharing=sharing, dim=8, mlp_dim=8)
    matrices = {id(p): len(p) for name, p in model.named_parameters() if ".keys." in name or ".values." in name}
    assert sum(matrices.values()) == count


def test_a_saved_model_shares_as_before(tmp_path):
    zoo.save_model(model := built(sharing="layerwise"), tmp_path)
    again: Any = zoo.create_model(f"local-dir:{tmp_path}").eval()
    mixers = [block.mixer for block in again.blocks]
    assert len({id(p) for mixer in mixers for p in (mixer.keys.weight, mixer.values.weight)}) == 1
    tokens = text()
    torch.testing.assert_close(again(tokens), model.float()(tokens))


@pytest.mark.parametrize("pair", [False, True])
def test_padding_changes_nothing_wherever_it_stands(pair):
    model = built(pair=pair)
    tokens = torch.randint(0, 15, (3, 2, 20) if pair else (3, 20))
    expected = model(tokens)
    for padded in (F.pad(tokens, (0, 13), value=-1), F.pad(tokens, (3, 1), value=-100)):
        close(model(padded), expected)


def test_every_token_counts_at_its_place_and_too_many_are_refused():
    model, tokens = built(), text()
    x = model.embed(tokens).detach().requires_grad_()
    assert torch.autograd.grad(model.blocks[0](x, tokens >= 0)[0, 3].sum(), x)[0][0].abs().sum(-1).gt(0).all()
    assert (model(tokens) - model(tokens.flip(1))).abs().max() > 1e-3
    with pytest.raises(ValueError, match="at most max_length 64 tokens, got 65"):
        model(text(65))
    with pytest.raises(ValueError, match=r"sharing must be one of \('none', .*got 'all'"):
        built(sharing="all")
